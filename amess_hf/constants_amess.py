"""Names and numbers that several modules have to agree on; each is defined only here."""

# In the order in which a model's outputs list them (`anchor_indices`, `anchor_scores`).
MODALITIES = ("text", "audio", "video")
# Modalities that come as frames of features; the words come as tokens.
FEATURE_MODALITIES = ("audio", "video")

# A clip that has none of the known intents: its label id, and its label's name in tables and answers.
OUT_OF_SCOPE_ID = -1
OUT_OF_SCOPE_LABEL = "UNK"
# Label of a row that only pads a batch: it is not a clip, counts in no loss, and is not out of scope either.
IGNORED_LABEL_ID = -100
# In `anchor_indices`: no anchor, because the modality is absent or has fewer tokens than anchors.
NO_ANCHOR = -1

# File extensions that are recognised as clips.
CLIP_SUFFIXES = (
    *(".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".wmv", ".asf", ".flv", ".mpg", ".mpeg", ".ts", ".3gp"),
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aiff"),
)

# Parts of the loss, as the classifier's outputs and the training log name them.
LOSS_PARTS = (
    "classification_loss",
    "text_loss",
    "audio_loss",
    "video_loss",
    "label_triplet_loss",
    "label_contrastive_loss",
    "batch_triplet_loss",
    "consistency_loss",
    "outlier_exposure_loss",
    "distillation_loss",
)

# Training draws from this many of a label's sentences, the first ones, which say what the intent is. The stored
# embedding is the mean of all. On MIntRec, also drawing from 24 bare example utterances gave 67.9 ± 0.8 on dev instead
# of 68.8 ± 0.2 (three seeds), and including them only in the mean raised the accuracy on unseen intents from 8 to 18 %
# (one seed; combined answer).
TRAINING_SENTENCES = 9
