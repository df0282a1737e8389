"""From rows of a data set to a model's batch."""

from dataclasses import dataclass
from typing import Any

import torch

from ..constants_amess import FEATURE_MODALITIES
from ..padding_amess import encode_texts, pad_features


@dataclass
class AMESSDataCollator:
    """
    Make one padded batch of clips: each modality is padded to the batch's own longest clip and cut at its maximum.

    Args:
        tokenizer: The text encoder's tokenizer, or an [`AMESSProcessor`] that has it.
        config ([`AMESSConfig`]): Says which modalities there are, how wide and how long at most.
        candidates (`dict[str, list[int]]`, *optional*):
            Label ids that a clip of each data set (column `dataset`) may have; makes a `candidate_mask`.

    Raises:
        `ValueError`: if a clip's features have another width than the configuration says.
    """

    tokenizer: Any
    config: Any
    candidates: dict[str, list[int]] | None = None

    def __post_init__(self):
        self.tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)

    def __call__(self, rows):
        """
        Args:
            rows (`list[dict]`): Examples with `text` and, where there are, `context`, `label`, `audio_features`,
                `video_features` (frames, feature_size).

        Returns:
            `dict[str, torch.Tensor]`: what the model's `forward` takes.
        """
        contexts = [row["context"] for row in rows] if "context" in rows[0] else None
        batch = dict(
            encode_texts(self.tokenizer, [row["text"] for row in rows], contexts, self.config.max_text_length)
        )
        for modality in FEATURE_MODALITIES:
            width = getattr(self.config, f"{modality}_feature_size")
            if width is not None:
                name = f"{modality}_features"
                limit = getattr(self.config, f"max_{modality}_length")
                features, mask = pad_features([row.get(name) for row in rows], width, limit, name)
                batch[name], batch[f"{modality}_attention_mask"] = features, mask
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([int(row["label"]) for row in rows])
        if self.candidates is not None:
            batch["candidate_mask"] = self._candidate_mask(rows)
        return batch

    def _candidate_mask(self, rows):
        mask = torch.zeros(len(rows), self.config.num_labels, dtype=torch.bool)
        for row, clip in zip(mask, rows, strict=True):
            row[self.candidates[clip["dataset"]]] = True
        return mask
