"""The field's figures as `evaluate` modules and as plain functions.

Each folder is a module of its own: `evaluate.load(METRICS_DIR + "/oos_detection")` loads it by path, and it can be
copied to a Space as it is. The functions in it do the work and are re-exported here.
"""

import os

from .intent_classification.intent_classification import IntentClassification, compute_classification_metrics
from .oos_detection.oos_detection import OOSDetection, compute_oos_metrics
from .open_intent_classification.open_intent_classification import (
    OpenIntentClassification,
    compute_open_classification_metrics,
)


METRICS_DIR = os.path.dirname(os.path.abspath(__file__))


__all__ = [
    "METRICS_DIR",
    "IntentClassification",
    "OOSDetection",
    "OpenIntentClassification",
    "compute_classification_metrics",
    "compute_oos_metrics",
    "compute_open_classification_metrics",
]
