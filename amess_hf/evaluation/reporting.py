"""The evaluation report: one folder with Markdown, plots and the numbers behind them."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from transformers.utils import logging

from ..configuration_amess import FEATURE_MODALITIES, MODALITIES, OUT_OF_SCOPE_ID
from ..oos_amess import OOS_METHODS, OutOfScopeDetector
from ..pipeline_amess import anchor_spans, scored_anchors, utterance_words
from ..processing_amess import write_json, write_text
from .anchor_metrics import compute_anchor_metrics
from .calibration import (
    confidence_and_correct,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from .metric_names import (
    CLASSIFICATION_METRICS,
    MODALITY_NAMES,
    OOS_METRICS,
    OPEN_METRICS,
    escape_markdown,
    modality_label,
    percent,
)
from .metrics import compute_classification_metrics, compute_oos_metrics, compute_open_classification_metrics
from .prediction import ClipOutputs, modality_table, predict_clips
from .tables import markdown_table


logger = logging.get_logger(__name__)

_MISTAKES_SHOWN = 20
_ANCHORS_SHOWN = 3


def fit_detectors(
    model: Any,
    train_outputs: ClipOutputs,
    dev_outputs: ClipOutputs,
    keep: float = 0.95,
    methods: Sequence[str] = OOS_METHODS,
) -> list[OutOfScopeDetector]:
    """Fit out-of-scope detectors on the training split and set their thresholds on the dev split.

    Args:
        model ([`AMESSForIntentClassification`]): The model that the outputs come from.
        train_outputs ([`ClipOutputs`]): Clips with label -1 are ignored.
        dev_outputs ([`ClipOutputs`]): Clips with label -1 are ignored.
        keep (`float`, *optional*, defaults to 0.95): Share of the in-scope dev clips that the threshold keeps.
        methods (`Sequence[str]`, *optional*): Names; `label_similarity` is left out if the model has no descriptions.

    Returns:
        `list[OutOfScopeDetector]`: The detectors, in the order of `methods`.
    """
    return [
        OutOfScopeDetector(method)
        .fit(train_outputs.as_model_outputs(), train_outputs.labels, model)
        .calibrate(dev_outputs.as_model_outputs(), keep, dev_outputs.labels)
        for method in methods
        if method != "label_similarity" or dev_outputs.label_embeds is not None
    ]


def report(
    model: Any,
    dataset: Any,
    data_collator: Callable,
    output_dir: str | os.PathLike,
    name: str = "dev",
    detectors: Sequence[OutOfScopeDetector] = (),
    outputs: ClipOutputs | None = None,
    calibration_outputs: ClipOutputs | None = None,
    batch_size: int = 32,
    evidence_spans: Mapping[str, Mapping[str, tuple[int, int, int]]] | None = None,
) -> dict:
    """Evaluate a model on one split and write `report.md`, its plots and `metrics.json` into a folder.

    The same input gives the same files, byte for byte.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        dataset (`datasets.Dataset`):
            The split, rows as `load_mintrec` gives them. Clips with label -1 are out of scope: they count in the section
            on detection and in the map of embeddings only.
        data_collator ([`AMESSDataCollator`]): From rows to a batch, with the model's tokenizer and configuration.
        output_dir (`str`): The folder; it is made if it is missing.
        name (`str`, *optional*, defaults to `"dev"`): What the report calls the split.
        detectors (`Sequence[OutOfScopeDetector]`, *optional*):
            Fitted detectors to compare, the one in use first. The scores that need no fitting are always compared.
        outputs ([`ClipOutputs`], *optional*):
            The model's outputs for `dataset`, if they are already available; only inputs with masked modalities are then
            predicted. A detector whose threshold was set on these outputs then keeps exactly the intended clips.
        calibration_outputs ([`ClipOutputs`], *optional*):
            Outputs to fit a temperature on, usually those of the dev split. Without them there is no temperature.
        batch_size (`int`, *optional*, defaults to 32): Clips at a time.
        evidence_spans (`dict`, *optional*):
            The frames that hold each clip's evidence, as [`read_evidence_spans`] gives them, to compare the anchors with;
            ignored for models without anchors.

    Returns:
        `dict`: the content of `metrics.json`: `clips`, `classification` (with `per_class`), `modalities`, `calibration`, if
        there are out-of-scope clips `oos_detection` (method -> metrics), with a threshold `kept_in_scope`,
        `caught_out_of_scope` (shares of clips) and `open_classification`, and with `evidence_spans` `anchors` (see
        [`compute_anchor_metrics`]).

    Raises:
        ValueError: If the split has no in-scope clip, or `outputs` are those of other clips.
        ImportError: If matplotlib is missing (the `report` extra).

    Example:
    ```python
    outputs = predict_clips(model, dataset["validation"], collator)
    report(model, dataset["validation"], collator, "report/dev", outputs=outputs, calibration_outputs=outputs)
    ```
    """
    from . import plots

    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if outputs is None:
        outputs = predict_clips(model, dataset, data_collator, batch_size)
    elif outputs.ids != list(dataset["id"]):
        raise ValueError(f"`outputs` are not those of the {len(dataset)} clips of `dataset`, in their order")
    in_scope = outputs.labels >= 0
    if not in_scope.any():
        raise ValueError(f"every clip of the split {name!r} is out of scope; load it with scope='in' or scope='all'")
    known, known_clips = outputs.select(in_scope), dataset.select(np.flatnonzero(in_scope))
    if calibration_outputs is not None:
        calibration_outputs = calibration_outputs.select(calibration_outputs.labels >= 0)

    os.makedirs(output_dir, exist_ok=True)
    writer = _ReportWriter(output_dir)
    results = {"split": name, "clips": int(in_scope.sum()), "out_of_scope_clips": int((~in_scope).sum())}
    writer.heading(f"Evaluation on {escape_markdown(name)}", level=1)
    results["classification"] = compute_classification_metrics(known.predictions, known.labels, names)
    _write_classification(writer, plots, results, known, names)
    results["modalities"] = modality_table(model, known_clips, data_collator, batch_size, complete=known)
    _write_modalities(writer, plots, results["modalities"])
    results["calibration"] = _write_calibration(writer, plots, known, calibration_outputs)
    _write_oos(writer, plots, results, outputs, list(detectors))
    clips = _ClipAnchors(known, known_clips, data_collator.processor)
    _write_mistakes(writer, known, names, clips)
    _write_map(writer, plots, outputs, names)
    if known.anchor_indices is not None:
        _write_anchors(writer, plots, known, names, clips)
        if evidence_spans is not None:
            results["anchors"] = _write_evidence(writer, known, evidence_spans)
    writer.save(results)
    return results


class _ReportWriter:
    """Collect Markdown; plots are written immediately."""

    def __init__(self, output_dir: str | os.PathLike):
        self.output_dir = output_dir
        self.parts = []

    def heading(self, text: str, level: int = 2):
        self.parts.append(f"{'#' * level} {text}")

    def text(self, text: str):
        self.parts.append(text)

    def table(self, header: list[str], rows: list[list], left: int = 1):
        """Add a table whose first `left` columns are words and the others numbers."""
        self.parts.append(markdown_table(header, rows, range(left)).rstrip())

    def plot(self, figure: Any, file_name: str, description: str):
        from .plots import save_figure

        save_figure(figure, os.path.join(self.output_dir, file_name))
        self.parts.append(f"![{escape_markdown(description)}]({file_name})")

    def save(self, results: dict):
        write_text(os.path.join(self.output_dir, "report.md"), "\n\n".join(self.parts) + "\n")
        write_json(os.path.join(self.output_dir, "metrics.json"), results)
        logger.info(f"The report is in {self.output_dir}")


def _write_classification(
    writer: _ReportWriter, plots: ModuleType, results: dict, known: ClipOutputs, names: list[str]
):
    from sklearn.metrics import confusion_matrix

    metrics, outside = results["classification"], results["out_of_scope_clips"]
    others = f", and {outside} out-of-scope clips that the section on detection is about" if outside else ""
    writer.text(f"{results['clips']} in-scope clips{others}. All metrics are in percent.")
    writer.table(
        [f"{label} ↑" for label in CLASSIFICATION_METRICS.values()],
        [[percent(metrics[key]) for key in CLASSIFICATION_METRICS]],
        left=0,
    )
    writer.heading("Intents")
    writer.plot(plots.plot_intent_f1(metrics["per_class"]), "intents.png", "F1 of each intent")
    rows = sorted(metrics["per_class"].items(), key=lambda item: (-item[1]["support"], item[0]))
    writer.table(
        ["intent", "clips", "F1", "precision", "recall"],
        [
            [
                escape_markdown(label),
                values["support"],
                *(percent(values[key]) for key in ("f1", "precision", "recall")),
            ]
            for label, values in rows
        ],
    )
    matrix = confusion_matrix(known.labels, known.predictions)
    seen_names = [names[number] for number in np.union1d(known.labels, known.predictions)]
    order = plots.confusion_order(matrix)
    writer.heading("Confusion")
    writer.text("Intents that are confused with one another are neighbours.")
    writer.plot(
        plots.plot_confusion(matrix[np.ix_(order, order)], [seen_names[number] for number in order]),
        "confusion.png",
        "Confusion matrix",
    )


def _write_modalities(writer: _ReportWriter, plots: ModuleType, table: list[dict]):
    writer.heading("Modalities")
    writer.text(
        "The same clips with only the named modalities; the others are masked. *Changed*: the share of clips whose answer "
        "differs from that with all modalities."
    )
    writer.table(
        ["modalities", "accuracy ↑", "weighted F1 ↑", "changed"],
        [
            [modality_label(row["modalities"]), *(percent(row[key]) for key in ("accuracy", "weighted_f1", "changed"))]
            for row in table
        ],
    )
    writer.plot(plots.plot_modalities(table), "modalities.png", "Accuracy with some modalities masked")


def _write_calibration(
    writer: _ReportWriter, plots: ModuleType, known: ClipOutputs, calibration_outputs: ClipOutputs | None
):
    confidence, correct = confidence_and_correct(known.logits, known.labels)

    def errors(temperature: float, scaled_confidence: np.ndarray):
        return {
            "expected_calibration_error": expected_calibration_error(scaled_confidence, correct),
            "negative_log_likelihood": negative_log_likelihood(known.logits, known.labels, temperature),
        }

    result = errors(1.0, confidence)
    rows = [["uncalibrated", 1.0, result]]
    temperature = calibrated = None
    if calibration_outputs is not None:
        temperature = fit_temperature(calibration_outputs.logits, calibration_outputs.labels)
        calibrated, _ = confidence_and_correct(known.logits, known.labels, temperature)
        result["calibrated"] = {
            "temperature": temperature,
            "fitted_on_clips": len(calibration_outputs),
            **errors(temperature, calibrated),
        }
        rows.append(["with temperature", temperature, result["calibrated"]])
    writer.heading("Calibration")
    writer.text(
        "ECE: expected calibration error over 15 bins, in percent. NLL: negative log-likelihood. A temperature changes no "
        "answer."
    )
    if calibration_outputs is not None and calibration_outputs.ids == known.ids:
        writer.text("The temperature was fitted on these same clips, so its row is optimistic.")
    writer.table(
        ["logits", "temperature", "ECE ↓", "NLL ↓"],
        [
            [
                label,
                f"{value:.3f}",
                percent(metrics["expected_calibration_error"]),
                f"{metrics['negative_log_likelihood']:.4f}",
            ]
            for label, value, metrics in rows
        ],
    )
    writer.plot(
        plots.plot_calibration(correct, confidence, calibrated, temperature), "calibration.png", "Reliability diagram"
    )
    return result


def _write_oos(
    writer: _ReportWriter, plots: ModuleType, results: dict, outputs: ClipOutputs, detectors: list[OutOfScopeDetector]
):
    in_scope = outputs.labels >= 0
    if not detectors and in_scope.all():
        return
    unfitted = ["energy", "msp", "max_logit"] + ["label_similarity"] * (outputs.label_embeds is not None)
    given = {detector.method for detector in detectors}
    detectors = [*detectors, *(OutOfScopeDetector(method) for method in unfitted if method not in given)]
    scores = {detector.method: detector.score(outputs.as_model_outputs()).numpy() for detector in detectors}
    first = detectors[0]
    accepted = None if first.threshold is None else scores[first.method] >= first.threshold
    writer.heading("Out of scope")
    if accepted is not None:
        results["kept_in_scope"] = float(accepted[in_scope].mean())
        writer.text(
            f"The threshold of `{first.method}` is {first.threshold:.4g}; it was set to keep {100 * first.keep:g} % of the "
            f"in-scope dev clips and keeps {percent(results['kept_in_scope'])} % of these."
        )
    if in_scope.all():
        writer.text("There is no out-of-scope clip in this split to score detection on.")
        return
    results["oos_detection"] = {
        method: compute_oos_metrics(values, in_scope.astype(int)) for method, values in scores.items()
    }
    lower = {"fpr95", "eer", "der"}
    writer.table(
        ["score", *(f"{label} {'↓' if key in lower else '↑'}" for key, label in OOS_METRICS.items())],
        [
            [f"`{method}`", *(percent(values[key]) for key in OOS_METRICS)]
            for method, values in results["oos_detection"].items()
        ],
    )
    if accepted is not None:
        open_predictions = np.where(accepted, outputs.predictions, OUT_OF_SCOPE_ID)
        results["open_classification"] = compute_open_classification_metrics(open_predictions, outputs.labels)
        results["caught_out_of_scope"] = float(1 - accepted[~in_scope].mean())
        writer.text(f"It catches {percent(results['caught_out_of_scope'])} % of the out-of-scope clips.")
        writer.text("Known intents and one open class for what the detector rejects:")
        writer.table(
            [f"{label} ↑" for label in OPEN_METRICS.values()],
            [[percent(results["open_classification"][key]) for key in OPEN_METRICS]],
            left=0,
        )
    writer.plot(
        plots.plot_oos_scores(scores[first.method], in_scope, first.method, first.threshold),
        "oos_scores.png",
        "Out-of-scope scores of both kinds of clips",
    )
    writer.plot(plots.plot_roc(scores, in_scope), "oos_roc.png", "ROC curves of out-of-scope detection")


def _write_mistakes(writer: _ReportWriter, known: ClipOutputs, names: list[str], clips: "_ClipAnchors"):
    confidence, correct = confidence_and_correct(known.logits, known.labels)
    wrong = [number for number in np.argsort(-confidence, kind="stable") if not correct[number]]
    writer.heading("The most confident mistakes")
    if not wrong:
        writer.text("There are none: every answer is correct.")
        return
    rows = []
    for number in wrong[:_MISTAKES_SHOWN]:
        label, prediction = names[known.labels[number]], names[known.predictions[number]]
        cells = [known.ids[number], known.texts[number], label, prediction, clips.describe(number)]
        rows.append([*map(escape_markdown, cells), f"{100 * confidence[number]:.1f}"])
    writer.table(["clip", "text", "intent", "prediction", "anchors, best first", "confidence"], rows, left=5)


def _write_map(writer: _ReportWriter, plots: ModuleType, outputs: ClipOutputs, names: list[str]):
    points = [outputs.multimodal_embeds]
    if outputs.label_embeds is not None:
        points.append(outputs.label_embeds)
    points = np.concatenate(points)
    if len(points) < 4:
        return
    plane = plots.embed_in_plane(points)
    descriptions = plane[len(outputs) :] if outputs.label_embeds is not None else None
    writer.heading("Map of embeddings")
    writer.plot(
        plots.plot_embeddings(plane[: len(outputs)], outputs.labels, names, descriptions),
        "embeddings.png",
        "Map of the clips' embeddings" + ("" if descriptions is None else " and the label descriptions"),
    )


def _write_anchors(
    writer: _ReportWriter, plots: ModuleType, known: ClipOutputs, names: list[str], clips: "_ClipAnchors"
):
    confidence, correct = confidence_and_correct(known.logits, known.labels)
    order = np.argsort(-confidence, kind="stable")
    right, wrong = [n for n in order if correct[n]], [n for n in order if not correct[n]]
    writer.heading("Anchors")
    writer.text(
        "The words, sounds and frames that the model chose as anchors, for the most confident correct answer, the least "
        "confident correct answer, and the most confident mistake. Anchors on special tokens and earlier turns are not "
        "shown. Words have no times; they are spread over the clip by their letters."
    )
    for kind, numbers in (
        ("surest_right", right[:1]),
        ("least_sure_right", right[1:][-1:]),
        ("surest_mistake", wrong[:1]),
    ):
        for number in numbers:
            label, prediction = names[known.labels[number]], names[known.predictions[number]]
            verdict = label if label == prediction else f"{label}, taken for {prediction}"
            title = f"{known.ids[number]}: {verdict} ({100 * confidence[number]:.0f} %)"
            writer.plot(
                plots.plot_anchors(title, clips.words(number), clips.tracks(number), clips.duration(number)),
                f"anchors_{kind}.png",
                title,
            )


def _write_evidence(
    writer: _ReportWriter, known: ClipOutputs, spans: Mapping[str, Mapping[str, tuple[int, int, int]]]
):
    metrics = compute_anchor_metrics(known, spans)
    writer.heading("Anchors and evidence")
    writer.text(
        "Where the evidence of a clip is known: how often its best anchor lies there, which share of all its anchors does, "
        "and the share of its frames that do (chance). In percent."
    )
    writer.table(
        ["modality", "clips", "best anchor ↑", "all anchors ↑", "chance"],
        [
            [
                MODALITY_NAMES[modality],
                values["clips"],
                *(percent(values[key]) for key in ("best_anchor", "all_anchors", "chance")),
            ]
            for modality, values in metrics.items()
        ],
    )
    return metrics


class _ClipAnchors:
    """The anchors of single clips in readable form: words, and places in the sound and the video."""

    def __init__(self, outputs: ClipOutputs, dataset: Any, processor: Any):
        self.outputs, self.dataset, self.processor = outputs, dataset, processor

    def anchors(self, number: int, modality: str):
        """[(position, score)], best first."""
        if self.outputs.anchor_indices is None:
            return []
        row = MODALITIES.index(modality)
        return scored_anchors(self.outputs.anchor_indices[number, row], self.outputs.anchor_scores[number, row])

    def words(self, number: int):
        """[(word, score of its best anchor or None)] of the utterance, in order."""
        words = utterance_words(
            self.processor.tokenizer,
            self.anchors(number, "text"),
            self.outputs.texts[number],
            self.dataset[int(number)].get("context"),
            self.processor.max_text_length,
            prefix=self.processor.text_prefix,
        )
        return [(word["word"], word["score"]) for word in words]

    def tracks(self, number: int):
        """Sound and video for `plots.plot_anchors`, anchors in seconds or in percent of the clip."""
        row, length = self.dataset[int(number)], self.duration(number) or 100.0
        tracks = []
        for modality in FEATURE_MODALITIES:
            size = getattr(self.processor, f"{modality}_feature_size")
            if size:
                values = row.get(f"{modality}_features")
                frames = np.asarray(() if values is None else values, dtype=np.float32).reshape(-1, size)
                frames = frames[: getattr(self.processor, f"max_{modality}_length")]
                anchors = anchor_spans(self.anchors(number, modality), len(frames) / length)
                tracks.append({"modality": modality, "frames": frames, "anchors": anchors})
        return tracks

    def duration(self, number: int):
        """Seconds, None where the data set does not say."""
        row = self.dataset[int(number)]
        start, end = row.get("start"), row.get("end")
        return float(end - start) if start is not None and end is not None and end > start else None

    def describe(self, number: int):
        """`great, again · sound 0.4 s, 1.8 s · picture 66 %`."""
        chosen = [(word, score) for word, score in self.words(number) if score is not None]
        best = sorted(chosen, key=lambda pair: -pair[1])[:_ANCHORS_SHOWN]
        parts = [", ".join(word for word, _ in best)] if best else []
        form = "{:.1f} s" if self.duration(number) else "{:.0f} %"
        for track in self.tracks(number):
            middles = [(anchor["start"] + anchor["end"]) / 2 for anchor in track["anchors"][:_ANCHORS_SHOWN]]
            if middles:
                parts.append(f"{MODALITY_NAMES[track['modality']]} {', '.join(map(form.format, middles))}")
        return " · ".join(parts) or "–"
