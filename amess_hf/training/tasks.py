"""The clips that a run works on, with the label set that they share: one data set or several, all intents or some."""

import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace

from datasets import ClassLabel, DatasetDict, Value, concatenate_datasets, load_dataset
from transformers.utils import logging

from ..constants_amess import FEATURE_MODALITIES
from ..data.clip_features import add_clip_features
from ..data.dataset_files import NO_FEATURES
from ..data.descriptions import load_label_descriptions
from ..data.labels import LABELS
from ..data.mintrec import load_mintrec, with_feature_arrays


logger = logging.get_logger(__name__)


@dataclass
class TaskData:
    """
    Splits with the label set that they share.

    Args:
        splits (`DatasetDict`): `train`, `validation`, `test`, as far as there are.
        labels (`list[str]`): Names of the label ids.
        label_descriptions (`dict[str, list[str]]`, *optional*): Sentences for each label.
        candidates (`dict[str, list[int]]`, *optional*): Ids that a clip of each data set may have, where sets differ.
    """

    splits: DatasetDict
    labels: list[str]
    label_descriptions: dict[str, list[str]] | None
    candidates: dict[str, list[int]] | None = None

    def feature_sizes(self):
        """Widths of the features: `audio_feature_size` and `video_feature_size`, as far as there are."""
        split = next(iter(self.splits.values()))
        sizes = {}
        for modality in FEATURE_MODALITIES:
            name = f"{modality}_features"
            if name in split.column_names:
                sizes[f"{modality}_feature_size"] = feature_width(split, name)
        return sizes


def feature_width(split, name):
    """Width of the frames in column `name` of a split."""
    shape = getattr(split.features[name], "shape", None)
    return shape[-1] if shape else next(len(row[name][0]) for row in split if len(row[name]))


def with_labels(split, ids, **columns):
    """`split` with the label ids `ids` (one for each row) as plain integers, and further `columns`."""
    shown = split.format
    # Without a format: where rows were selected, adding a column copies the others, which must stay as they are stored.
    split = split.with_format(None).remove_columns("label").add_column("label", ids, feature=Value("int64"))
    for name, values in columns.items():
        split = split.add_column(name, values)
    if shown["type"] is None:
        return split
    return split.with_format(
        shown["type"], columns=shown["columns"], output_all_columns=True, **shown["format_kwargs"]
    )


def load_task(data_args, seed):
    """
    Load what `data_args` names: one data set, or several with one label set.

    Args:
        data_args ([`DataArguments`]): The arguments.
        seed (`int`): Seed of the draw of `train_clips_per_intent`.

    Raises:
        `ValueError`: if names and folders do not match, or an intent is not known.
    """
    tasks = {name: _load_one(name, folder, data_args) for name, folder in data_folders(data_args).items()}
    task = next(iter(tasks.values())) if len(tasks) == 1 else merge_tasks(tasks)
    if data_args.train_clips_per_intent is not None:
        if "train" not in task.splits:
            raise ValueError(
                f"`--train_clips_per_intent` needs the split train, but the data has only {', '.join(task.splits)}"
            )
        task.splits["train"] = few_clips(task.splits["train"], data_args.train_clips_per_intent, seed)
    return task


def data_folders(data_args):
    """
    The data sets that `data_args` names, each with its folder, or with `None` for one on the Hub.

    Raises:
        `ValueError`: if names and folders do not match, or a name stands twice.
    """
    names = [name.strip() for name in data_args.dataset_name.split(",")]
    folders = [folder.strip() for folder in (data_args.data_dir or "").split(",") if folder.strip()]
    local = [name for name in names if not is_on_hub(name)]
    if len(set(names)) < len(names):
        raise ValueError(
            f"`--dataset_name {data_args.dataset_name}` names a data set twice; put its clips into one folder"
        )
    if len(local) != len(folders):
        raise ValueError(
            f"`--dataset_name` names {len(local)} data set(s) of this machine and `--data_dir` {len(folders)} folder(s); "
            "give one folder for each (`organization/name` is on the Hub and takes none)"
        )
    places = dict(zip(local, folders, strict=True))
    return {name: places.get(name) for name in names}


def is_on_hub(name):
    """Whether a data set's name is that of a repository on the Hub: `organization/name`."""
    return "/" in name


def _load_from_hub(name):
    splits = with_feature_arrays(load_dataset(name))
    for split in splits.values():
        missing = {"id", "text", "label"} - set(split.column_names)
        if missing or not isinstance(split.features["label"], ClassLabel):
            wanted = f"it lacks {', '.join(sorted(missing))}" if missing else "its `label` is no `ClassLabel`"
            raise ValueError(f"{name} is no data set that `load_mintrec(...).push_to_hub` wrote: {wanted}")
    return splits


def _load_one(name, folder, data_args):
    if is_on_hub(name):
        splits = _load_from_hub(name)
        labels = next(iter(splits.values())).features["label"].names
        return TaskData(splits, labels, task_descriptions(name, labels, data_args))
    splits = load_mintrec(
        folder,
        name=name,
        scope="all" if data_args.out_of_scope_clips else "in",
        label_granularity=data_args.label_granularity,
        audio_features=NO_FEATURES if data_args.audio_encoder else data_args.audio_features,
        video_features=NO_FEATURES if data_args.video_encoder else data_args.video_features,
        context_turns=data_args.context_turns or 0,
        allow_missing_features=data_args.allow_missing_features,
    )
    splits = add_clip_features(splits, data_args.audio_encoder, data_args.video_encoder, folder)
    labels = next(iter(splits.values())).features["label"].names
    return TaskData(splits, labels, task_descriptions(name, labels, data_args))


