"""Label sets of data sets: merge several, leave out intents, keep a few clips of each, use a model's label ids."""

import random
import re
from collections import defaultdict
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from transformers.utils import logging

from amess_hf.configuration_amess import FEATURE_MODALITIES, OUT_OF_SCOPE_ID, AMESSConfig
from amess_hf.data.errors import require
from amess_hf.datasets_amess import DATASETS, feature_sizes, label_names


logger = logging.get_logger(__name__)


def labels_of(dataset: DatasetDict) -> list[str]:
    """Return the label names that the splits of `dataset` share, in the order of their ids."""
    return label_names(next(iter(dataset.values())))


def with_labels(split: Dataset, ids: list[int], names: list[str], **columns: list[Any]) -> Dataset:
    """Return `split` with the label ids `ids`, one for each row, of the labels `names`, and with further columns.

    Args:
        split (`Dataset`): The clips; its format is kept.
        ids (`list[int]`): A label id for each row, -1 for out of scope.
        names (`list[str]`): The names of the label ids.
        columns (`list`): Values of columns to add or replace, one for each row.
    """
    shown = split.format
    # Without a format: if rows were selected, adding a column copies the others, which must stay as stored.
    split = split.with_format(None).remove_columns(
        ["label", *(name for name in columns if name in split.column_names)]
    )
    split = split.add_column("label", ids, feature=ClassLabel(names=names))
    for name, values in columns.items():
        split = split.add_column(name, values)
    if shown["type"] is None:
        return split
    return split.with_format(
        shown["type"], columns=shown["columns"], output_all_columns=True, **shown["format_kwargs"]
    )


def _in_labels(split: Dataset, names: list[str], dataset_name: str | None = None) -> Dataset:
    """Return `split` with the label ids of `names`.

    The labels that each clip may have follow; a clip of `dataset_name`, where it is given, may have the labels of `split`.
    """
    before = label_names(split)
    new_ids = {before.index(name): index for index, name in enumerate(names) if name in before}
    ids = [new_ids.get(label, OUT_OF_SCOPE_ID) for label in split["label"]]
    columns = {}
    if "candidate_mask" in split.column_names:
        old_ids = {index: old for old, index in new_ids.items()}
        columns["candidate_mask"] = [
            [index in old_ids and mask[old_ids[index]] for index in range(len(names))]
            for mask in split["candidate_mask"]
        ]
    elif dataset_name is not None:
        columns["dataset"] = [dataset_name] * len(split)
        columns["candidate_mask"] = [[name in before for name in names]] * len(split)
    return with_labels(split, ids, names, **columns)


def merge_datasets(datasets: dict[str, DatasetDict]) -> DatasetDict:
    """Merge several data sets into one, with the union of their labels.

    A training clip whose words occur in another set's validation or test split is left out, and counted in the log.

    Args:
        datasets (`dict[str, DatasetDict]`): The data sets by name.

    Returns:
        `DatasetDict`: The columns that all of them have, and `dataset` (the name of the clip's data set) and
        `candidate_mask` (for each label whether the clip's data set has it), which the model's `forward` takes.

    Raises:
        ValueError: If features of one modality differ in width between the sets.
    """
    names = list(dict.fromkeys(label for dataset in datasets.values() for label in labels_of(dataset)))
    _check_widths(datasets)
    splits = defaultdict(list)
    for name, dataset in datasets.items():
        for split_name, split in dataset.items():
            if split_name == "train":
                split = _without_words_of(split, name, datasets)
            splits[split_name].append(_in_labels(split, names, name))
    shared = sorted(set.intersection(*[set(split.column_names) for group in splits.values() for split in group]))
    return DatasetDict(
        {
            split_name: concatenate_datasets([split.select_columns(shared) for split in group])
            for split_name, group in splits.items()
        }
    )


def _check_widths(datasets: dict[str, DatasetDict]) -> None:
    sizes = {name: feature_sizes(next(iter(dataset.values()))) for name, dataset in datasets.items()}
    for modality in FEATURE_MODALITIES:
        widths = {name: size[modality] for name, size in sizes.items() if modality in size}
        found = f"the data sets have features of different widths: {modality} {widths}"
        next_step = f"leave them out (`--{modality}_features none`), or choose features of the same encoder"
        require(len(set(widths.values())) < 2, f"{found}; {next_step}")


