"""From lists of clips to padded tensors and masks: the one place where training and inference build a batch."""

import numpy as np
import torch
from transformers.data.data_collator import pad_without_fast_tokenizer_warning


def pad_features(features, feature_size, max_length, name="features"):
    """
    Pad frame features to the batch's longest clip.

    Args:
        features (`list` of arrays `(frames, feature_size)`, or `None`):
            One entry per clip; `None` or zero frames where the clip lacks the modality.
        feature_size (`int`): Width of a frame.
        max_length (`int`): Frames beyond this are cut off at the end.
        name (`str`): What to call the features in an error.

    Returns:
        `tuple`: `torch.FloatTensor` of shape `(batch_size, length, feature_size)` and the mask, a `torch.LongTensor` of
        shape `(batch_size, length)`; `length` is that of the longest clip, and at least 1.

    Raises:
        `ValueError`: if a clip's features are not two-dimensional or have another width.
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
        batch[row, :length] = clip[:length]
        mask[row, :length] = 1
    return torch.from_numpy(batch), torch.from_numpy(mask)


def _encode_with_turns(tokenizer, text, turns, max_length):
    """The utterance after as many of the latest whole turns as fit beside it; `None` where none does."""
    separator = f" {tokenizer.sep_token} " if tokenizer.sep_token else " "
    for first in range(len(turns)):
        row = tokenizer(separator.join(turns[first:]), text, verbose=False)
        if max_length is None or len(row["input_ids"]) <= max_length:
            return row
    return None


def encode_texts(tokenizer, texts, contexts=None, max_length=None):
    """
    Tokenize utterances, each with the turns before it, and pad them to the batch's longest.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts (`list[str]`): Utterances; an empty one has no words, and its mask is all zeros.
        contexts (`list[list[str]]`, *optional*):
            Earlier turns of each utterance, oldest first. Turns are joined by the tokenizer's separator and go before the
            utterance as the first text of a pair.
        max_length (`int`, *optional*):
            Tokens at most. The oldest turns are left out first, whole; only an utterance that is too long by itself is
            cut, at its end.

    Returns:
        `BatchEncoding` with `input_ids`, `attention_mask` (and `token_type_ids` if the tokenizer makes them), each a
        `torch.LongTensor` of shape `(batch_size, text_length)`; where a clip has earlier turns, also `utterance_mask` of
        that shape, 1 for the tokens of the utterance itself.
    """
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    rows, context_lengths = [], []
    for text, turns in zip(texts, contexts if contexts is not None else [()] * len(texts), strict=True):
        alone = tokenizer(text, **limit)
        row = _encode_with_turns(tokenizer, text, turns, max_length) or alone
        # The utterance is last, and the separator before it takes the place of a start token.
        context_lengths.append(len(row["input_ids"]) - len(alone["input_ids"]))
        if not text.strip():
            row["attention_mask"] = [0] * len(row["attention_mask"])
        rows.append(row)
    batch = pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt")
    if any(context_lengths):
        mask = batch["attention_mask"]
        batch["utterance_mask"] = mask * (mask.cumsum(1) > torch.tensor(context_lengths)[:, None])
    return batch
