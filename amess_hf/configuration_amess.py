"""A-MESS model configuration, and the names and numbers that several modules agree on."""

import copy
import difflib
import functools
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging
from transformers.utils.type_validators import interval


logger = logging.get_logger(__name__)

# In the order in which a model's outputs list them (`anchor_indices`, `anchor_scores`).
MODALITIES = ("text", "audio", "video")
# Modalities that come as frames of features; text comes as tokens.
FEATURE_MODALITIES = ("audio", "video")

# A clip that has none of the known intents: its label id, and its label's name in tables and answers.
OUT_OF_SCOPE_ID = -1
OUT_OF_SCOPE_LABEL = "UNK"
# Label of a row that only pads a batch: no loss counts it, and it is not out of scope either.
IGNORED_LABEL_ID = -100
# In `anchor_indices`: no anchor, because the modality is absent or has fewer tokens than anchors.
NO_ANCHOR = -1

# File extensions that are recognized as clips.
CLIP_SUFFIXES = (
    *(".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".wmv", ".asf", ".flv", ".mpg", ".mpeg", ".ts", ".3gp"),
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aiff"),
)

# Parts of the loss, as the classifier's outputs and the training log name them.
# The clips that the losses are means over: `outlier_exposure_loss` over those out of scope, the losses of a modality over
# those with a label that have it, the others over those with a label.
LOSS_ITEMS = ("labelled", "out_of_scope", *MODALITIES)
LOSS_PARTS = tuple(
    f"{name}_loss"
    for name in (
        "classification text audio video label_triplet label_contrastive batch_triplet consistency outlier_exposure "
        "distillation"
    ).split()
)

# Training draws from this many of a label's sentences, the first ones, which say what the intent is. The stored
# embedding is the mean of all. On MIntRec, also drawing from 24 bare example utterances gave 67.9 ± 0.8 on dev instead
# of 68.8 ± 0.2 (three seeds), and including them only in the mean raised the accuracy on unseen intents from 8 to 18 %
# (one seed; combined answer).
TRAINING_SENTENCES = 9

# Written into every saved config: the only format that this version reads.
FORMAT_VERSION = 3

# Frames of a clip that are kept where a feature configuration does not say; those of the published experiments on MIntRec.
MAX_LENGTHS = {"audio": 480, "video": 230}

FUSION_TYPES = ("anchor", "cross_modal", "late", "mean", "text")
POOLINGS = ("logsumexp", "statistics")
NORMS = ("frame", "clip")
TEXT_POOLINGS = ("mean", "cls", "last")  # as sentence-transformers names them

# Saved with every config: where the Auto classes and `pipeline` find this code in a checkpoint's folder. transformers
# itself writes (`register_for_auto_class`) one entry for each class, and none for a pipeline.
REMOTE_CODE = {
    "auto_map": {
        "AutoConfig": "configuration_amess.AMESSConfig",
        "AutoModel": "modeling_amess.AMESSModel",
        "AutoModelForSequenceClassification": "modeling_amess.AMESSForIntentClassification",
        "AutoProcessor": "processing_amess.AMESSProcessor",
    },
    "custom_pipelines": {
        "intent-recognition": {
            "impl": "pipeline_amess.IntentRecognitionPipeline",
            "pt": ["AutoModelForSequenceClassification"],
        }
    },
}

# Text encoders that number positions from the padding token's id on, and so take fewer tokens than they have positions.
_OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
}  # fmt: skip

# Encoder-decoders for which transformers has an encoder-only model.
ENCODER_ONLY = {"t5", "mt5", "umt5"}


