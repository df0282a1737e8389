"""Base class of the modules for `evaluate`: a metric that calls a function and uses its docstring."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate

from ..model_card import DATASETS


class ClipMetric(evaluate.Metric):
    """One prediction and one reference for each clip.

    `evaluate.load` takes the first class in a module for the metric: import this module there, not the class from it.

    Attributes:
        function (`Callable`): Takes the predictions, the references and further options; gives the metrics.
        prediction_type (`str`): The type of a prediction, as `datasets` names it.
    """

    function: ClassVar[Callable[..., dict]]
    prediction_type: ClassVar[str] = "int64"

    def _info(self):
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)),
            citation=DATASETS["mintrec2.0"]["citation"],
            inputs_description=inspect.getdoc(self.function),
            features=datasets.Features(
                {"predictions": datasets.Value(self.prediction_type), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/thuiar/MIntRec2.0/blob/main/utils/metrics.py"],
        )

    def _compute(self, predictions: list, references: list, **options: Any) -> dict:
        return self.function(predictions, references, **options)
