"""Turn lists of clips into padded tensors and masks: tokens of utterances with their context, frames of features."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning


# Tokenizers keep the limit of a call until the next one, so threads must take turns.
_TOKENIZING = threading.Lock()


def pad_features(
    features: Sequence[Any], feature_size: int, max_length: int, name: str = "features"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad frame features to the longest clip of the batch.

    Args:
        features (`list` of arrays of shape `(frames, feature_size)`, or `None`):
            One entry per clip; `None` or zero frames where the clip lacks the modality.
        feature_size (`int`):
            Width of a frame.
        max_length (`int`):
            Frames beyond this are cut off at the end.
        name (`str`, *optional*, defaults to `"features"`):
            What an error calls the features.

    Returns:
        `tuple[torch.FloatTensor, torch.LongTensor]`: Features of shape `(batch_size, length, feature_size)` and their
        mask of shape `(batch_size, length)`; `length` is that of the longest clip, and at least 1.

    Raises:
        ValueError: The features of a clip are not two-dimensional, have another width, or are not finite.
    """
    frames = [np.asarray(() if clip is None else clip, dtype=np.float32) for clip in features]
    lengths = [min(len(clip), max_length) for clip in frames]
    batch = np.zeros((len(frames), max(1, *lengths), feature_size), dtype=np.float32)
    mask = np.zeros(batch.shape[:2], dtype=np.int64)
    for row, (clip, length) in enumerate(zip(frames, lengths, strict=True)):
        if length == 0:
            continue
        if clip.ndim != 2 or clip.shape[1] != feature_size:
            raise ValueError(
                f"`{name}` of clip {row} of the batch has shape {clip.shape}; it must be (frames, {feature_size})"
            )
        if not np.isfinite(clip[:length]).all():
            raise ValueError(
                f"`{name}` of clip {row} of the batch holds NaN or infinite values; make the features of this clip again"
            )
        batch[row, :length] = clip[:length]
        mask[row, :length] = 1
    return torch.from_numpy(batch), torch.from_numpy(mask)


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: Sequence[str] = (),
    max_length: int | None = None,
    prefix: str | None = None,
    **kwargs: Any,
) -> BatchEncoding:
    """Tokenize one utterance, preceded by as many of the latest whole turns as fit.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder.
        text (`str`):
            The utterance.
        context (`list[str]`, *optional*):
            Earlier turns, oldest first. They are joined by the tokenizer's separator, or by new lines if it has none, and
            are the first text of a pair.
        max_length (`int`, *optional*):
            Maximum number of tokens. The oldest turns are left out first, whole; only an utterance that is too long by
            itself is cut, at its end.
        prefix (`str`, *optional*):
            Text in front of all this; it does not count towards `max_length`.
        kwargs:
            For the tokenizer.

    Returns:
        [`~transformers.BatchEncoding`]: The tokens, not padded. The utterance is the last sequence.
    """
    prefix = prefix or ""
    # Without its own separator, the last turn would run into the utterance.
    separator, end = (f" {tokenizer.sep_token} ", "") if tokenizer.sep_token else ("\n", "\n")
    with _TOKENIZING:
        if prefix and max_length is not None:
            max_length += len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
        for first in range(len(context)):
            row = tokenizer(prefix + separator.join(context[first:]) + end, text, verbose=False, **kwargs)
            if max_length is None or len(row["input_ids"]) <= max_length:
                return row
        limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
        return tokenizer(prefix + text, **limit, **kwargs)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    contexts: Sequence[Sequence[str]] | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
) -> BatchEncoding:
    """Tokenize utterances, each with the turns before it, and pad them to the longest of the batch.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder.
        texts (`list[str]`):
            Utterances; an empty one has no words, and its mask is all zeros.
        contexts (`list[list[str]]`, *optional*):
            Earlier turns of each utterance; see [`encode_text`].
        max_length (`int`, *optional*):
            Maximum number of tokens of each.
        prefix (`str`, *optional*):
            Text in front of each; see [`encode_text`].

    Returns:
        [`~transformers.BatchEncoding`]: `input_ids`, `attention_mask` (and `token_type_ids` if the tokenizer makes
        them), each a `torch.LongTensor` of shape `(batch_size, text_length)`; where a clip has earlier turns or a prefix,
        also `utterance_mask` of that shape, 1 for the tokens of the utterance itself. A tokenizer without a padding token
        gets one of its existing tokens.
    """
    _give_padding_token(tokenizer)
    rows, context_lengths = [], []
    for text, context in zip(texts, contexts if contexts is not None else [()] * len(texts), strict=True):
        row = encode_text(tokenizer, text, context, max_length, prefix)
        # The utterance is last, and the separator before it takes the place of a start token.
        alone = encode_text(tokenizer, text, max_length=max_length) if len(context) or prefix else row
        context_lengths.append(len(row["input_ids"]) - len(alone["input_ids"]))
        if not text.strip():
            # Some tokenizers produce no token for it, but a row has at least one.
            row = {name: list(values) or [0] for name, values in row.items()}
            row["attention_mask"] = [0] * len(row["input_ids"])
        rows.append(row)
    batch = _padded(tokenizer, rows)
    if any(context_lengths):
        mask = batch["attention_mask"]
        batch["utterance_mask"] = mask * (mask.cumsum(1) > torch.tensor(context_lengths)[:, None])
    return batch


def _padded(tokenizer: PreTrainedTokenizerBase, rows: list[BatchEncoding]) -> BatchEncoding:
    """Pad rows of tokens on the right, whichever side the tokenizer pads on: positions then do not depend on the batch."""
    if not any(row["input_ids"] for row in rows):  # a tokenizer without special tokens gives none for no words
        rows[0] = BatchEncoding({name: [tokenizer.pad_token_id * (name == "input_ids")] for name in rows[0]})
    return pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt", padding_side="right")


def _give_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a padding token where a tokenizer has none: which one does not matter, since masks hide it."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


__all__ = ["encode_text", "encode_texts", "pad_features"]
