"""The metrics as a module for `evaluate`, a configuration for each: `evaluate.load(FOLDER, "oos_detection")`."""

import inspect
from typing import Any

import datasets
import evaluate

from amess_hf.datasets_amess import DATASETS
from amess_hf.evaluation import metrics


# Configuration -> function, type of a prediction (rounding scores to float32 would make ties).
METRICS = {
    "intent_classification": (metrics.compute_classification_metrics, "int64"),
    "open_intent_classification": (metrics.compute_open_classification_metrics, "int64"),
    "oos_detection": (metrics.compute_oos_metrics, "float64"),
}


class _IntentMetric(evaluate.Metric):
    """One prediction and one reference for each clip."""

    def _info(self):
        if self.config_name not in METRICS:
            raise KeyError(f"give one of {', '.join(METRICS)} as the second argument of `evaluate.load`")
        self.function, prediction_type = METRICS[self.config_name]
        return evaluate.MetricInfo(
            description=inspect.getdoc(self.function).partition("\n")[0],
            citation=DATASETS["mintrec2.0"].citation,
            inputs_description=inspect.getdoc(self.function),
            features=datasets.Features(
                {"predictions": datasets.Value(prediction_type), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/thuiar/MIntRec2.0/blob/main/utils/metrics.py"],
        )

    def _compute(self, predictions: list, references: list, **options: Any) -> dict:
        return self.function(predictions, references, **options)
