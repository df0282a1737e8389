"""The model card: README.md of a saved model, with metrics that come from the run that made it."""

import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

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
) -> ModelCard:
    """Make the model card of a trained model.

    Args:
        model ([`AMESSForIntentClassification`]): The model; its configuration has the intents and their descriptions.
        results (`dict`):
            The run's metrics as in `all_results.json`, e.g. `eval_accuracy`, `test_weighted_f1`, in [0, 1]. Every metric
            of the card's `model-index` comes from here; an empty `dict` gives a card without metrics.
        dataset_name (`str`, *optional*):
            What it was trained on: one or more of `load_mintrec`'s names, separated by commas, or another name.
        model_id (`str`, *optional*): Repository on the Hub, e.g. `"org/amess-mintrec2"`.
        detector ([`OutOfScopeDetector`], *optional*): The one that is saved with the model.
        report (`dict`, *optional*):
            What `amess_hf.evaluation.report` returned, for the modality table and the detection table.
        license (`str`, *optional*): The model's license, as the Hub names it, e.g. `"cc-by-nc-sa-4.0"`.

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
    title = os.path.basename((model_id or "").rstrip("/")) or "amess"
    text_encoder = _hub_name(getattr(model.config.text_config, "_name_or_path", None))
    card_data = ModelCardData(
        language="en" if known else None,
        license=license,
        library_name="transformers",
        base_model=text_encoder,
        pipeline_tag=_TASK["task_type"],
        tags=["amess", "multimodal", "intent-recognition", "custom_code"],
        metrics=["accuracy", "f1"] if results else None,
        model_name=title,
        eval_results=_eval_results(results, dataset_title or "unnamed", datasets) or None,
    )
    modalities = model_modalities(model.config)
    return ModelCard.from_template(
        card_data,
        template_path=_TEMPLATE,
        title=title,
        model_id=model_id or "PATH_OF_THIS_FOLDER",
        modality_words=_join([MODALITY_NAMES[name] for name in modalities]),
        uses_clips=len(modalities) > 1,
        has_descriptions=model.config.label_descriptions is not None,
        text_encoder=text_encoder,
        dataset_title=escape_markdown(dataset_title),
        data_description="\n\n".join(entry["description"] for entry in known),
        english_television=bool(known),
        labels=_labels(model.config),
        citations="\n\n".join([_PAPER, *(entry["citation"] for entry in known)]),
        detector=detector,
        **_result_table(results),
        **_report_tables(report or {}),
    )


def _hub_name(name_or_path: str | None):
    """Return the name if it can be that of a Hub model; a path on one machine means nothing to a reader of the card."""
    if name_or_path and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) and not os.path.exists(name_or_path):
        return name_or_path
    return None


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
    descriptions, zero_shot = config.label_descriptions or {}, set(config.zero_shot_labels or ())
    labels = []
    for _, name in sorted(config.id2label.items()):
        sentences = descriptions.get(name, ())
        labels.append(
            {
                "name": escape_markdown(name),
                # On one line: a line of dashes would end the card's header.
                "sentences": escape_markdown(" ".join(sentences[:_SENTENCES_SHOWN])),
                "more": len(sentences[_SENTENCES_SHOWN:]),
                "zero_shot": name in zero_shot,
            }
        )
    return labels
