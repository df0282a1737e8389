"""The model card: README.md of a saved model, with metrics from the run that trained it."""

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..datasets_amess import DATASETS
from ..version import __version__
from .metrics import CLASSIFICATION_METRICS, OOS_METRICS, OPEN_METRICS
from .tables import escape_markdown, percent


_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model_card_template.md.jinja")
_TASK = {"task_type": "video-classification", "task_name": "Multimodal Intent Recognition"}
_METADATA = {
    "library_name": "transformers",
    "pipeline_tag": _TASK["task_type"],
    "tags": ["amess", "multimodal", "intent-recognition", "custom_code"],
}
_SPLITS = {"eval": "validation", "test": "test"}
# What a card calls a model that is not on a Hub: the folder that contains the card.
_THIS_FOLDER = "."
_LOCAL = " (a local folder)"
_IN_THIS_FOLDER = "Run it in the folder that this file is in.\n"
# A modality carries nearly all of the evidence if it alone is nearer than this to the accuracy with all.
_NEARLY_ALL = 0.03
_LIBRARIES = ("transformers", "torch", "datasets", "tokenizers")
_HYPERPARAMETERS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("head_learning_rate", "layer_decay", "weight_decay", "head_weight_decay", "warmup_steps", "lr_scheduler_type"),
    *("optim", "weight_averaging", "bf16", "fp16", "seed"),
)
# Metric in `all_results.json`, without its split -> name.
_METRICS = {
    **CLASSIFICATION_METRICS,
    **{f"oos_{key}": name for key, name in OOS_METRICS.items()},
    **{f"open_{key}": f"{name} (open)" for key, name in OPEN_METRICS.items()},
}

_PAPER = """\
@article{shen2025amess,
  title   = {{A-MESS}: Anchor-based Multimodal Embedding with Semantic Synchronization for Multimodal Intent Recognition},
  author  = {Shen, Yaomin and Lin, Xiaojian and Fan, Wei},
  journal = {arXiv preprint arXiv:2503.19474},
  year    = {2025}
}"""


def create_model_card(
    model: Any,
    results: Mapping[str, Any],
    dataset_name: str | None = None,
    model_id: str | None = None,
    detector: Any = None,
    report: Mapping | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    training_arguments: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Create the model card of a trained model.

    Args:
        model ([`AMESSForIntentClassification`]): The model; its configuration has the intents and their descriptions.
        results (`dict`):
            The run's metrics as in `all_results.json`, e.g. `eval_accuracy`, `test_weighted_f1`, in [0, 1]. Every metric
            of the card's `model-index` comes from here; an empty `dict` gives a card without metrics.
        dataset_name (`str`, *optional*):
            What it was trained on: one or more of `load_mintrec`'s names, separated by commas, or another name.
        model_id (`str`, *optional*):
            Repository on the Hub, e.g. `"org/amess-mintrec2"`; without it the snippets are for the card's own folder (see
            [`name_repository`]).
        detector ([`OutOfScopeDetector`], *optional*): The one that is saved with the model.
        report (`dict`, *optional*):
            What `amess_hf.evaluation.report` returned, for the modality table and the detection table.
        license (`str`, *optional*):
            The model's license, as the Hub names it, e.g. `"apache-2.0"`; by default the one of the annotations, where
            they are share-alike (`cc-by-nc-sa-4.0` of MIntRec2.0).
        language (`str` or `list[str]`, *optional*):
            Languages that are spoken in the clips, as the Hub names them; by default English for MIntRec and MIntRec2.0.
        training_arguments (`dict`, *optional*): As in `training_args.json`, for the table of hyperparameters.

    Returns:
        `huggingface_hub.ModelCard`: The card; `card.save(os.path.join(folder, "README.md"))` writes it. In its
        `model-index` a metric's `type` is its name in `results` without the split, and `dataset.split` is the split.

    Raises:
        ImportError: If jinja2 is missing (the `report` extra).
    """
    # The folder's name only: its path is private.
    datasets = [os.path.basename(name.strip()) for name in (dataset_name or "").split(",") if name.strip()]
    known = [DATASETS[name] for name in datasets if name in DATASETS]
    dataset_title = " and ".join(DATASETS[name].title if name in DATASETS else name for name in datasets)
    encoders = _encoders(model.config)
    hub_encoders = [name for name in encoders if not name.endswith(_LOCAL)]
    measured = {split: _metrics_of(results, prefix) for prefix, split in _SPLITS.items()}
    card_data = ModelCardData(
        **_METADATA,
        language=language or ("en" if known else None),
        license=license or next((spec.license for spec in known if spec.license), None),
        base_model=hub_encoders[0] if len(hub_encoders) == 1 else hub_encoders or None,
        metrics=["accuracy", "f1"] if results else None,
        model_name=_title(model_id) or (f"A-MESS on {dataset_title}" if datasets else "A-MESS"),
        eval_results=_eval_results(measured, dataset_title or "unnamed", datasets) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=_TEMPLATE,
        escape=escape_markdown,
        percent=percent,
        config=model.config,
        data=card_data,
        model_id=model_id or _THIS_FOLDER,
        where_to_run="" if model_id else _IN_THIS_FOLDER,
        inputs=_inputs(model.config),
        encoders=encoders,
        dataset_title=escape_markdown(dataset_title),
        datasets=known,
        citations=[_PAPER, *(spec.citation for spec in known)],
        detector=detector,
        hyperparameters=_hyperparameters(model.config, training_arguments) if training_arguments else {},
        versions={"amess_hf": __version__, **{name: version(name) for name in _LIBRARIES}},
        evidence=_evidence(report or {}),
        metrics={key: name for key, name in _METRICS.items() if any(key in values for values in measured.values())},
        measured={split: values for split, values in measured.items() if values},
        report=report or {},
        detection_metrics=OOS_METRICS,
    )


def name_repository(path: str | os.PathLike, repo_id: str) -> None:
    """Put a repository's name into the snippets, title and metadata of a card that [`create_model_card`] made.

    The rest of the card is unchanged; a card without such snippets is left alone.

    Args:
        path (`str` or `os.PathLike`): The card, e.g. `README.md` of a run's output folder.
        repo_id (`str`): The repository on the Hub, `"organization/name"`.
    """
    loads_model = r'(pipeline\("intent-recognition", model=|from_pretrained\()"([^"\n]*)"'
    if not re.search(loads_model, Path(path).read_text(encoding="utf-8")):
        return
    card = ModelCard.load(path)
    old_id, old_name = re.search(loads_model, card.text)[2], card.data.model_name or ""
    card.text = re.sub(loads_model, rf'\1"{repo_id}"', card.text).replace(_IN_THIS_FOLDER, "")
    # A name that its author has given stays.
    if old_name.startswith("A-MESS") if old_id == _THIS_FOLDER else old_name == _title(old_id):
        card.data.model_name = _title(repo_id)
        card.text = card.text.replace(f"\n# {escape_markdown(old_name)}\n", f"\n# {_title(repo_id)}\n", 1)
    card.save(path)


def _title(model_id: str | None):
    return os.path.basename((model_id or "").rstrip("/"))


def _encoders(config: Any):
    """Return the models that the model was built from; of one in a local folder the folder's name, for its path is private."""
    names = [getattr(config.text_config, "_name_or_path", None) or ""]
    # Front ends that are part of this package have no organization in their names.
    names += [features.encoder for features in config.feature_configs.values() if "/" in (features.encoder or "")]
    on_hub = [bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)) and not os.path.exists(name) for name in names]
    return [
        name if known else escape_markdown(os.path.basename(name.rstrip("/"))) + _LOCAL
        for name, known in zip(names, on_hub, strict=True)
        if name
    ]


