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


def _latest_turns(tokenizer, text, turns, max_length):
    """The longest run of the latest whole turns that fits beside the utterance, oldest first."""
    if max_length is None:
        return list(turns)
    lengths = [len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) for part in (*turns, text)]
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - lengths.pop()
    kept = []
    for turn, length in zip(reversed(turns), reversed(lengths), strict=True):
        room -= length + bool(kept)  # a separator stands between two turns
        if room < 0:
            break
        kept.insert(0, turn)
    return kept


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
    separator = f" {tokenizer.sep_token} " if tokenizer.sep_token else " "
    rows, context_lengths = [], []
    for text, turns in zip(texts, contexts if contexts is not None else [()] * len(texts), strict=True):
        kept = _latest_turns(tokenizer, text, turns, max_length) if turns else ()
        row = tokenizer(text, **limit)
        length = len(row["input_ids"])
        if kept:
            row = tokenizer(separator.join(kept), text)
        # The utterance is last, and the separator before it takes the place of a start token.
        context_lengths.append(len(row["input_ids"]) - length)
        if not text.strip():
            row["attention_mask"] = [0] * len(row["attention_mask"])
        rows.append(row)
    batch = pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt")
    if any(context_lengths):
        mask = batch["attention_mask"]
        batch["utterance_mask"] = mask * (mask.cumsum(1) > torch.tensor(context_lengths)[:, None])
    return batch
