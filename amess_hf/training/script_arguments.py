"""Arguments of the training scripts, apart from those of the Trainer."""

from dataclasses import dataclass, field, fields


def _config_field(help_text):
    """A field of the model's configuration; `None` keeps the configuration's own default."""
    return field(default=None, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """Which model to start from, and the fields of [`AMESSConfig`] to set."""

    text_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained text encoder to train from: a Hub repository or a folder."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A saved A-MESS model to evaluate or to train further."}
    )
    freeze_word_embeddings: bool = field(
        default=True, metadata={"help": "Keep the text encoder's word embeddings as they were pretrained."}
    )
    fusion_type: str | None = _config_field(
        "anchor (A-ME), cross_modal, mean or text; text if the data has words alone."
    )
    num_anchors: int | None = _config_field("Anchors of each modality.")
    num_fusion_layers: int | None = _config_field("Fusion layers.")
    hidden_size: int | None = _config_field("Width of the fusion module.")
    projection_dim: int | None = _config_field("Width of the space that clips and descriptions share.")
    dropout: float | None = _config_field("Dropout of the fusion module and before the classifier.")
    modality_dropout: float | None = _config_field("Share of training clips of which one modality is masked.")
    triplet_margin: float | None = _config_field("Margin of the triplet losses, in cosine similarity.")
    label_triplet_loss_weight: float | None = _config_field("Weight of the triplet of clip and descriptions.")
    label_contrastive_loss_weight: float | None = _config_field("Weight of the softmax over descriptions.")
    batch_triplet_loss_weight: float | None = _config_field("Weight of the triplets between clips.")
    consistency_loss_weight: float | None = _config_field("Weight of the divergence between two dropout passes.")
    outlier_exposure_loss_weight: float | None = _config_field("Weight of the uniform target of out-of-scope clips.")
    label_smoothing: float | None = _config_field("Label smoothing of the cross-entropy.")
    label_similarity_weight: float | None = _config_field("Share of the descriptions in the answer, 0 to 1.")
    max_text_length: int | None = _config_field("Tokens of an utterance; the data set's usual limit if not given.")
    max_audio_length: int | None = _config_field("Audio frames; the data set's usual limit if not given.")
    max_video_length: int | None = _config_field("Video frames; the data set's usual limit if not given.")

    def config_fields(self):
        """The fields of [`AMESSConfig`] that were given, by name."""
        others = ("text_model_name_or_path", "model_name_or_path", "freeze_word_embeddings")
        names = [item.name for item in fields(self) if item.name not in others]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class DataArguments:
    """Which clips to train on and to evaluate."""

    dataset_name: str = field(
        default="mintrec",
        metadata={
            "help": "mintrec, mintrec2.0, folder or organization/name on the Hub; several, with a comma between."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the data set; several, with a comma between, in the same order."}
    )
    audio_features: str | None = field(default=None, metadata={"help": "Name or path of audio features, or none."})
    video_features: str | None = field(default=None, metadata={"help": "Name or path of video features, or none."})
    audio_encoder: str | None = field(
        default=None, metadata={"help": "Make audio features from raw clips: log-mel, or a model on the Hub."}
    )
    video_encoder: str | None = field(
        default=None, metadata={"help": "Make video features from raw clips: frame-difference, or a model on the Hub."}
    )
    allow_missing_features: bool = field(
        default=False, metadata={"help": "Treat a clip without features as one without sound or picture."}
    )
    label_granularity: str = field(default="fine", metadata={"help": "fine (the intents) or coarse (Emotion, Goal)."})
    label_descriptions: str | None = field(
        default=None, metadata={"help": "JSON with descriptions of the intents; those shipped if not given."}
    )
    context_turns: int | None = field(
        default=None,
        metadata={"help": "Earlier turns of the dialogue to read too; by default none, or those of a saved model."},
    )
    hold_out_intents: str | None = field(
        default=None, metadata={"help": "Intents to leave out of training, with a comma between; evaluated as unseen."}
    )
    train_clips_per_intent: int | None = field(
        default=None, metadata={"help": "Train on this many clips of each intent only."}
    )
    out_of_scope_clips: bool = field(
        default=False,
        metadata={"help": "Load the data set's out-of-scope clips too: for the report, and for outlier exposure."},
    )
    detector: str | None = field(
        default=None,
        metadata={"help": "Fit this out-of-scope score on the training clips and save the detector with the model."},
    )
    report: bool = field(default=False, metadata={"help": "Write report/ with tables and figures."})
    seeds: str | None = field(
        default=None, metadata={"help": "Train once for each seed, with a comma between, and aggregate."}
    )
