"""Collate rows of a data set into a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..processing_amess import AMESSProcessor


@dataclass
class AMESSDataCollator:
    """Make one padded batch of rows with words and ready features, as [`AMESSProcessor.collate`] does, with labels.

    Args:
        processor ([`AMESSProcessor`]):
            Makes the batch; or, with `config`, the text encoder's tokenizer.
        config ([`AMESSConfig`], *optional*):
            The model's configuration, if `processor` is a tokenizer: a processor is made from both.

    Raises:
        TypeError: A tokenizer is given without a configuration.

    Example:
    ```python
    >>> batch = AMESSDataCollator(processor)([dataset["train"][0], dataset["train"][1]])
    >>> loss = model(**batch).loss
    ```
    """

    processor: AMESSProcessor | PreTrainedTokenizerBase
    config: PreTrainedConfig | None = None

    def __post_init__(self):
        if self.config is not None:
            self.processor = AMESSProcessor.for_model(self.config, self.processor)
        if not hasattr(self.processor, "collate"):
            raise TypeError(
                f"`processor` is a {type(self.processor).__name__}; give an AMESSProcessor, or a tokenizer with `config`"
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make the batch of `rows`.

        Args:
            rows (`list[dict]`):
                Rows with `text` and, where known, `context` (`list[str]`), `audio_features` and `video_features` of shape
                `(frames, feature_size)`, `label` (`int`) and `candidate_mask` (`list[bool]`, one for each label of the
                model: whether the clip may have it) and
                `teacher_logits` (`list[float]`). Other columns are ignored; clips are not decoded.

        Returns:
            `dict[str, torch.Tensor]`: What the model's `forward` takes, with `labels` of shape `(batch_size,)` and
            `candidate_mask` and `teacher_logits` of shape `(batch_size, num_labels)` where the rows have them.

        Raises:
            ValueError: Features have another width than the model takes.
        """
        batch = dict(self.processor.collate(rows))
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([int(row["label"]) for row in rows])
        for name, dtype in (("teacher_logits", torch.float32), ("candidate_mask", torch.bool)):
            if name in rows[0]:
                batch[name] = torch.tensor([list(row[name]) for row in rows], dtype=dtype)
        return batch
