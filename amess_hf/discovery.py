"""Discovery of new intents: what clips that belong to no known intent have in common.

Clips fall into groups in the model's own space (`multimodal_embeds`), joined by the mean state of the text encoder's layer at
`LAYER_DEPTH` of its depth, where how something is said is clearer than in the last layer, which says what it is about. Each part
has unit length; both are reduced to `NUM_COMPONENTS` principal components, scaled to unit length again, and grouped by k-means.
Of MIntRec's dev clips, with all-mpnet-base-v2 and no training, 46 % are grouped as their intents are, and 35 % by the last layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from .pipeline_amess import IntentRecognitionPipeline


LAYER_DEPTH = 0.6
NUM_COMPONENTS = 40
# Numbers of groups that are compared, as far as there are `CLIPS_OF_A_GROUP` clips for each, on so many clips.
GROUP_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 20, 23, 26, 30, 35, 40)
CLIPS_OF_A_GROUP, CLIPS_COMPARED = 4, 2000
# Central utterances and characteristic words of a group that are given.
CENTRAL, WORDS = 5, 5


@dataclass
class IntentGroup:
    """Clips that have something in common.

    Attributes:
        clips (`list[int]`): Their places among the clips that were given, the most central first.
        utterances (`list[str]`): What is said in the most central ones that have text.
        tightness (`float`): Mean cosine of the clips and their center, at most 1.
        nearest (`str`): The known intent whose answer is most probable, on average.
        name (`str`): A suggestion.
        descriptions (`list[str]`): Suggested sentences, as `set_label_descriptions` takes them.
    """

    clips: list[int]
    utterances: list[str]
    tightness: float
    nearest: str
    name: str
    descriptions: list[str]


@dataclass
class EmbeddedClips:
    """What discovery needs of clips.

    Attributes:
        embeds (`np.ndarray` of shape `(clips, width)`): The two parts of the space, each of unit length.
        probabilities (`np.ndarray` of shape `(clips, num_labels)`): Of the known intents.
        unknown (`np.ndarray` of shape `(clips,)`, bool): Which clips the detector calls unknown; all without a detector.
        texts (`list[str]`): What is said.
    """

    embeds: np.ndarray
    probabilities: np.ndarray
    unknown: np.ndarray
    texts: list[str]


@torch.no_grad()
def embed_clips(pipe: IntentRecognitionPipeline, clips: Sequence[Any], batch_size: int = 32) -> EmbeddedClips:
    """Embed clips for [`discover_intents`].

    Args:
        pipe ([`IntentRecognitionPipeline`]): The model, its processor and its detector.
        clips (`Sequence`): Inputs of the pipeline; of a long one, the first window counts.
        batch_size (`int`, *optional*, defaults to 32): Clips at a time.

    Raises:
        ValueError: If a clip cannot be read.
    """
    parts: list[list[Any]] = [[], [], [], []]
    loader = DataLoader(clips, batch_size, collate_fn=lambda group: [pipe.preprocess(clip) for clip in group])
    for examples in logging.tqdm(loader, desc="Embedding", unit="batch"):
        batch = pipe.processor.collate(pipe.processor.encode(examples, pipe.device)).to(pipe.device, pipe.model.dtype)
        outputs = pipe.model(**batch)
        has_threshold = pipe.detector is not None and pipe.detector.threshold is not None
        known = pipe.detector.predict(outputs) if has_threshold else torch.zeros(len(examples), dtype=torch.bool)
        states = _middle_states(pipe.model, batch)
        embeds = [torch.nn.functional.normalize(part.float(), dim=-1) for part in (outputs.multimodal_embeds, states)]
        parts[0].append(torch.cat(embeds, dim=-1).cpu().numpy())
        parts[1].append(outputs.logits.float().softmax(-1).cpu().numpy())
        parts[2].append(~known.cpu().numpy())
        parts[3] += [example["text"] or "" for example in examples]
    return EmbeddedClips(*(np.concatenate(part) for part in parts[:3]), parts[3])


def _middle_states(model: Any, batch: dict[str, torch.Tensor]):
    """Mean states of the utterances in the layer at `LAYER_DEPTH`, of shape `(clips, width)`; zero without text."""
    mask = batch.get("utterance_mask", batch["attention_mask"]).unsqueeze(-1).to(model.dtype)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    layers = model.amess.text_encoder(**inputs, output_hidden_states=True, return_dict=True).hidden_states
    states = layers[round(LAYER_DEPTH * (len(layers) - 1))]
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def discover_intents(
    pipe: IntentRecognitionPipeline,
    clips: Sequence[Any] | EmbeddedClips,
    num_groups: int | None = None,
    unknown_only: bool = True,
    describe: Callable[[list[str]], tuple[str, list[str]] | None] | None = None,
    seed: int = 0,
) -> list[IntentGroup]:
    """Find groups of clips that could be new intents.

    Args:
        pipe ([`IntentRecognitionPipeline`]): The model, its processor and its detector.
        clips (`Sequence` or [`EmbeddedClips`]): Inputs of the pipeline, or what [`embed_clips`] made of them.
        num_groups (`int`, *optional*): Number of groups; estimated if not given.
        unknown_only (`bool`, *optional*, defaults to `True`): Group only the clips that the detector calls unknown.
        describe (`Callable`, *optional*):
            From the central utterances of a group to a name and sentences, or to `None`; by default its characteristic
            words.
        seed (`int`, *optional*, defaults to 0): Seed of k-means.

    Returns:
        `list[IntentGroup]`: The groups, the largest first; none where fewer than two clips are left.

    Raises:
        ValueError: If a clip cannot be read, or there are fewer clips than `num_groups`.

    Example:
    ```python
    >>> groups = discover_intents(pipe, [{"text": "..."}, ...])
    >>> pipe(clip, extra_labels={groups[0].name: groups[0].descriptions})
    ```
    """
    found = clips if isinstance(clips, EmbeddedClips) else embed_clips(pipe, clips)
    places = np.flatnonzero(found.unknown) if unknown_only else np.arange(len(found.texts))
    if num_groups is not None and not 1 <= num_groups <= len(places):
        raise ValueError(f"`num_groups` is {num_groups}; it must be at least 1 and at most the {len(places)} clips")
    if len(places) < 2:
        return []
    points = reduce_embeds(found.embeds[places])
    groups = assign_groups(points, num_groups, seed)
    words = _characteristic_words([found.texts[place] for place in places], groups)
    names = pipe.model.config.id2label
    made = []
    for number, group in enumerate(np.unique(groups)):
        rows = np.flatnonzero(groups == group)
        center = points[rows].mean(0)
        cosines = points[rows] @ center / max(np.linalg.norm(center), 1e-12)
        order = places[rows[np.argsort(-cosines, kind="stable")]]
        utterances = list(dict.fromkeys(found.texts[place] for place in order if found.texts[place].strip()))[:CENTRAL]
        told = describe(utterances) if describe and utterances else None
        name, sentences = told or _suggestion(words[number], number)
        nearest = names[int(found.probabilities[order].mean(0).argmax())]
        made.append(IntentGroup(order.tolist(), utterances, float(cosines.mean()), nearest, name, sentences))
    made.sort(key=lambda group: (-len(group.clips), group.clips))
    return made


def reduce_embeds(embeds: np.ndarray) -> np.ndarray:
    """Center the embeddings, and keep their principal components at unit length: `(clips, at most NUM_COMPONENTS)`."""
    from sklearn.decomposition import PCA

    components = min(NUM_COMPONENTS, *embeds.shape)
    with np.errstate(invalid="ignore"):  # clips that are all the same have no variance to share
        points = PCA(components, random_state=0).fit_transform(embeds.astype(np.float64))
    return points / np.linalg.norm(points, axis=-1, keepdims=True).clip(min=1e-12)


def assign_groups(points: np.ndarray, num_groups: int | None = None, seed: int = 0) -> np.ndarray:
    """Return the group of each clip.

    Without `num_groups` it is the number with the best silhouette (Rousseeuw, J. Comput. Appl. Math. 1987) after the first
    dip of the curve: very few groups always score high.

    Args:
        points (`np.ndarray` of shape `(clips, width)`): What [`reduce_embeds`] gives.
        num_groups (`int`, *optional*): Number of groups.
        seed (`int`, *optional*, defaults to 0): Seed of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    different = len(np.unique(points.round(9), axis=0))

    def group(number: int):
        return KMeans(min(number, different), n_init=10, random_state=seed).fit_predict(points)

    numbers = [number for number in GROUP_NUMBERS if number <= min(len(points) / CLIPS_OF_A_GROUP, different)]
    if num_groups is not None or len(numbers) < 2:
        return group(num_groups or 1)
    compared = np.random.default_rng(seed).permutation(len(points))[:CLIPS_COMPARED]
    found = {number: group(number) for number in logging.tqdm(numbers, desc="Numbers of groups", leave=False)}
    scores = np.array([silhouette_score(points[compared], found[number][compared]) for number in numbers])
    dips = np.flatnonzero(np.diff(scores) > 0)
    first = dips[0] if len(dips) else 0
    return found[numbers[first + int(scores[first:].argmax())]]


def _characteristic_words(texts: list[str], groups: np.ndarray):
    """For each group its words with the highest class-based TF-IDF (Grootendorst, arXiv 2203.05794)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = [
        " ".join(text for text, one in zip(texts, groups, strict=True) if one == g) for g in np.unique(groups)
    ]
    for stop_words in ("english", None):
        vectorizer = TfidfVectorizer(stop_words=stop_words, sublinear_tf=True)
        try:
            weights = vectorizer.fit_transform(documents).toarray()
        except ValueError:  # no word is left
            continue
        names = vectorizer.get_feature_names_out()
        return [[names[i] for i in np.argsort(-row, kind="stable")[:WORDS] if row[i] > 0] for row in weights]
    return [[] for _ in documents]


def _suggestion(words: list[str], group: int):
    """A name and a sentence from a group's characteristic words."""
    if not words:
        return f"group {group + 1}", ["The speaker says nothing that can be told in words."]
    return " / ".join(words[:2]), [f"The speaker says something with words such as {', '.join(words)}."]