def words_of(text: str) -> str:
    """The words of a text, ignoring case and punctuation; a text without words stands for itself."""
    return " ".join(re.findall(r"\w+", re.sub("['’]", "", text.lower()))) or text.strip()


def _without_words_of(split: Dataset, name: str, datasets: dict[str, DatasetDict]) -> Dataset:
    """`split` without the clips whose words occur in what another data set is evaluated on."""
    others = [dataset for other, dataset in datasets.items() if other != name]
    scored = [split for dataset in others for split_name, split in dataset.items() if split_name != "train"]
    words = {words_of(text) for other_split in scored for text in other_split["text"]}
    kept = [row for row, text in enumerate(split["text"]) if words_of(text) not in words]
    logger.warning(
        f"{name}: {len(split) - len(kept)} training clips left out, because another data set is scored on the same words"
    )
    return split.select(kept)


def few_clips(split: Dataset, clips_per_intent: int, seed: int) -> Dataset:
    """Return `clips_per_intent` clips of each intent, drawn with `seed`, and all out-of-scope clips, in the order of `split`."""
    rows = defaultdict(list)
    for row, label in enumerate(split["label"]):
        rows[label].append(row)
    draw = random.Random(seed)
    kept = rows.pop(OUT_OF_SCOPE_ID, [])
    for group in rows.values():
        kept = kept + draw.sample(group, min(clips_per_intent, len(group)))
    return split.select(sorted(kept))


def intents_to_hold_out(names: str, labels: list[str]) -> list[str]:
    """Return the intents that `--hold_out_intents` names.

    Args:
        names (`str`):
            Comma-separated names, or `fold:K/N`: the K-th of N folds, from 1 on, which has every N-th label from the
            K-th on, so that each intent is held out in exactly one fold.
        labels (`list[str]`): All intents, in the order of their ids.

    Raises:
        ValueError: If there is no such fold.
    """
    if not names.startswith("fold:"):
        return [name.strip() for name in names.split(",") if name.strip()]
    found = re.fullmatch(r"fold:(\d+)/(\d+)", names)
    fold, folds = map(int, found.groups()) if found else (0, 0)
    known = f"a fold is fold:K/N with K from 1 to N and N from 2 to {len(labels)}, the number of intents"
    require(1 <= fold <= folds and 2 <= folds <= len(labels), f"`--hold_out_intents` is {names!r}; {known}")
    return labels[fold - 1 :: folds]


def hold_out_intents(dataset: DatasetDict, intents: list[str]) -> DatasetDict:
    """Return the data set without some intents: the label set, and the clips of the others.

    Out-of-scope clips stay, for outlier exposure and detection.

    Args:
        dataset (`DatasetDict`): All intents.
        intents (`list[str]`): The names to leave out, matched without regard to case.

    Raises:
        ValueError: If a name is not among the labels.
    """
    labels, wanted = labels_of(dataset), {intent.casefold() for intent in intents}
    unknown = sorted(wanted - {label.casefold() for label in labels})
    require(not unknown, f"`--hold_out_intents` names {unknown}; the intents are {', '.join(labels)}")
    names = [label for label in labels if label.casefold() not in wanted]
    kept = set(map(labels.index, names))
    splits = {
        name: split.select([row for row, label in enumerate(split["label"]) if label < 0 or label in kept])
        for name, split in dataset.items()
    }
    return DatasetDict({name: _in_labels(split, names) for name, split in splits.items()})


def in_labels_of(config: AMESSConfig, dataset: DatasetDict, dataset_name: str) -> DatasetDict:
    """Return the data set with the label ids of a saved model, which may have more labels.

    These are the labels of a data set that the model was trained on together with this one, or labels that no clip of a
    folder happens to have.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        dataset (`DatasetDict`): The clips.
        dataset_name (`str`): The clips of a data set with an official label set are scored against these labels only.

    Raises:
        ValueError: If the model does not know a label.
    """
    names, labels = [config.id2label[index] for index in range(config.num_labels)], labels_of(dataset)
    if names == labels:
        return dataset
    unknown = ", ".join(label for label in labels if label not in names)
    next_step = "Use a data set that it was trained on, or describe the intents with `model.set_label_descriptions`"
    require(not unknown, f"the model does not know {unknown}; its labels are {', '.join(names)}. {next_step}")
    own = dataset_name if dataset_name in DATASETS else None
    return DatasetDict({name: _in_labels(split, names, own) for name, split in dataset.items()})
