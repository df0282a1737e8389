"""What a saved model asks of a run: its labels, the features and the context that it was trained with."""

from contextlib import contextmanager
from dataclasses import replace

from datasets import DatasetDict
from transformers import AutoConfig
from transformers.utils import logging

from ..configuration_amess import AMESSConfig
from ..constants_amess import FEATURE_MODALITIES
from ..data.labels import LABELS
from .tasks import with_labels


logger = logging.get_logger(__name__)


@contextmanager
def loading(name):
    """While `name` is loaded: a `ValueError` that names it, of which transformers' own message may say nothing."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name} is no saved model that can be loaded: {' '.join(str(error).split())}") from error


def as_model_was_trained(model_args, data_args):
    """
    The data arguments, with the encoders and the turns of context that a saved model was trained with, unless ready
    features or another number are given.

    Raises:
        `ValueError`: if `--model_name_or_path` is no A-MESS model.
    """
    if model_args.model_name_or_path is None:
        return data_args
    with loading(model_args.model_name_or_path):
        config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    if not isinstance(config, AMESSConfig):
        raise ValueError(
            f"{model_args.model_name_or_path} is a {config.model_type} model; `--model_name_or_path` takes a saved A-MESS "
            "model, and `--text_model_name_or_path` a text encoder to train one from"
        )
    chosen = {
        f"{modality}_encoder": getattr(config, f"{modality}_encoder")
        for modality in FEATURE_MODALITIES
        if getattr(data_args, f"{modality}_encoder") is None and getattr(data_args, f"{modality}_features") is None
    }
    if data_args.context_turns is None:
        chosen["context_turns"] = config.context_turns
    return replace(data_args, **chosen)


def in_labels_of(config, task, dataset_name):
    """
    The task with the label ids of a saved model, which may know more labels: those of a data set that it was trained on
    together with this one, or one that no clip of a folder happens to have.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        task ([`TaskData`]): The clips.
        dataset_name (`str`): A data set with labels of its own has its clips scored against these alone.

    Raises:
        `ValueError`: if the model does not know a label.
    """
    names = [config.id2label[index] for index in range(config.num_labels)]
    if names == task.labels:
        return task
    unknown = [label for label in task.labels if label not in names]
    if unknown:
        raise ValueError(
            f"the model does not know {', '.join(unknown)}; its labels are {', '.join(names)}. Use a data set that it was "
            "trained on, or describe the intents with `model.set_label_descriptions`"
        )
    ids = [names.index(label) for label in task.labels]
    candidates = task.candidates or ({dataset_name: range(len(ids))} if dataset_name in LABELS else None)
    splits = {}
    for name, split in task.splits.items():
        labels = [ids[label] if label >= 0 else -1 for label in split["label"]]
        new = {"dataset": [dataset_name] * len(split)} if candidates and "dataset" not in split.column_names else {}
        splits[name] = with_labels(split, labels, **new)
    if candidates is not None:
        candidates = {name: [ids[index] for index in known] for name, known in candidates.items()}
    return replace(task, splits=DatasetDict(splits), labels=names, candidates=candidates)


# Fields that the shapes of the weights depend on.
SHAPES = ("fusion_type", "num_fusion_layers", "hidden_size", "projection_dim")


def config_of_saved_model(model_args):
    """
    A saved model's configuration, with the fields that were given.

    Raises:
        `ValueError`: if a field is another than the saved weights fit.
    """
    config = AMESSConfig.from_pretrained(model_args.model_name_or_path)
    for name, value in model_args.config_fields().items():
        if name in SHAPES and value != getattr(config, name):
            raise ValueError(
                f"`--{name} {value}`: the saved model has {getattr(config, name)}, and its weights fit nothing else; "
                "train a new one with `--text_model_name_or_path`"
            )
        setattr(config, name, value)
    config.validate()
    return config


def check_features(config, data_args, task):
    """
    See that the clips have the features that a saved model was trained with; warn of a modality that they lack.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        data_args ([`DataArguments`]): `audio_encoder` and `video_encoder`, as far as they are given.
        task ([`TaskData`]): The clips.

    Raises:
        `ValueError`: if an encoder is another, or features have another width.
    """
    for name in ("audio_encoder", "video_encoder"):
        given, known = getattr(data_args, name), getattr(config, name)
        if given is not None and given != known:
            raise ValueError(f"`--{name} {given}` makes other features than the model was trained with ({known})")
    sizes = task.feature_sizes()
    for modality in FEATURE_MODALITIES:
        name = f"{modality}_feature_size"
        known, given = getattr(config, name), sizes.get(name)
        if known is not None and given is None:
            logger.warning(f"the model takes {modality}, and the data has none: it answers without")
        elif known is not None and given != known:
            raise ValueError(
                f"the data's {modality} features are {given} wide, but the model was made for {known}; "
                f"choose those that it was trained with by `--{modality}_features`"
            )


__all__ = ["as_model_was_trained", "check_features", "config_of_saved_model", "in_labels_of", "loading"]
