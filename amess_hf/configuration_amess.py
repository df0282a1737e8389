"""A-MESS model configuration."""

import copy
import functools
import math
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging
from transformers.utils.type_validators import interval

from .constants_amess import FEATURE_MODALITIES, LOSS_PARTS


logger = logging.get_logger(__name__)

# Written into every saved config. A checkpoint whose number is higher than this was made by a later version.
FORMAT_VERSION = 2

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


def text_positions(text_config: PreTrainedConfig) -> int | float:
    """Return the maximum number of tokens that a text encoder takes.

    Args:
        text_config (`PreTrainedConfig`): The text encoder's configuration.

    Returns:
        `int`, or `math.inf` where there is no limit.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return math.inf
    return positions - (text_config.pad_token_id + 1 if text_config.model_type in _OFFSET_POSITIONS else 0)


_count = interval(min=1)
_share = interval(min=0, max=1)
_non_negative = interval(min=0, max=math.inf, exclude_max=True)


@as_validated_field
def _optional_size(value: int | None):
    if value is not None and value < 1:
        raise ValueError(f"Value must be None, or greater or equal to 1, got {value}.")


def _plain_errors(cls: type) -> type:
    """Make the checks of `@strict` raise a `ValueError` in one line that names the field; report renamed fields."""
    set_strictly, validate_strictly = cls.__setattr__, cls.validate

    @functools.wraps(set_strictly)
    def __setattr__(self: Any, name: str, value: Any):
        if name in self.attribute_map:
            logger.warning_once(f"`{name}` is now called `{self.attribute_map[name]}`; the old name still works")
            name = self.attribute_map[name]
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


@_plain_errors
@strict
class AMESSConfig(PreTrainedConfig):
    r"""Configuration of [`AMESSModel`] and [`AMESSForIntentClassification`] (A-MESS, arXiv 2503.19474).

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a BERT config):
            The text encoder's configuration; a dict names its `model_type`.
        audio_feature_size (`int`, *optional*):
            Width of an audio frame's features, e.g. 768 for WavLM. `None`: the model takes no audio.
        video_feature_size (`int`, *optional*):
            Width of a video frame's features, e.g. 256 for Swin ROI. `None`: the model takes no video.
        max_text_length (`int`, *optional*, defaults to 30):
            Tokens of an utterance, its dialogue context included; longer ones are cut by the collator. At most as many
            as the text encoder has positions for.
        max_audio_length (`int`, *optional*, defaults to 480):
            Audio frames of a clip; longer ones are cut by the collator.
        max_video_length (`int`, *optional*, defaults to 230):
            Video frames of a clip; longer ones are cut by the collator.
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
            cross-modal attention, as in MulT), `"mean"` (pooling, concatenation, MLP), `"gated_anchor"` (A-ME of checkpoint
            format 1) or `"text"` (no fusion); see `fusion_amess.py`.
        audio_feature_norm, video_feature_norm (`str`, *optional*, defaults to `"frame"`):
            `"frame"` normalises each frame over its numbers, `"clip"` each number over the frames of the clip.
        audio_band_shift (`int`, *optional*, defaults to 0):
            Bands at most by which training moves a clip's filterbank up or down, for speakers that it does not have.
        video_grid_side (`int`, *optional*):
            Side (at least 5) of the square grid that each video feature is, whose local patterns a convolution reads;
            `None` where features are not grids.
        video_grid_shift (`int`, *optional*, defaults to 0):
            Places at most by which training moves a clip's grids across and down.
        num_audio_conv_layers, num_video_conv_layers (`int`, *optional*, defaults to 0):
            Temporal convolutions over the frames of a modality, each of which halves the number of tokens.
        conv_kernel_size (`int`, *optional*, defaults to 5):
            Frames that a temporal convolution sees at once; odd.
        audio_pooling, video_pooling (`str`, *optional*, defaults to `"logsumexp"`):
            How the evidence of a modality is pooled over time: `"logsumexp"` of the votes of its frames, or `"statistics"`
            (mean, deviation and maximum).
        modality_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the separate cross-entropies of words, sound and picture (`fusion_type` `"anchor"` and `"late"`);
            see [`~amess_hf.loss_amess.modality_losses`].
        projection_dim (`int`, *optional*, defaults to 256):
            Width of `multimodal_embeds` and `label_embeds`; 0 means no projection: they stay in the text encoder's own
            space.
        dropout (`float`, *optional*, defaults to 0.3):
            Dropout of the fusion module and before the classifier.
        modality_dropout (`float`, *optional*, defaults to 0.1):
            In training, the share of clips of which one modality, drawn at random, is masked.
            Nothing is masked in a model of words alone, nor where a clip would have no modality left.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the fusion module's layer normalisations.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Deviation of the normal distribution that initialises new weights.
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
            Label smoothing of the words' cross-entropy, and of that of all modalities together except where a fusion adds
            the evidence of sound and picture (`"anchor"`, `"late"`).
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
            What the text encoder expects before an utterance, such as `"query: "`; it is neither summarised nor fused.
        description_prefix (`str`, *optional*):
            The same before a label's description.
        text_adapter (`dict`, *optional*):
            Fields of the `peft.LoraConfig` of an adapter in the text encoder; see `adapters_amess.py`.
        context_turns (`int`, *optional*, defaults to 0):
            Earlier turns of the dialogue that the model was trained to read before an utterance.
        label_descriptions (`dict[str, list[str]]`, *optional*):
            Sentences that describe each label.
        zero_shot_labels (`list[str]`, *optional*):
            Labels that the classifier has not been trained on; they are scored by their descriptions alone.
        zero_shot_offset (`float`, *optional*, defaults to 0.0):
            What is added to the scaled similarities of `zero_shot_labels`, so that trained labels do not outweigh
            them; [`~AMESSForIntentClassification.set_label_descriptions`] finds it.
        audio_encoder (`str`, *optional*):
            What turned sound into `audio_features`: a Hub model, `"log-mel"`, or `None` where it is not known.
        audio_encoder_layer (`int`, *optional*):
            The layer of `audio_encoder` whose states they are, 1 for the first; `None` for the model's output.
        video_encoder (`str`, *optional*):
            What turned frames into `video_features`: a Hub model, `"hog"`, `"hog-grid"`, `"frame-difference"`, or `None`.
        format_version (`int`, *optional*, defaults to 2):
            Version of the checkpoint format.

    Raises:
        `ValueError`: If a field has a value that is not allowed; the message names the field, its value and the
        allowed ones.

    Example:
    ```python
    >>> from amess_hf import AMESSConfig, AMESSModel

    >>> config = AMESSConfig(audio_feature_size=768, video_feature_size=256)
    >>> model = AMESSModel(config)
    ```
    """

    model_type = "amess"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    # Names from earlier versions, which still load and work.
    attribute_map = {
        "triplet_loss_weight": "label_triplet_loss_weight",
        "clip_contrastive_loss_weight": "batch_triplet_loss_weight",
    }

    # Outputs that an evaluation loop does not need to gather from the processes for each clip.
    keys_to_ignore_at_inference = [
        "multimodal_embeds",
        "label_embeds",
        "pooler_output",
        "anchor_indices",
        "anchor_scores",
        "evidence",
        "modality_mask",
        "text_pooler_output",
        *LOSS_PARTS,
        "hidden_states",
        "attentions",
    ]

    text_config: dict | PreTrainedConfig | None = None
    audio_feature_size: int | None = _optional_size(default=None)
    video_feature_size: int | None = _optional_size(default=None)
    max_text_length: int = _count(default=30)
    max_audio_length: int = _count(default=480)
    max_video_length: int = _count(default=230)
    hidden_size: int = _count(default=128)
    intermediate_size: int = _count(default=256)
    num_attention_heads: int = _count(default=4)
    num_fusion_layers: int = _count(default=2)
    num_anchors: int = _count(default=8)
    fusion_type: str = "anchor"
    audio_feature_norm: str = "frame"
    video_feature_norm: str = "frame"
    audio_band_shift: int = interval(min=0)(default=0)
    video_grid_side: int | None = _optional_size(default=None)
    video_grid_shift: int = interval(min=0)(default=0)
    num_audio_conv_layers: int = interval(min=0, max=8)(default=0)
    num_video_conv_layers: int = interval(min=0, max=8)(default=0)
    conv_kernel_size: int = _count(default=5)
    audio_pooling: str = "logsumexp"
    video_pooling: str = "logsumexp"
    modality_loss_weight: float | int = _non_negative(default=1.0)
    projection_dim: int = interval(min=0)(default=256)
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
    context_turns: int = interval(min=0)(default=0)
    id2label: dict | None = None
    label2id: dict | None = None
    label_descriptions: dict | None = None
    zero_shot_labels: list[str] | None = None
    zero_shot_offset: float | int = interval(min=-1e6, max=1e6)(default=0.0)
    audio_encoder: str | None = None
    audio_encoder_layer: int | None = _optional_size(default=None)
    video_encoder: str | None = None
    format_version: int = _count(default=FORMAT_VERSION)

    def __post_init__(self, **kwargs: Any):
        if not __name__.startswith("transformers_modules."):
            # The installed package has registered all this; transformers asks for `trust_remote_code` where it is set.
            kwargs = {name: value for name, value in kwargs.items() if name not in REMOTE_CODE}
        if self.format_version == 1:
            # Checkpoints of that format chose their anchors differently.
            self.fusion_type = "gated_anchor" if self.fusion_type == "anchor" else self.fusion_type
            self.format_version = FORMAT_VERSION
        if self.id2label is None and self.label2id:
            self.id2label = {index: name for name, index in self.label2id.items()}
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
    def embedding_dim(self) -> int:
        """The width of `multimodal_embeds` and `label_embeds`."""
        return self.projection_dim or self.text_config.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and where the code that reads them is in a checkpoint's folder."""
        fields = super().to_dict()
        if os.path.isabs(fields["text_config"].get("_name_or_path") or ""):
            del fields["text_config"]["_name_or_path"]  # a local folder means nothing on another machine
        return {**fields, **copy.deepcopy(REMOTE_CODE)}

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
        """Check the sizes, the fusion, the text encoder and the format.

        Raises:
            `ValueError`: Naming the field, its value and what is allowed.
        """
        # Imported here, because reading a configuration needs no layers.
        from .evidence_amess import POOLINGS
        from .fusion_amess import FUSION_TYPES
        from .text_encoders_amess import TEXT_POOLINGS, check_text_config

        if self.fusion_type not in FUSION_TYPES:
            self._refuse("fusion_type", f"one of {', '.join(FUSION_TYPES)}")
        for modality in FEATURE_MODALITIES:
            choices = {f"{modality}_pooling": POOLINGS, f"{modality}_feature_norm": ("frame", "clip")}
            for name, allowed in choices.items():
                if getattr(self, name) not in allowed:
                    self._refuse(name, f"one of {', '.join(allowed)}")
        side, size = self.video_grid_side, self.video_feature_size
        if side and side < 5:
            self._refuse("video_grid_side", "at least 5 (convolutions shrink the grid to a quarter of its side)")
        if side and size and size % side**2:
            self._refuse("video_grid_side", f"the side of a grid: its square divides `video_feature_size` ({size})")
        if self.video_grid_shift and not side:
            self._refuse("video_grid_shift", "0 where there is no `video_grid_side`")
        if self.conv_kernel_size % 2 == 0:
            self._refuse("conv_kernel_size", "an odd number")
        if self.hidden_size % self.num_attention_heads:
            self._refuse("hidden_size", f"a multiple of `num_attention_heads` ({self.num_attention_heads})")
        if self.hidden_size % 2:
            self._refuse("hidden_size", "an even number (half sines, half cosines in the positions)")
        if self.format_version > FORMAT_VERSION:
            self._refuse("format_version", f"at most {FORMAT_VERSION}; update amess_hf to load this checkpoint")
        if self.text_pooling not in TEXT_POOLINGS:
            self._refuse("text_pooling", f"one of {', '.join(TEXT_POOLINGS)}")
        check_text_config(self.text_config, "`text_config`")

    def validate_labels(self) -> None:
        """Check the labels, their descriptions and the zero-shot labels against one another.

        Raises:
            `ValueError`: Naming the field, its value and what is allowed.
        """
        if self.id2label is not None:
            self._check_ids()
        self._check_descriptions()

    def _check_ids(self):
        if not self.id2label or sorted(self.id2label) != list(range(len(self.id2label))):
            self._refuse("id2label", "a name for each id from 0 on, and at least one")
        if len(set(self.id2label.values())) != len(self.id2label):
            self._refuse("id2label", "a different name for each label")
        if self.label2id != {name: index for index, name in self.id2label.items()}:
            self._refuse("label2id", f"the inverse of `id2label` ({self.id2label})")

    def _check_descriptions(self):
        names = set((self.id2label or {}).values())
        for label, sentences in (self.label_descriptions or {}).items():
            if (
                not isinstance(sentences, list)
                or not sentences
                or not all(isinstance(s, str) and s.strip() for s in sentences)
            ):
                raise ValueError(
                    f"`label_descriptions` has {sentences!r} for {label!r}; it must be a list of at least one sentence"
                )
        if self.label_descriptions is not None and names != set(self.label_descriptions):
            self._refuse(
                "label_descriptions", f"given for exactly the labels {sorted(names)}", set(self.label_descriptions)
            )
        if self.zero_shot_labels is not None and not set(self.zero_shot_labels) <= names:
            self._refuse("zero_shot_labels", f"among the labels {sorted(names)}")

    def _refuse(self, name: str, allowed: str, value: Any = None):
        raise ValueError(f"`{name}` is {getattr(self, name) if value is None else value!r}; it must be {allowed}")


__all__ = ["AMESSConfig"]