def _inputs(config: Any):
    """Return the further inputs of the snippet: what precedes `"text": ...` in the dictionary."""
    features = [name for name in config.modalities if name != "text"]
    decoded = [name for name in features if config.feature_configs[name].encoder]
    if decoded:
        return '"video": "clip.mp4"' if "video" in decoded else '"audio": "clip.wav"'
    return ", ".join(f'"{name}_features": np.load("{name}.npy")' for name in features)


def _hyperparameters(config: Any, training_arguments: Mapping[str, Any]):
    values = {name: training_arguments.get(name) for name in _HYPERPARAMETERS}
    del values["num_train_epochs" if (values["max_steps"] or -1) > 0 else "max_steps"]
    values |= {name: getattr(config, name) for name in ("fusion_type", "hidden_size")}
    values |= {"num_anchors": config.num_anchors if config.fusion_type == "anchor" else None}
    values |= {f"{name}_encoder": features.encoder for name, features in config.feature_configs.items()}
    values = {name: value for name, value in values.items() if value is not None and value is not False}
    # The path of an encoder's folder is private.
    return {
        name: f"{value:g}" if isinstance(value, float) else escape_markdown(os.path.basename(str(value)))
        for name, value in values.items()
    }


def _evidence(report: Mapping[str, Any]):
    """Describe, from the accuracies with some modalities masked, where the evidence is; `None` for a single modality."""
    accuracy = {tuple(row["modalities"]): row["accuracy"] for row in report.get("modalities", ())}
    alone = {names[0]: share for names, share in accuracy.items() if len(names) == 1}
    if len(alone) < 2:
        return None
    complete = max(accuracy, key=len)
    figures = ", ".join(f"{percent(share)} % from {name} alone" for name, share in alone.items())
    said = f"Of the {report['split']} clips {percent(accuracy[complete])} % are answered correctly from all modalities, {figures}."
    best = max(alone, key=alone.get)
    if alone[best] >= accuracy[complete] - _NEARLY_ALL:
        return f"Nearly all of the evidence that this model uses is in the {best}. {said}"
    rests = {name: accuracy[tuple(other for other in complete if other != name)] for name in alone}
    worst = min(rests, key=rests.get)
    return f"{said} The largest loss is that of {worst}: {percent(rests[worst])} % without."


def _metrics_of(results: Mapping[str, Any], prefix: str):
    return {key: results[f"{prefix}_{key}"] for key in _METRICS if f"{prefix}_{key}" in results}


def _eval_results(measured: Mapping[str, Mapping], dataset_title: str, datasets: list[str]):
    return [
        EvalResult(
            **_TASK,
            dataset_type=re.sub(r"[^\w.-]+", "-", ",".join(datasets) or "unnamed"),
            dataset_name=dataset_title,
            dataset_split=split,
            metric_type=key,
            metric_name=_METRICS[key],
            metric_value=value,
        )
        for split, values in measured.items()
        for key, value in values.items()
    ]
