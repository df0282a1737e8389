"""Scoring, reports and model cards. Figures need the `report` extra (`pip install "amess_hf[report]"`)."""

from .metrics import compute_classification_metrics, compute_oos_metrics, compute_open_classification_metrics


__all__ = ["compute_classification_metrics", "compute_oos_metrics", "compute_open_classification_metrics"]