def text_positions(text_config: PreTrainedConfig) -> int | float:
    """Return the maximum number of tokens that a text encoder takes, `math.inf` where there is no limit."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return math.inf
    return positions - (text_config.pad_token_id + 1 if text_config.model_type in _OFFSET_POSITIONS else 0)


def check_text_config(config: PreTrainedConfig, name: str) -> None:
    """Raise a `ValueError` that begins with `name` if a configuration is not that of a text encoder."""
    sizes = {"num_hidden_layers": 1024, "hidden_size": 2**16, "vocab_size": 2**24}
    for field, largest in sizes.items():
        value = getattr(config, field, 1)
        if isinstance(value, int) and value > largest:
            raise ValueError(f"{name} has a `{field}` of {value}; it must be at most {largest}")
    if config.model_type == "amess":
        raise ValueError(
            f"{name} is an A-MESS model, not a text encoder; load it with `from_pretrained` (`--model_name_or_path`) to "
            "train it further"
        )
    if getattr(config, "is_encoder_decoder", False) and config.model_type not in ENCODER_ONLY:
        raise ValueError(
            f"{name} is a {config.model_type} model with a decoder; give an encoder without a decoder, or one of "
            f"{', '.join(sorted(ENCODER_ONLY))}, whose encoder is used"
        )


# Upper limits keep a damaged or hostile checkpoint from taking all memory.
_count = interval(min=1, max=2**20)
_few = interval(min=1, max=1024)
_share = interval(min=0, max=1)
_non_negative = interval(min=0, max=math.inf, exclude_max=True)


@as_validated_field
def _optional_count(value: int | None):
    if value is not None and not 1 <= value <= 2**20:
        raise ValueError(f"Value must be None, or from 1 to {2**20}, got {value}.")


def _plain_errors(cls: type) -> type:
    """Make the checks of `@strict` raise a `ValueError` in one line that names the field."""
    set_strictly, validate_strictly = cls.__setattr__, cls.validate

    @functools.wraps(set_strictly)
    def __setattr__(self: Any, name: str, value: Any):
        try:
            set_strictly(self, name, value)
        except StrictDataclassFieldValidationError as error:
            problem = str(error.__cause__).split(". Errors: ")[0].rstrip(".")
            raise ValueError(f"`{name}`: {problem[0].lower()}{problem[1:]}") from None

    @functools.wraps(validate_strictly)
    def validate(self: Any):
        try:
            validate_strictly(self)
        except StrictDataclassClassValidationError as error:
            raise error.__cause__ from None

    cls.__setattr__, cls.validate = __setattr__, validate
    return cls


def _require(config: PreTrainedConfig, name: str, holds: Any, allowed: str, value: Any = None):
    """Raise a `ValueError` that names the field, its value and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"`{name}` is {getattr(config, name) if value is None else value!r}; it must be {allowed}")


def check_field_names(config_class: type, names: Iterable[str]) -> None:
    """Raise a `ValueError` that names the first of `names` which is no field of a configuration class, and the nearest one."""
    allowed = config_class.__dataclass_fields__.keys() | {"transformers_version"}
    for name in names:
        if name not in allowed and not name.startswith("_") and not hasattr(PreTrainedConfig, name):
            near = difflib.get_close_matches(name, config_class.__annotations__, 1)
            raise ValueError(
                f"`{name}` is no field of the configuration{f'; did you mean `{near[0]}`?' if near else ''}"
            )


@_plain_errors
@strict
class AMESSFeatureConfig(PreTrainedConfig):
    r"""What the model makes of the frames of one modality, audio or video.

    Args:
        feature_size (`int`):
            Width of a frame's features, e.g. 768 for WavLM, 256 for Swin ROI.
        max_length (`int`, *optional*, defaults to 480 for audio and 230 for video):
            Frames of a clip; longer ones are cut by the collator.
        norm (`str`, *optional*, defaults to `"frame"`):
            `"frame"` normalizes each frame over its numbers, `"clip"` each number over the frames of the clip.
        num_conv_layers (`int`, *optional*, defaults to 0):
            Temporal convolutions over the frames, each of which halves the number of tokens.
        conv_kernel_size (`int`, *optional*, defaults to 5):
            Frames that a temporal convolution sees at once; odd.
        grid_side (`int`, *optional*):
            Side (at least 5) of the square grid that each frame is, whose local patterns a convolution reads; `None` where
            features are not grids.
        max_shift (`int`, *optional*, defaults to 0):
            Places at most by which training moves a clip's grids across and down or, without `grid_side`, the bands of its
            filterbank up or down.
        pooling (`str`, *optional*, defaults to `"logsumexp"`):
            How the evidence is pooled over time: `"logsumexp"` of the votes of the frames, or `"statistics"` (mean,
            deviation and maximum).
        encoder (`str`, *optional*):
            What makes the features from a clip: a Hub model, `"log-mel"` (audio), `"hog"` or `"hog-grid"` (video), or `None`
            where that is not known.
        encoder_layer (`int`, *optional*):
            The layer of `encoder` whose states they are, 1 for the first; `None` for its output.

    Raises:
        `ValueError`: If a field is unknown or has a value that is not allowed.
    """

    model_type = "amess_features"

    feature_size: int | None = _optional_count(default=None)
    max_length: int | None = _optional_count(default=None)
    norm: str = "frame"
    num_conv_layers: int = interval(min=0, max=8)(default=0)
    conv_kernel_size: int = _few(default=5)
    grid_side: int | None = _optional_count(default=None)
    max_shift: int = interval(min=0, max=1024)(default=0)
    pooling: str = "logsumexp"
    encoder: str | None = None
    encoder_layer: int | None = _optional_count(default=None)

    def __post_init__(self, **kwargs: Any):
        check_field_names(AMESSFeatureConfig, kwargs)
        super().__post_init__(**kwargs)

    @property
    def frames_per_token(self) -> int:
        """Frames that the temporal convolutions turn into one token."""
        return 2**self.num_conv_layers

    def validate_architecture(self) -> None:
        """Raise a `ValueError` that names the first field whose value is not allowed."""
        _require(self, "norm", self.norm in NORMS, f"one of {', '.join(NORMS)}")
        _require(self, "pooling", self.pooling in POOLINGS, f"one of {', '.join(POOLINGS)}")
        _require(self, "conv_kernel_size", self.conv_kernel_size % 2, "an odd number")
        side, size = self.grid_side, self.feature_size
        if side:
            _require(
                self, "grid_side", side >= 5, "at least 5 (convolutions shrink the grid to a quarter of its side)"
            )
            divides = not (size and size % side**2)
            _require(self, "grid_side", divides, f"the side of a grid: its square divides `feature_size` ({size})")


