"""Map anchor positions to words of the utterance and seconds of the clip."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .constants_amess import NO_ANCHOR
from .padding_amess import encode_text


def scored_anchors(indices: Iterable[Any], scores: Iterable[Any]) -> list[tuple[int, float]]:
    """List the anchors of one modality of one clip, the best first.

    Args:
        indices (array of shape `(num_anchors,)`):
            Positions, a row of the model's `anchor_indices`.
        scores (array of shape `(num_anchors,)`):
            A row of the model's `anchor_scores`.

    Returns:
        `list[tuple[int, float]]`: Position and score of each; places without an anchor are left out.
    """
    pairs = [(int(position), float(score)) for position, score in zip(indices, scores, strict=True)]
    return sorted((pair for pair in pairs if pair[0] != NO_ANCHOR), key=lambda pair: -pair[1])


def utterance_words(
    tokenizer: PreTrainedTokenizerBase,
    anchors: Sequence[tuple[int, float]],
    text: str,
    context: Sequence[str] | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
) -> list[dict[str, Any]]:
    """Split an utterance at white space and find the score of each word.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder. One without offsets (not a fast one) gives no scores.
        anchors (`list[tuple[int, float]]`):
            Tokens and their scores. Special tokens and those of the context belong to no word.
        text (`str`):
            The utterance.
        context (`list[str]`, *optional*):
            Earlier turns that the model was given with it.
        max_length (`int`, *optional*):
            Maximum number of tokens that the model was given.
        prefix (`str`, *optional*):
            The prefix that the model was given before the text.

    Returns:
        `list[dict]`: For each word `word`, `start` and `end` in characters of `text`, and `score`, that of the best
        anchor among its tokens, `None` without one.
    """
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        words.append({"word": word, "start": start, "end": end, "score": None})
    if not words or not anchors or not tokenizer.is_fast:
        return words
    encoding = encode_text(tokenizer, text, context or (), max_length, prefix, return_offsets_mapping=True)
    sequences, offsets = encoding.sequence_ids(), encoding["offset_mapping"]
    utterance = max(sequence for sequence in sequences if sequence is not None)
    before = len(prefix or "") if utterance == 0 else 0  # the prefix begins the first text of a pair
    for position, score in anchors:
        if position >= len(sequences) or sequences[position] != utterance:
            continue
        begin, end = (place - before for place in offsets[position])
        if end < 0:
            continue
        # A token may begin with the space before its word, or be that space, so its end says which word it belongs to.
        word = next((word for word in words if word["end"] >= max(end, begin + 1)), None)
        if word is not None and (word["score"] is None or score > word["score"]):
            word["score"] = score
    return words


def anchor_spans(
    anchors: Sequence[tuple[int, float]], frames_per_unit: float | None = None, offset: float = 0.0
) -> list[dict[str, Any]]:
    """Place the anchors among the frames of a modality on a time axis.

    Args:
        anchors (`list[tuple[int, float]]`):
            Frames and their scores.
        frames_per_unit (`float`, *optional*):
            Frames in one unit of the axis, e.g. in a second; without it, no times are given.
        offset (`float`, *optional*, defaults to 0):
            Where on the axis the first frame begins.

    Returns:
        `list[dict]`: `frame`, `start` and `end` (where known), `score`, in the order of `anchors`.
    """
    spans = []
    for frame, score in anchors:
        span: dict[str, Any] = {"frame": frame}
        if frames_per_unit is not None:
            span["start"] = offset + frame / frames_per_unit
            span["end"] = offset + (frame + 1) / frames_per_unit
        spans.append({**span, "score": score})
    return spans


__all__ = ["anchor_spans", "scored_anchors", "utterance_words"]
