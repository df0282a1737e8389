"""The model card: README.md of a saved model, with figures that come from the run that made it."""

import os
import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .metric_names import MAIN_FIGURES, MODALITY_NAMES, OOS_FIGURES, OPEN_FIGURES
from .prediction import model_modalities


_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model_card_template.md.jinja")

_TASK = {"task_type": "video-classification", "task_name": "Multimodal Intent Recognition"}
_SPLITS = {"eval": "validation", "test": "test"}
_SENTENCES_SHOWN = 3
# figure in `all_results.json`, without its split -> name
_FIGURES = {
    **MAIN_FIGURES,
    **{f"oos_{key}": name for key, name in OOS_FIGURES.items()},
    **{f"open_{key}": f"{name} (open)" for key, name in OPEN_FIGURES.items()},
}

_PAPER = """\
@article{shen2025amess,
  title   = {{A-MESS}: Anchor-based Multimodal Embedding with Semantic Synchronization for Multimodal Intent Recognition},
  author  = {Shen, Yaomin and Lin, Xiaojian and Fan, Wei},
  journal = {arXiv preprint arXiv:2503.19474},
  year    = {2025}
}"""

_DATASETS = {
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


def create_model_card(model, results, dataset_name=None, model_id=None, detector=None, report=None, license=None):
    """
    Args:
        model (`AMESSForIntentClassification`): the model; its configuration has the intents and their descriptions.
        results: the run's figures as in `all_results.json`, e.g. `eval_accuracy`, `test_weighted_f1`, in [0, 1]. Every
            figure of the card's `model-index` comes from here; an empty `dict` gives a card without figures.
        dataset_name: what it was trained on, one or more of `load_mintrec`'s names with commas between, or another name.
        model_id: repository on the Hub, e.g. `"org/amess-mintrec2"`.
        detector (`OutOfScopeDetector`, *optional*): the one that is saved beside the model.
        report: what `amess_hf.evaluation.report` returned, for the modality table and the detection table.
        license: of this model, as the Hub writes licences, e.g. `"cc-by-nc-sa-4.0"`.

    Returns:
        `huggingface_hub.ModelCard`: `card.save(os.path.join(folder, "README.md"))` writes it. In its `model-index` a
        figure's `type` is its name in `results` without the split, and `dataset.split` is the split.
    """
    # a folder's name without the way to it, which is nobody's business
    datasets = [os.path.basename(name.strip()) for name in (dataset_name or "").split(",") if name.strip()]
    known = [_DATASETS[name] for name in datasets if name in _DATASETS]
    dataset_title = " and ".join(_DATASETS.get(name, {"title": name})["title"] for name in datasets)
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
        dataset_title=dataset_title,
        data_description="\n\n".join(entry["description"] for entry in known),
        english_television=bool(known),
        labels=_labels(model.config),
        citations="\n\n".join([_PAPER, *(entry["citation"] for entry in known)]),
        detector=detector,
        **_result_table(results),
        **_report_tables(report or {}),
    )


def _hub_name(name_or_path):
    """The name if it can be that of a Hub model: a path on somebody's machine says nothing to a reader of the card."""
    if name_or_path and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) and not os.path.exists(name_or_path):
        return name_or_path
    return None


def _join(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _figures_of(results, prefix):
    return {key: results[f"{prefix}_{key}"] for key in _FIGURES if f"{prefix}_{key}" in results}


def _eval_results(results, dataset_title, datasets):
    return [
        EvalResult(
            **_TASK,
            dataset_type=re.sub(r"[^\w.-]+", "-", ",".join(datasets) or "unnamed"),
            dataset_name=dataset_title,
            dataset_split=split,
            metric_type=key,
            metric_name=_FIGURES[key],
            metric_value=value,
        )
        for prefix, split in _SPLITS.items()
        for key, value in _figures_of(results, prefix).items()
    ]


def _result_table(results):
    measured = {split: _figures_of(results, prefix) for prefix, split in _SPLITS.items()}
    columns = [key for key in _FIGURES if any(key in figures for figures in measured.values())]
    return {
        "result_columns": [_FIGURES[key] for key in columns],
        "results": [
            {"split": split, "values": [_percent(figures[key]) if key in figures else "–" for key in columns]}
            for split, figures in measured.items()
            if figures
        ],
    }


def _report_tables(report):
    return {
        "modality_split": report.get("split"),
        "modality_rows": [
            [
                " + ".join(MODALITY_NAMES[name] for name in row["modalities"]),
                *(_percent(row[key]) for key in ("accuracy", "weighted_f1", "changed")),
            ]
            for row in report.get("modalities", ())
        ],
        "detection_split": report.get("split"),
        "detection_columns": list(OOS_FIGURES.values()),
        "detection_rows": [
            [f"`{method}`", *(_percent(figures[key]) for key in OOS_FIGURES)]
            for method, figures in report.get("oos_detection", {}).items()
        ],
    }


def _labels(config):
    descriptions, zero_shot = config.label_descriptions or {}, set(config.zero_shot_labels or ())
    labels = []
    for _, name in sorted(config.id2label.items()):
        sentences = descriptions.get(name, ())
        labels.append(
            {
                "name": " ".join(name.split()),
                # one line: a line of dashes would end the card's header
                "sentences": " ".join(" ".join(sentences[:_SENTENCES_SHOWN]).split()),
                "more": len(sentences[_SENTENCES_SHOWN:]),
                "zero_shot": name in zero_shot,
            }
        )
    return labels


def _percent(value):
    return f"{100 * value:.2f}"
