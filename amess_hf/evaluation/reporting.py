"""The evaluation report: one folder with Markdown, plots and the numbers behind them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers.utils import logging

from ..configuration_amess import FEATURE_MODALITIES, MODALITIES, OUT_OF_SCOPE_ID
from ..oos_amess import OOS_METHODS, OutOfScopeDetector
from ..pipeline_amess import anchor_spans, scored_anchors, utterance_words
from ..processing_amess import encode_text, write_json, write_text
from .calibration import uncalibrated_scores
from .metrics import (
    CLASSIFICATION_METRICS,
    OOS_METRICS,
    OPEN_METRICS,
    compute_calibration_metrics,
    compute_classification_metrics,
    compute_oos_metrics,
    compute_open_classification_metrics,
)
from .prediction import ClipOutputs, compute_anchor_metrics, modality_table, predict_clips
from .tables import escape_markdown, markdown_table, percent


logger = logging.get_logger(__name__)

_MISTAKES_SHOWN = 20
_ANCHORS_SHOWN = 3
_LOWER_IS_BETTER = ("fpr95", "eer", "der")


def fit_detectors(
    model: Any,
    train_outputs: ClipOutputs,
    dev_outputs: ClipOutputs,
    keep: float = 0.95,
    methods: Sequence[str] = OOS_METHODS,
    masked: Sequence[ClipOutputs] = (),
) -> list[OutOfScopeDetector]:
    """Fit out-of-scope detectors on the training split and set their thresholds on the dev split.

    Args:
        model ([`AMESSForIntentClassification`]): The model that the outputs come from.
        train_outputs ([`ClipOutputs`]): Clips with label -1 are ignored.
        dev_outputs ([`ClipOutputs`]): Clips with label -1 are ignored.
        keep (`float`, *optional*, defaults to 0.95): Share of the in-scope dev clips that the threshold keeps.
        methods (`Sequence[str]`, *optional*): Names; `label_similarity` is left out if the model has no descriptions.
        masked (`Sequence[ClipOutputs]`, *optional*): The same dev clips as [`predict_masked`] gives them, for thresholds of
            their own where modalities are missing.

    Returns:
        `list[OutOfScopeDetector]`: The detectors, in the order of `methods`.
    """
    incomplete = [outputs.as_model_outputs() for outputs in masked]
    return [
        OutOfScopeDetector(method)
        .fit(train_outputs.as_model_outputs(), train_outputs.labels, model)
        .calibrate(dev_outputs.as_model_outputs(), keep, dev_outputs.labels, incomplete)
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
    report(model, dataset["validation"], collator, "report/dev", outputs=outputs)
    ```
    """
    if outputs is None:
        outputs = predict_clips(model, dataset, data_collator, batch_size)
    elif outputs.ids != list(dataset["id"]):
        raise ValueError(f"`outputs` are not those of the {len(dataset)} clips of `dataset`, in their order")
    in_scope = outputs.labels >= 0
    if not in_scope.any():
        raise ValueError(f"every clip of the split {name!r} is out of scope; load it with scope='in' or scope='all'")
    os.makedirs(output_dir, exist_ok=True)
    page = _Page(output_dir, outputs, model, dataset, data_collator.processor, name)
    first = detectors[0] if detectors and detectors[0].threshold is not None else None
    page.results["modalities"] = modality_table(model, dataset, data_collator, batch_size, outputs, first)
    page.write_classification()
    page.write_modalities()
    page.write_calibration(model.config)
    page.write_oos(list(detectors))
    page.write_mistakes()
    page.write_map()
    if outputs.anchor_indices is not None:
        page.write_anchors()
        if evidence_spans is not None:
            page.write_evidence(evidence_spans)
    page.save()
    return page.results


