"""The model card: README.md of a saved model, with metrics from the run that trained it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_amess import FEATURE_MODALITIES
from ..processing_amess import write_text
from ..version import __version__
from .metric_names import (
    CLASSIFICATION_METRICS,
    MODALITY_NAMES,
    OOS_METRICS,
    OPEN_METRICS,
    escape_markdown,
    modality_label,
    percent,
)
from .prediction import model_modalities


_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model_card_template.md.jinja")

_TASK = {"task_type": "video-classification", "task_name": "Multimodal Intent Recognition"}
_SPLITS = {"eval": "validation", "test": "test"}
_SENTENCES_SHOWN = 3
# What a card calls a model that is not on a Hub: the folder that contains the card.
_THIS_FOLDER = "."
_IN_THIS_FOLDER = "Run it in the folder that this file is in.\n"
# A modality carries most of the evidence if the others reach less than this share of the accuracy with all.
_MOST_OF_THE_EVIDENCE = 0.03
_LIBRARIES = ("transformers", "torch", "datasets", "tokenizers")
# Training argument -> its name on the card, in the card's order.
_HYPERPARAMETERS = {
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch size per device",
    "gradient_accumulation_steps": "batches per step",
    "learning_rate": "learning rate of the text encoder's last layer",
    "head_learning_rate": "learning rate of everything else",
    "layer_decay": "learning rate of a layer relative to the one above",
    "weight_decay": "weight decay of the text encoder",
    "head_weight_decay": "weight decay of everything else",
    "warmup_steps": "warm-up (steps, or share of them)",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
    "weight_averaging": "weight averaging",
    "bf16": "bfloat16",
    "fp16": "float16",
    "seed": "seed",
}
_MODEL_FIELDS = {
    "fusion_type": "fusion",
    "hidden_size": "width of the fusion",
    "num_anchors": "anchors per modality",
}
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

DATASETS = {
    "mintrec": {
        "title": "MIntRec",
        "description": (
            "MIntRec: 2,224 clips of one television series, 1,334 for training, 445 for development and 445 for testing, with "
            "20 intents. The annotations are published under the MIT licence at github.com/thuiar/MIntRec."
        ),
        "citation": """\
@inproceedings{zhang2022mintrec,
  title     = {{MIntRec}: A New Dataset for Multimodal Intent Recognition},
  author    = {Zhang, Hanlei and Xu, Hua and Wang, Xin and Zhou, Qianrui and Zhao, Shaojie and Teng, Jiayan},
  booktitle = {Proceedings of the 30th ACM International Conference on Multimedia},
  year      = {2022}
}""",
    },
    "mintrec2.0": {
        "title": "MIntRec2.0",
        "description": (
            "MIntRec2.0: clips of three television series in 1,245 dialogues; in scope 6,165 for training, 1,106 for "
            "development and 2,033 for testing, with 30 intents. The annotations are published under CC BY-NC-SA 4.0 at "
            "github.com/thuiar/MIntRec2.0: not for commercial use."
        ),
        "license": "cc-by-nc-sa-4.0",
        "citation": """\
