"""The field's metrics, as plain functions and as modules for `evaluate`.

The functions are in `classification.py` and `oos.py`. Each folder is a module for `evaluate` that calls one of them:
`evaluate.load(METRICS_DIR + "/oos_detection")` loads it by its path.
"""

import os

from .classification import (
    compute_classification_metrics,
    compute_open_classification_metrics,
    generalized_accuracy,
    in_scope_metrics,
)
from .oos import compute_oos_metrics


METRICS_DIR = os.path.dirname(os.path.abspath(__file__))


__all__ = [
    "METRICS_DIR",
    "compute_classification_metrics",
    "compute_oos_metrics",
    "compute_open_classification_metrics",
    "generalized_accuracy",
    "in_scope_metrics",
]