class _Page:
    """The report on one split: `write_*` adds a section with its plots, and what it measures to `results`."""

    def __init__(
        self, folder: str | os.PathLike, outputs: ClipOutputs, model: Any, dataset: Any, processor: Any, name: str
    ):
        from . import plots

        self.plots, self.folder, self.processor = plots, folder, processor
        in_scope = outputs.labels >= 0
        self.outputs, self.known = outputs, outputs.select(in_scope)
        self.clips = dataset.select(np.flatnonzero(in_scope))
        self.names = [model.config.id2label[number] for number in range(model.config.num_labels)]
        self.correct = self.known.predictions == self.known.labels
        self.confidence = self.known.confidence()
        self.surest_first = np.argsort(-self.confidence, kind="stable")
        self.results = {"split": name, "clips": int(in_scope.sum()), "out_of_scope_clips": int((~in_scope).sum())}
        self.parts = [f"# Evaluation on {escape_markdown(name)}"]

    def add(self, *parts: str):
        self.parts += parts

    def table(self, header: Sequence[str], rows: Iterable[Sequence], left: int = 1):
        """Add a table whose first `left` columns are words and the others numbers."""
        self.add(markdown_table(header, rows, range(left)).rstrip())

    def plot(self, figure: Any, file_name: str, description: str):
        self.plots.save_figure(figure, os.path.join(self.folder, file_name))
        self.add(f"![{escape_markdown(description)}]({file_name})")

    def save(self):
        write_text(os.path.join(self.folder, "report.md"), "\n\n".join(self.parts) + "\n")
        write_json(os.path.join(self.folder, "metrics.json"), self.results)
        logger.info(f"The report is in {self.folder}")

    def write_classification(self):
        from sklearn.metrics import confusion_matrix

        known, names, outside = self.known, self.names, self.results["out_of_scope_clips"]
        metrics = compute_classification_metrics(known.predictions, known.labels, names)
        self.results["classification"] = metrics
        others = f", and {outside} out-of-scope clips that the section on detection is about" if outside else ""
        self.add(f"{len(known)} in-scope clips{others}. All metrics are in percent.")
        header = [f"{label} ↑" for label in CLASSIFICATION_METRICS.values()]
        self.table(header, [[percent(metrics[key]) for key in CLASSIFICATION_METRICS]], left=0)
        self.add("## Intents")
        self.plot(self.plots.plot_intent_f1(metrics["per_class"]), "intents.png", "F1 of each intent")
        rows = sorted(metrics["per_class"].items(), key=lambda item: (-item[1]["support"], item[0]))
        keys = ("f1", "precision", "recall")
        self.table(
            ["intent", "clips", "F1", "precision", "recall"],
            [[escape_markdown(label), row["support"], *(percent(row[key]) for key in keys)] for label, row in rows],
        )
        self.add("## Confusion", "Intents that are confused with one another are neighbors.")
        seen = np.union1d(known.labels, known.predictions)
        figure = self.plots.plot_confusion(
            confusion_matrix(known.labels, known.predictions, labels=seen), [names[number] for number in seen]
        )
        self.plot(figure, "confusion.png", "Confusion matrix")

    def write_modalities(self):
        table = self.results["modalities"]
        self.add(
            "## Modalities",
            "The same clips with only the named modalities; the others are masked. *Changed*: the share of clips whose "
            "answer differs from that with all modalities.",
        )
        header = {"accuracy": "accuracy ↑", "weighted_f1": "weighted F1 ↑", "changed": "changed"}
        if "oos_auroc" in table[0]:
            self.add(
                "*Unknown*: how well the detector tells out-of-scope clips, which it knows by the modalities given."
            )
            header |= {
                "oos_auroc": "AUROC unknown ↑",
                "caught_out_of_scope": "caught ↑",
                "kept_in_scope": "known kept ↑",
            }
        rows = [[" + ".join(row["modalities"]), *(percent(row[key]) for key in header)] for row in table]
        self.table(["modalities", *header.values()], rows)
        self.plot(self.plots.plot_modalities(table), "modalities.png", "Accuracy with some modalities masked")

    def write_calibration(self, config: Any):
        self.add(
            "## Calibration", "ECE: expected calibration error over 15 bins, in percent. NLL: negative log-likelihood."
        )
        known, before = self.known, None
        result = compute_calibration_metrics(known.logits, known.labels)
        rows = [["calibrated" if config.coverage_thresholds else "not calibrated", result]]
        if config.coverage_thresholds:
            scales = dict(zip(FEATURE_MODALITIES, config.evidence_scales or (), strict=False))
            fitted = ", ".join(f"evidence of {name} × {scale:.2f}" for name, scale in scales.items())
            self.add(f"Temperature {config.temperature:.2f}{', ' if fitted else ''}{fitted}, fitted on dev.")
            if self.results["split"] == "dev":
                self.add("These are the same clips, so the calibrated row is optimistic.")
            before = replace(known, logits=uncalibrated_scores(known, config).sum(0))
            measured = compute_calibration_metrics(before.logits, known.labels)
            rows.insert(0, ["before", measured])
            result = result | {"temperature": config.temperature, "evidence_scales": scales, "before": measured}
        keys = ("expected_calibration_error", "negative_log_likelihood")
        self.table(
            ["scores", "ECE ↓", "NLL ↓"],
            [[label, percent(row[keys[0]]), f"{row[keys[1]]:.4f}"] for label, row in rows],
        )
        series = {"calibrated" if before else "not calibrated": (self.correct, self.confidence)}
        if before is not None:
            series = {"before": (before.predictions == known.labels, before.confidence()), **series}
        self.plot(self.plots.plot_calibration(series), "calibration.png", "Reliability diagram")
        self.results["calibration"] = result

    def write_oos(self, detectors: list[OutOfScopeDetector]):
        in_scope, results = self.outputs.labels >= 0, self.results
        if not detectors and in_scope.all():
            return
        unfitted = ["energy", "msp", "max_logit"] + ["label_similarity"] * (self.outputs.label_embeds is not None)
        given = {detector.method for detector in detectors}
        detectors = [*detectors, *(OutOfScopeDetector(method) for method in unfitted if method not in given)]
        scores = {detector.method: detector.score(self.outputs.as_model_outputs()).numpy() for detector in detectors}
        first, accepted = detectors[0], None
        self.add("## Out of scope")
        if first.threshold is not None:
            accepted = first.predict(self.outputs.as_model_outputs()).numpy()
            results["kept_in_scope"] = float(accepted[in_scope].mean())
            self.add(
                f"The threshold of `{first.method}` is {first.threshold:.4g}; it was set to keep {100 * first.keep:g} % of "
                f"the in-scope dev clips and keeps {percent(results['kept_in_scope'])} % of these."
            )
        if in_scope.all():
            self.add("There is no out-of-scope clip in this split to score detection on.")
            return
        detection = {method: compute_oos_metrics(values, in_scope) for method, values in scores.items()}
        results["oos_detection"] = detection
        header = [f"{label} {'↓' if key in _LOWER_IS_BETTER else '↑'}" for key, label in OOS_METRICS.items()]
        rows = [[f"`{method}`", *(percent(row[key]) for key in OOS_METRICS)] for method, row in detection.items()]
        self.table(["score", *header], rows)
        if accepted is not None:
            self._write_open(accepted, in_scope)
        figure = self.plots.plot_oos_scores(scores[first.method], in_scope, first.method, first.threshold)
        self.plot(figure, "oos_scores.png", "Out-of-scope scores of both kinds of clips")
        self.plot(self.plots.plot_roc(scores, in_scope), "oos_roc.png", "ROC curves of out-of-scope detection")

    def _write_open(self, accepted: np.ndarray, in_scope: np.ndarray):
        predictions = np.where(accepted, self.outputs.predictions, OUT_OF_SCOPE_ID)
        metrics = compute_open_classification_metrics(predictions, self.outputs.labels)
        caught = float(1 - accepted[~in_scope].mean())
        self.results |= {"open_classification": metrics, "caught_out_of_scope": caught}
        self.add(
            f"It catches {percent(caught)} % of the out-of-scope clips.",
            "Known intents and one open class for what the detector rejects:",
        )
        header = [f"{label} ↑" for label in OPEN_METRICS.values()]
        self.table(header, [[percent(metrics[key]) for key in OPEN_METRICS]], left=0)

    def write_mistakes(self):
        known, names = self.known, self.names
        wrong = [number for number in self.surest_first if not self.correct[number]]
        self.add("## The most confident mistakes")
        if not wrong:
            self.add("There are none: every answer is correct.")
            return
        rows = []
        for number in wrong[:_MISTAKES_SHOWN]:
            label, prediction = names[known.labels[number]], names[known.predictions[number]]
            cells = [known.ids[number], known.texts[number], label, prediction, self._describe_anchors(number)]
            rows.append([*map(escape_markdown, cells), f"{100 * self.confidence[number]:.1f}"])
        self.table(["clip", "text", "intent", "prediction", "anchors, best first", "confidence"], rows, left=5)

    def write_map(self):
        outputs, described = self.outputs, self.outputs.label_embeds is not None
        if len(outputs) + (len(self.names) if described else 0) < 4:
            return
        figure = self.plots.plot_embeddings(
            outputs.multimodal_embeds, outputs.labels, self.names, outputs.label_embeds
        )
        self.add("## Map of embeddings")
        descriptions = " and the label descriptions" if described else ""
        self.plot(figure, "embeddings.png", f"Map of the clips' embeddings{descriptions}")

    def write_anchors(self):
        right = [number for number in self.surest_first if self.correct[number]]
        wrong = [number for number in self.surest_first if not self.correct[number]]
        self.add(
            "## Anchors",
            "The words and frames that the model chose as anchors, for the most confident correct answer, the least "
            "confident correct answer, and the most confident mistake. Anchors on special tokens and earlier turns are not "
            "shown.",
        )
        shown = {"surest_right": right[:1], "least_sure_right": right[1:][-1:], "surest_mistake": wrong[:1]}
        for kind, number in ((kind, number) for kind, numbers in shown.items() for number in numbers):
            label, prediction = self.names[self.known.labels[number]], self.names[self.known.predictions[number]]
            verdict = label if label == prediction else f"{label}, taken for {prediction}"
            title = f"{self.known.ids[number]}: {verdict} ({100 * self.confidence[number]:.0f} %)"
            row = self.clips[int(number)]
            figure = self.plots.plot_anchors(title, self._words(number), self._tracks(number), _duration(row))
            self.plot(figure, f"anchors_{kind}.png", title)

    def write_evidence(self, spans: Mapping[str, Mapping[str, tuple[int, int, int]]]):
        metrics = self.results["anchors"] = compute_anchor_metrics(self.known, spans)
        self.add(
            "## Anchors and evidence",
            "Where the evidence of a clip is known: how often its best anchor lies there, which share of all its anchors "
            "does, and the share of its frames that do (chance). In percent.",
        )
        keys = ("best_anchor", "all_anchors", "chance")
        rows = [[name, row["clips"], *(percent(row[key]) for key in keys)] for name, row in metrics.items()]
        self.table(["modality", "clips", "best anchor ↑", "all anchors ↑", "chance"], rows)

    def _anchors(self, number: int, modality: str):
        """[(position, score)] of a clip, best first."""
        if self.known.anchor_indices is None:
            return []
        row = MODALITIES.index(modality)
        return scored_anchors(self.known.anchor_indices[number, row], self.known.anchor_scores[number, row])

    def _words(self, number: int):
        """[(word, score of its best anchor or None)] of the utterance, in order."""
        processor, context = self.processor, self.clips[int(number)].get("context") or ()
        text, limit, prefix = self.known.texts[number], processor.max_text_length, processor.text_prefix
        encoding = encode_text(processor.tokenizer, text, context, limit, prefix)
        words = utterance_words(text, self._anchors(number, "text"), (encoding.encodings or [None])[0], prefix)
        return [(word["word"], word["score"]) for word in words]

    def _tracks(self, number: int):
        """Audio and video for `plot_anchors`, anchors in seconds or in percent of the clip."""
        row, tracks = self.clips[int(number)], []
        for modality in FEATURE_MODALITIES:
            size = getattr(self.processor, f"{modality}_feature_size")
            if size:
                values = row.get(f"{modality}_features")
                frames = np.asarray(() if values is None else values, dtype=np.float32).reshape(-1, size)
                frames = frames[: getattr(self.processor, f"max_{modality}_length")]
                anchors = anchor_spans(self._anchors(number, modality), len(frames) / (_duration(row) or 100.0))
                tracks.append({"modality": modality, "frames": frames, "anchors": anchors})
        return tracks

    def _describe_anchors(self, number: int):
        """`great, again · audio 0.4 s, 1.8 s · video 66 %`."""
        chosen = [(word, score) for word, score in self._words(number) if score is not None]
        best = sorted(chosen, key=lambda pair: -pair[1])[:_ANCHORS_SHOWN]
        parts = [", ".join(word.strip(".,;:!?") or word for word, _ in best)] if best else []
        form = "{:.1f} s" if _duration(self.clips[int(number)]) else "{:.0f} %"
        for track in self._tracks(number):
            middles = [(anchor["start"] + anchor["end"]) / 2 for anchor in track["anchors"][:_ANCHORS_SHOWN]]
            if middles:
                parts.append(f"{track['modality']} {', '.join(map(form.format, middles))}")
        return " · ".join(parts) or "–"


def _duration(row: Mapping):
    """Seconds of a clip, `None` where the data set does not say."""
    start, end = row.get("start"), row.get("end")
    return float(end - start) if start is not None and end is not None and end > start else None