@_plain_errors
@strict
class AMESSConfig(PreTrainedConfig):
    r"""Configuration of [`AMESSModel`] and [`AMESSForIntentClassification`] (A-MESS, arXiv 2503.19474).

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a BERT config):
            The text encoder's configuration; a dict names its `model_type`.
        audio_config, video_config ([`AMESSFeatureConfig`] or `dict`, *optional*):
            The features of each modality; `None`: the model does not take it.
        max_text_length (`int`, *optional*, defaults to 30):
            Tokens of an utterance, its dialogue context included; longer ones are cut by the collator. At most as many
            as the text encoder has positions for.
        hidden_size (`int`, *optional*, defaults to 128):
            Width of the fusion module (the text encoder keeps its own).
        intermediate_size (`int`, *optional*, defaults to 256):
            Width of the fusion layers' feed-forward part.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Attention heads of a fusion layer.
        num_fusion_layers (`int`, *optional*, defaults to 2):
            Fusion layers.
        num_anchors (`int`, *optional*, defaults to 8):
            Anchors chosen in each modality.
        fusion_type (`str`, *optional*, defaults to `"anchor"`):
            `"anchor"` (A-ME), `"late"` (a classifier for each modality, log-probabilities added), `"cross_modal"` (pairwise
            cross-modal attention, as in MulT), `"mean"` (pooling, concatenation, MLP) or `"text"` (no fusion).
        modality_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the separate cross-entropies of text, audio and video (`fusion_type` `"anchor"` and `"late"`).
        projection_dim (`int`, *optional*, defaults to 256):
            Width of `multimodal_embeds` and `label_embeds`; 0 means no projection: they stay in the text encoder's own
            space.
        dropout (`float`, *optional*, defaults to 0.3):
            Dropout of the fusion module and before the classifier.
        modality_dropout (`float`, *optional*, defaults to 0.1):
            In training, the share of clips of which one modality, drawn at random, is masked.
            Nothing is masked in a text-only model, nor where a clip would have no modality left.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the fusion module's layer normalizations.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Deviation of the normal distribution that initializes new weights.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            Logarithm of the initial scale (1 / temperature) of similarities; 2.6592 is a temperature of 0.07.
        triplet_margin (`float`, *optional*, defaults to 0.2):
            Margin of both triplet losses, in cosine similarity.
        label_triplet_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the margin triplet (clip, own description, hardest other description).
        label_contrastive_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the softmax over all descriptions.
        batch_triplet_loss_weight (`float`, *optional*, defaults to 0.1):
            Weight of the triplets between clips of a batch.
        consistency_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of R-Drop (arXiv 2106.14448), the divergence between two dropout passes of the same clip. Above
            zero, a training step costs two forward passes.
        outlier_exposure_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the cross-entropy to the uniform distribution on out-of-scope training clips (label -1;
            Outlier Exposure, arXiv 1812.04606).
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the text's cross-entropy, and of that of all modalities together except where a fusion adds
            the evidence of audio and video (`"anchor"`, `"late"`).
        label_similarity_weight (`float`, *optional*, defaults to 0.3):
            Share of the similarity to descriptions in the logits at inference: 0 is the classifier alone, 1 the
            similarity alone.
        distillation_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the divergence from a teacher's answers, where training clips come with them (`teacher_logits`).
        distillation_temperature (`float`, *optional*, defaults to 2.0):
            Temperature that softens both answers (arXiv 1503.02531).
        text_pooling (`str`, *optional*, defaults to `"mean"`):
            How the text encoder's tokens are pooled: their `"mean"`, or the `"cls"` (first) or the `"last"` one.
        text_prefix (`str`, *optional*):
            What the text encoder expects before an utterance, such as `"query: "`; it is neither summarized nor fused.
        description_prefix (`str`, *optional*):
            The same before a label's description.
        text_adapter (`dict`, *optional*):
            Fields of the `peft.LoraConfig` of an adapter in the text encoder; see `text_encoders_amess.py`.
        context_turns (`int`, *optional*, defaults to 0):
            Earlier turns of the dialogue that the model was trained to read before an utterance.
        label_descriptions (`dict[str, list[str]]`, *optional*):
            Sentences that describe each label.
        described_labels (`list[str]`, *optional*):
            Labels that the classifier has not been trained on; they are scored by their descriptions alone.
        described_offset (`float`, *optional*, defaults to 0.0):
            What is added to the scaled similarities of `described_labels`, so that trained labels do not outweigh
            them; [`~AMESSForIntentClassification.set_label_descriptions`] finds it.
        temperature (`float`, *optional*, defaults to 1.0):
            Divisor of the logits at inference; [`~amess_hf.evaluation.calibrate`] fits it, with the next two.
        evidence_scales (`list[float]`, *optional*):
            Factors of the evidence of audio and of video at inference, in this order; `None`: 1.
        coverage_thresholds (`list[float]`, *optional*):
            Entry k - 1: the probability from which on an intent is in the set that holds the right one in k % of the
            clips; as many entries, at most 99, as the dev clips sufficed for.

    Raises:
        `ValueError`: If a field has a value that is not allowed; the message names the field, its value and the
        allowed ones.

    Example:
    ```python
    >>> from amess_hf import AMESSConfig, AMESSModel

    >>> config = AMESSConfig(audio_config={"feature_size": 768}, video_config={"feature_size": 256})
    >>> model = AMESSModel(config)
    ```
    """

    model_type = "amess"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
        "audio_config": SubConfigSpec(config_class=AMESSFeatureConfig, optional=True),
        "video_config": SubConfigSpec(config_class=AMESSFeatureConfig, optional=True),
    }

    # Outputs that an evaluation loop does not need to gather from the processes for each clip.
    keys_to_ignore_at_inference = [
        *("multimodal_embeds", "label_embeds", "pooler_output", "text_pooler_output", "hidden_states", "attentions"),
        *("anchor_indices", "anchor_scores", "evidence", "modality_mask"),
        *LOSS_PARTS,
    ]

    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    video_config: dict | PreTrainedConfig | None = None
    max_text_length: int = _count(default=30)
    hidden_size: int = _count(default=128)
    intermediate_size: int = _count(default=256)
    num_attention_heads: int = _few(default=4)
    num_fusion_layers: int = _few(default=2)
    num_anchors: int = _few(default=8)
    fusion_type: str = "anchor"
    modality_loss_weight: float | int = _non_negative(default=1.0)
    projection_dim: int = interval(min=0, max=2**20)(default=256)
    dropout: float | int = _share(default=0.3)
    modality_dropout: float | int = _share(default=0.1)
    layer_norm_eps: float | int = _non_negative(default=1e-5)
    initializer_range: float | int = _non_negative(default=0.02)
    logit_scale_init_value: float | int = interval(min=-10, max=10)(default=2.6592)
    triplet_margin: float | int = _non_negative(default=0.2)
    label_triplet_loss_weight: float | int = _non_negative(default=1.0)
    label_contrastive_loss_weight: float | int = _non_negative(default=1.0)
    batch_triplet_loss_weight: float | int = _non_negative(default=0.1)
    consistency_loss_weight: float | int = _non_negative(default=0.0)
    outlier_exposure_loss_weight: float | int = _non_negative(default=0.0)
    label_smoothing: float | int = _share(default=0.1)
    label_similarity_weight: float | int = _share(default=0.3)
    distillation_loss_weight: float | int = _non_negative(default=1.0)
    distillation_temperature: float | int = interval(min=0.01, max=100)(default=2.0)
    text_pooling: str = "mean"
    text_prefix: str | None = None
    description_prefix: str | None = None
    text_adapter: dict | None = None
    context_turns: int = interval(min=0, max=1024)(default=0)
    id2label: dict | None = None
    label2id: dict | None = None
    label_descriptions: dict | None = None
    described_labels: list[str] | None = None
    described_offset: float | int = interval(min=-1e6, max=1e6)(default=0.0)
    temperature: float | int = interval(min=0.01, max=100)(default=1.0)
    evidence_scales: list[float] | None = None
    coverage_thresholds: list[float] | None = None

    def __post_init__(self, **kwargs: Any):
        if (version := kwargs.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
            advice = "update amess_hf to load this checkpoint" if version > FORMAT_VERSION else "train the model again"
            raise ValueError(f"`format_version` is {version!r}; it must be {FORMAT_VERSION}; {advice}")
        if not __name__.startswith("transformers_modules."):
            # The installed package has registered all this; transformers asks for `trust_remote_code` where it is set.
            kwargs = {name: value for name, value in kwargs.items() if name not in REMOTE_CODE}
        if self.id2label is None and self.label2id:
            self.id2label = {index: name for name, index in self.label2id.items()}
        known = not isinstance(self.dtype, str) or isinstance(getattr(torch, self.dtype, None), torch.dtype)
        _require(self, "dtype", known, "a type of torch, such as 'float32'")
        named = all(isinstance(name, str) for name in (self.id2label or {}).values())
        _require(self, "id2label", named, "a name, which is text, for each id")
        for modality in FEATURE_MODALITIES:
            self._make_feature_config(modality)
        try:
            super().__post_init__(**kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"`text_config` has a bad value: {' '.join(str(error).split())}") from None
        if self.label2id is None and self.id2label is not None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        positions = text_positions(self.text_config)
        if self.max_text_length > positions:
            logger.warning(f"`max_text_length` becomes {positions}, the number of positions of the text encoder")
            self.max_text_length = positions

    def _make_feature_config(self, modality: str):
        """Complete `audio_config` or `video_config`; an error says which of them it is about."""
        name = f"{modality}_config"
        if (features := getattr(self, name)) is None:
            return
        try:
            features = AMESSFeatureConfig(**features) if isinstance(features, dict) else features
            _require(features, "feature_size", features.feature_size, "the width of a frame's features")
        except (ValueError, TypeError) as error:
            raise ValueError(f"`{name}`: {error}") from None
        features.max_length = features.max_length or MAX_LENGTHS[modality]
        setattr(self, name, features)

    def __eq__(self, other: object):
        # Where a configuration was loaded from, and by which version, does not count.
        if not isinstance(other, AMESSConfig):
            return NotImplemented
        first, second = (
            {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
            for config in (self, other)
        )
        return first == second

    @property
    def feature_configs(self) -> dict[str, AMESSFeatureConfig]:
        """The feature configurations by modality, of those that the model takes."""
        configs = {name: getattr(self, f"{name}_config") for name in FEATURE_MODALITIES}
        return {name: config for name, config in configs.items() if config is not None}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model answers from: text, and with a fusion audio and video."""
        return ("text",) if self.fusion_type == "text" else ("text", *self.feature_configs)

    @property
    def embedding_dim(self) -> int:
        """The width of `multimodal_embeds` and `label_embeds`."""
        return self.projection_dim or self.text_config.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the format, and where the code that reads them is in a checkpoint's folder."""
        fields = super().to_dict()
        if os.path.isabs(fields["text_config"].get("_name_or_path") or ""):
            del fields["text_config"]["_name_or_path"]  # a local folder means nothing on another machine
        for modality in self.feature_configs:
            features = fields[f"{modality}_config"]
            fields[f"{modality}_config"] = {name: features[name] for name in AMESSFeatureConfig.__annotations__}
        return {**fields, "format_version": FORMAT_VERSION, **copy.deepcopy(REMOTE_CODE)}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "AMESSConfig":  # noqa: D417
        """Make a configuration as [`~transformers.PreTrainedConfig.from_dict`] does, and check what `kwargs` changed."""
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made).validate()
        return made

    def rename_labels(self, names: dict[str, str]) -> None:
        """Rename intents in `id2label`, `label2id`, `label_descriptions` and `described_labels`, which have to agree.

        Args:
            names (`dict[str, str]`): The new name of each intent that gets one.

        Raises:
            `ValueError`: If an intent is unknown, or two would have the same name.
        """
        for name in names:
            _require(self, "id2label", name in self.label2id, f"a label set that has {name!r}, to rename it")
        renamed = [names.get(self.id2label[index], self.id2label[index]) for index in sorted(self.id2label)]
        if len(set(renamed)) < len(renamed):
            raise ValueError(f"`names` would give two intents the same name: {', '.join(renamed)}")
        self.id2label = dict(enumerate(renamed))
        self.label2id = {name: index for index, name in enumerate(renamed)}
        if self.label_descriptions is not None:
            self.label_descriptions = {names.get(name, name): s for name, s in self.label_descriptions.items()}
        if self.described_labels is not None:
            self.described_labels = [names.get(name, name) for name in self.described_labels]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the configuration with the model's code, so that the folder loads where the package is not installed.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; created if it does not exist.
            kwargs: As for [`~transformers.PreTrainedConfig.save_pretrained`].

        Raises:
            `ValueError`: If fields contradict one another.
        """
        super().save_pretrained(save_directory, **kwargs)
        for file in Path(__file__).parent.glob("*_amess.py"):
            target = Path(save_directory, file.name)
            if not (target.exists() and os.path.samefile(file, target)):
                shutil.copyfile(file, target)

    def validate_architecture(self) -> None:
        """Raise a `ValueError` that names the first field of sizes, fusion or text encoder whose value is not allowed."""
        _require(self, "fusion_type", self.fusion_type in FUSION_TYPES, f"one of {', '.join(FUSION_TYPES)}")
        heads = self.num_attention_heads
        fits = self.hidden_size % heads == 0
        _require(self, "hidden_size", fits, f"a multiple of `num_attention_heads` ({heads})")
        even = self.hidden_size % 2 == 0
        _require(self, "hidden_size", even, "an even number (half sines, half cosines in the positions)")
        scales = self.evidence_scales
        valid = scales is None or (len(scales) == 2 and all(0 < scale <= 1e4 for scale in scales))
        _require(self, "evidence_scales", valid, "two factors above 0 and at most 1e4, of audio and of video")
        _require(self, "text_pooling", self.text_pooling in TEXT_POOLINGS, f"one of {', '.join(TEXT_POOLINGS)}")
        check_text_config(self.text_config, "`text_config`")

    def validate_labels(self) -> None:
        """Check the labels, their descriptions and the described labels against one another.

        Raises:
            `ValueError`: Naming the field, its value and what is allowed.
        """
        ids, names = self.id2label, list((self.id2label or {}).values())
        if ids is not None:
            from_zero = ids and sorted(ids) == list(range(len(ids)))
            _require(self, "id2label", from_zero, "a name for each id from 0 on, and at least one")
            _require(self, "id2label", len(set(names)) == len(names), "a different name for each label")
            inverse = {name: index for index, name in ids.items()}
            _require(self, "label2id", self.label2id == inverse, f"the inverse of `id2label` ({ids})")
        if (described := self.label_descriptions) is not None:
            for label, sentences in described.items():
                check_sentences(label, sentences)
            fits = set(names) == set(described)
            _require(self, "label_descriptions", fits, f"given for exactly the labels {sorted(names)}", set(described))
        known = set(self.described_labels or ()) <= set(names)
        _require(self, "described_labels", known, f"among the labels {sorted(names)}")


def check_sentences(label: str, sentences: Any) -> None:
    """Raise a `ValueError` unless `sentences` is a list of at least one sentence that describes `label`."""
    good = isinstance(sentences, list) and sentences and all(isinstance(s, str) and s.strip() for s in sentences)
    if not good:
        raise ValueError(
            f"`label_descriptions` has {sentences!r} for {label!r}; it must be a list of at least one sentence"
        )


__all__ = ["AMESSConfig", "AMESSFeatureConfig"]
