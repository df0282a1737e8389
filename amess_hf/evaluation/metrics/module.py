"""What the modules for `evaluate` share: a base class that reads their card from the class itself."""

import inspect
from typing import ClassVar

import datasets
import evaluate

from ..model_card import DATASETS


class ClipMetric(evaluate.Metric):
    """One prediction and one reference for each clip; a subclass documents itself and has `_compute`.

    `evaluate.load` takes the first class in a module for the metric: import this module, not the class from it.

    Attributes:
        prediction_type (`str`): The type of a prediction, as `datasets` names it.
    """

    prediction_type: ClassVar[str] = "int64"

    def _info(self):
        documentation = inspect.cleandoc(type(self).__doc__)
        return evaluate.MetricInfo(
            description=documentation.partition("\n\n")[0],
            citation=DATASETS["mintrec2.0"]["citation"],
            inputs_description=documentation,
            features=datasets.Features(
                {"predictions": datasets.Value(self.prediction_type), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/thuiar/MIntRec2.0/blob/main/utils/metrics.py"],
        )
