"""What the figures and modalities are called where people read them."""

MODALITY_NAMES = {"text": "words", "audio": "sound", "video": "picture"}

MAIN_FIGURES = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
}
OOS_FIGURES = {
    "auroc": "AUROC",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95": "FPR95",
    "eer": "EER",
    "der": "DER",
}
OPEN_FIGURES = {"accuracy": "accuracy", "f1_known": "F1-known", "f1_open": "F1-open", "f1": "F1"}
