"""Metrics, predictions, reports and model cards. Plots and cards need the `report` extra: `pip install "amess_hf[report]"`."""

from .calibration import calibrate
from .metrics import compute_classification_metrics, compute_oos_metrics, compute_open_classification_metrics
from .model_card import create_model_card, name_repository
from .prediction import (
    ClipOutputs,
    compute_anchor_metrics,
    modality_table,
    predict_clips,
    predict_masked,
    read_evidence_spans,
)
from .reporting import fit_detectors, report


__all__ = [
    "ClipOutputs",
    "calibrate",
    "compute_anchor_metrics",
    "compute_classification_metrics",
    "compute_oos_metrics",
    "compute_open_classification_metrics",
    "create_model_card",
    "fit_detectors",
    "modality_table",
    "name_repository",
    "predict_clips",
    "predict_masked",
    "read_evidence_spans",
    "report",
]