def task_descriptions(name, labels, data_args):
    """
    Descriptions of `labels`: from the file that was named, or those shipped for the data set.

    Raises:
        `ValueError`: if a label has none.
    """
    source = data_args.label_descriptions
    if source is None:
        if name not in LABELS or data_args.label_granularity != "fine":
            logger.warning("no label descriptions: semantic synchronization is off (give `--label_descriptions FILE`)")
            return None
        source = name
    descriptions = {label.casefold(): sentences for label, sentences in load_label_descriptions(source).items()}
    missing = [label for label in labels if label.casefold() not in descriptions]
    if missing:
        raise ValueError(f"{source} has no description of {', '.join(missing)}; add at least one sentence for each")
    return {label: descriptions[label.casefold()] for label in labels}


def merge_tasks(tasks):
    """
    Several data sets as one, with the union of their labels. A training clip whose words occur in another set's
    validation or test split is left out, and counted.

    Args:
        tasks (`dict[str, TaskData]`): The data sets by name.
    """
    labels = list(dict.fromkeys(label for task in tasks.values() for label in task.labels))
    index = {label: position for position, label in enumerate(labels)}
    splits = defaultdict(list)
    for name, task in tasks.items():
        for split_name, split in task.splits.items():
            ids = [index[task.labels[label]] if label >= 0 else -1 for label in split["label"]]
            split = with_labels(split, ids, dataset=[name] * len(split))
            if split_name == "train":
                split = _without_words_of(split, name, tasks)
            splits[split_name].append(split)
    _check_widths(tasks)
    shared = set.intersection(*[set(split.column_names) for group in splits.values() for split in group])
    merged = {
        split_name: concatenate_datasets([split.select_columns(sorted(shared)) for split in group])
        for split_name, group in splits.items()
    }
    descriptions = {}
    for task in tasks.values():
        for label, sentences in (task.label_descriptions or {}).items():
            descriptions[label] = list(dict.fromkeys(descriptions.get(label, []) + sentences))
    candidates = {name: [index[label] for label in task.labels] for name, task in tasks.items()}
    complete = descriptions if set(descriptions) == set(labels) else None
    return TaskData(DatasetDict(merged), labels, complete, candidates)


def _check_widths(tasks):
    sizes = {name: task.feature_sizes() for name, task in tasks.items()}
    for field in ("audio_feature_size", "video_feature_size"):
        widths = {name: size[field] for name, size in sizes.items() if field in size}
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"the data sets have features of different `{field}`: {widths}; leave them out "
                f"(`--{field.split('_')[0]}_features none`), or choose features of the same encoder"
            )


def _words(text):
    """The words of a text, whatever its case and punctuation; a text without words stands for itself."""
    return " ".join(re.findall(r"\w+", re.sub("['’]", "", text.lower()))) or text.strip()


def _without_words_of(split, name, tasks):
    """`split` without the clips whose words occur in what another data set is evaluated on."""
    evaluated = {
        _words(text)
        for other, task in tasks.items()
        if other != name
        for split_name, other_split in task.splits.items()
        if split_name != "train"
        for text in other_split["text"]
    }
    kept = [row for row, text in enumerate(split["text"]) if _words(text) not in evaluated]
    logger.warning(
        f"{name}: {len(split) - len(kept)} training clips left out, whose words another data set is scored on"
    )
    return split.select(kept)


def few_clips(split, clips_per_intent, seed):
    """`clips_per_intent` clips of each intent, drawn with `seed`, in the order of `split`, and all out-of-scope clips."""
    rows = defaultdict(list)
    for row, label in enumerate(split["label"]):
        rows[label].append(row)
    draw = random.Random(seed)
    kept = rows.pop(-1, [])
    for group in rows.values():
        kept = kept + draw.sample(group, min(clips_per_intent, len(group)))
    return split.select(sorted(kept))


def hold_out(task, intents):
    """
    The task without some intents: the label set and the training and validation clips of the others.

    Args:
        task ([`TaskData`]): All intents.
        intents (`list[str]`): The names to leave out, case not regarded.

    Raises:
        `ValueError`: if a name is not among the labels.
    """
    wanted = {intent.casefold() for intent in intents}
    unknown = wanted - {label.casefold() for label in task.labels}
    if unknown:
        raise ValueError(f"`--hold_out_intents` names {sorted(unknown)}; the intents are {', '.join(task.labels)}")
    seen = [label for label in task.labels if label.casefold() not in wanted]
    index = {task.labels.index(label): position for position, label in enumerate(seen)}
    splits = {}
    for name, split in task.splits.items():
        # Clips that are out of scope from the start stay, for outlier exposure and detection.
        kept = split.select([row for row, label in enumerate(split["label"]) if label < 0 or label in index])
        splits[name] = with_labels(kept, [index.get(label, -1) for label in kept["label"]])
    candidates = task.candidates and {
        name: [index[label] for label in known if label in index] for name, known in task.candidates.items()
    }
    descriptions = task.label_descriptions and {label: task.label_descriptions[label] for label in seen}
    return replace(
        task, splits=DatasetDict(splits), labels=seen, label_descriptions=descriptions, candidates=candidates
    )


__all__ = [
    "TaskData",
    "data_folders",
    "few_clips",
    "hold_out",
    "is_on_hub",
    "load_task",
    "merge_tasks",
    "task_descriptions",
    "with_labels",
]
