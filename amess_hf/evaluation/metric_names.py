"""What metrics and modalities are called where people read them: key -> name."""

MODALITY_NAMES = {"text": "words", "audio": "sound", "video": "picture"}

CLASSIFICATION_METRICS = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
}
OOS_METRICS = {
    "auroc": "AUROC",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95": "FPR95",
    "eer": "EER",
    "der": "DER",
}
OPEN_METRICS = {"accuracy": "accuracy", "f1_known": "F1-known", "f1_open": "F1-open", "f1": "F1"}