@inproceedings{zhang2024mintrec,
  title     = {{MIntRec2.0}: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and Out-of-scope
               Detection in Conversations},
  author    = {Zhang, Hanlei and Wang, Xin and Xu, Hua and Zhou, Qianrui and Gao, Kai and Su, Jianhua and Zhao, Jinyue
               and Li, Wenrui and Chen, Yanting},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}""",
    },
}


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
    dataset_title = " and ".join(DATASETS.get(name, {"title": name})["title"] for name in datasets)
    config = model.config
    modalities = model_modalities(config)
    text_encoder, *other_encoders = encoders = _encoders(config)
    license = license or next((entry["license"] for entry in known if "license" in entry), None)
    card_data = ModelCardData(
        language=language or ("en" if known else None),
        license=license,
        library_name="transformers",
        base_model=text_encoder if not any(other_encoders) else [name for name in encoders if name],
        pipeline_tag=_TASK["task_type"],
        tags=["amess", "multimodal", "intent-recognition", "custom_code"],
        metrics=["accuracy", "f1"] if results else None,
        model_name=_title(model_id),
        eval_results=_eval_results(results, dataset_title or "unnamed", datasets) or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=_TEMPLATE,
        title=_title(model_id),
        model_id=model_id or _THIS_FOLDER,
        where_to_run="" if model_id else _IN_THIS_FOLDER,
        modality_words=_join([MODALITY_NAMES[name] for name in modalities]),
        inputs=_inputs(config, modalities),
        has_descriptions=config.label_descriptions is not None,
        encoders=[name for name in encoders if name],
        license=license,
        language=card_data.language,
        dataset_title=escape_markdown(dataset_title),
        data_description="\n\n".join(entry["description"] for entry in known),
        english_television=bool(known),
        labels=_labels(config),
        citations="\n\n".join([_PAPER, *(entry["citation"] for entry in known)]),
        detector=detector,
        hyperparameters=_hyperparameters(config, training_arguments or {}),
        versions=_versions(),
        evidence=_evidence(report or {}),
        **_result_table(results),
        **_report_tables(report or {}),
    )


def name_repository(path: str | os.PathLike, repo_id: str) -> None:
    """Put a repository's name into the snippets, title and metadata of a card that [`create_model_card`] made.

    The rest of the card is unchanged; a card without such snippets is left alone.

    Args:
        path (`str` or `os.PathLike`): The card, e.g. `README.md` of a run's output folder.
        repo_id (`str`): The repository on the Hub, `"organization/name"`.
    """
    with open(path, encoding="utf-8", newline="") as file:
        card = file.read()
    named, count = re.subn(
        r"""(pipeline\("intent-recognition", model=|from_pretrained\()"[^"\n]*\"""",
        lambda match: match[1] + json.dumps(repo_id),
        card,
    )
    named = named.replace(_IN_THIS_FOLDER, "")
    unnamed, title = _title(None), _title(repo_id)
    if count:
        named = re.sub(rf"^# {unnamed}$", lambda _: f"# {title}", named, count=1, flags=re.MULTILINE)
        named = re.sub(
            rf"^(- |model_)name: {unnamed}$",
            lambda match: f"{match[1]}name: {title}",
            named,
            count=1,
            flags=re.MULTILINE,
        )
    if named != card:
        write_text(path, named)


def _title(model_id: str | None):
    return os.path.basename((model_id or "").rstrip("/")) or "amess"


def _hub_name(name_or_path: str | None):
    """Return the name if it can be that of a Hub model; a local path means nothing to a reader of the card."""
    if name_or_path and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) and not os.path.exists(name_or_path):
        return name_or_path
    return None


def _encoders(config: Any):
    """Return the Hub models of text, sound and picture that the model was built from, `None` where there is none."""
    names = [features.encoder for features in config.feature_configs.values()]
    # Front ends that are part of this package have no organisation in their names.
    return [
        _hub_name(getattr(config.text_config, "_name_or_path", None)),
        *(_hub_name(name) if name and "/" in name else None for name in names),
    ]


def _inputs(config: Any, modalities: Sequence[str]):
    """Return the further inputs of the snippet: what follows `"text": ...` in the dictionary, and a note."""
    decoded = [name for name in FEATURE_MODALITIES if name in modalities and config.feature_configs[name].encoder]
    if decoded:
        return '"clip": "clip.mp4"' if "video" in decoded else '"audio": "clip.wav"'
    return ", ".join(f'"{name}_features": np.load("{name}.npy")' for name in FEATURE_MODALITIES if name in modalities)


def _hyperparameters(config: Any, training_arguments: Mapping[str, Any]):
    used = {name: training_arguments.get(name) for name in _HYPERPARAMETERS}
    if (used["max_steps"] or -1) > 0:
        used["num_train_epochs"] = None
    else:
        used["max_steps"] = None
    rows = [
        (name, used[key]) for key, name in _HYPERPARAMETERS.items() if used[key] is not None and used[key] is not False
    ]
    if not rows:
        return []
    fields = [(name, getattr(config, key)) for key, name in _MODEL_FIELDS.items()]
    # The path of an encoder's folder is private.
    encoders = {name: features.encoder for name, features in config.feature_configs.items() if features.encoder}
    fields += [(f"{name} encoder", os.path.basename(encoder)) for name, encoder in encoders.items()]
    return [
        (name, "yes" if value is True else f"{value:g}" if isinstance(value, float) else escape_markdown(str(value)))
        for name, value in rows + fields
    ]


def _versions():
    found = {"amess_hf": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _evidence(report: Mapping[str, Any]):
    """Describe, from the accuracies with some modalities masked, where the evidence is; `None` for a single modality."""
    accuracy = {tuple(row["modalities"]): row["accuracy"] for row in report.get("modalities", ())}
    alone = {names[0]: share for names, share in accuracy.items() if len(names) == 1}
    if len(alone) < 2:
        return None
    complete = max(accuracy, key=len)
    figures = [f"{percent(share)} % from {MODALITY_NAMES[name]} alone" for name, share in alone.items()]
    said = (
        f"Of the {report['split']} clips {percent(accuracy[complete])} % are answered correctly from all modalities, "
        f"{_join(figures)}."
    )
    best = max(alone, key=lambda name: alone[name])
    if alone[best] >= accuracy[complete] - _MOST_OF_THE_EVIDENCE:
        return f"Nearly all of the evidence that this model uses is in the {MODALITY_NAMES[best]}. {said}"
    rests = {name: accuracy.get(tuple(other for other in complete if other != name)) for name in alone}
    if None not in rests.values():
        worst = min(rests, key=lambda name: rests[name])
        said += f" The largest loss is that of the {MODALITY_NAMES[worst]}: {percent(rests[worst])} % without."
    return said


def _join(words: list[str]):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _metrics_of(results: Mapping, prefix: str):
    return {key: results[f"{prefix}_{key}"] for key in _METRICS if f"{prefix}_{key}" in results}


def _eval_results(results: Mapping, dataset_title: str, datasets: list[str]):
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
        for prefix, split in _SPLITS.items()
        for key, value in _metrics_of(results, prefix).items()
    ]


def _result_table(results: Mapping):
    measured = {split: _metrics_of(results, prefix) for prefix, split in _SPLITS.items()}
    columns = [key for key in _METRICS if any(key in metrics for metrics in measured.values())]
    return {
        "result_columns": [_METRICS[key] for key in columns],
        "results": [
            {"split": split, "values": [percent(metrics[key]) if key in metrics else "–" for key in columns]}
            for split, metrics in measured.items()
            if metrics
        ],
    }


def _report_tables(report: Mapping):
    return {
        "modality_split": report.get("split"),
        "modality_rows": [
            [
                modality_label(row["modalities"]),
                *(percent(row[key]) for key in ("accuracy", "weighted_f1", "changed")),
            ]
            for row in report.get("modalities", ())
        ],
        "detection_split": report.get("split"),
        "detection_columns": list(OOS_METRICS.values()),
        "detection_rows": [
            [f"`{method}`", *(percent(metrics[key]) for key in OOS_METRICS)]
            for method, metrics in report.get("oos_detection", {}).items()
        ],
    }


def _labels(config: Any):
    descriptions, zero_shot = config.label_descriptions or {}, set(config.described_labels or ())
    labels = []
    for _, name in sorted(config.id2label.items()):
        sentences = descriptions.get(name, ())
        labels.append(
            {
                # On one line each: a line of dashes would end the card's header.
                "name": escape_markdown(name),
                "sentences": escape_markdown(" ".join(sentences[:_SENTENCES_SHOWN])),
                "more": len(sentences[_SENTENCES_SHOWN:]),
                "zero_shot": name in zero_shot,
            }
        )
    return labels
