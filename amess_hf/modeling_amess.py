"""A-MESS: anchor-based multimodal embedding (A-ME) and semantic synchronization (SS); arXiv 2503.19474.

A-ME is in `anchor_embedding_amess.py`, SS in `synchronization_amess.py`, what A-ME is compared with in `fusion_amess.py`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .anchor_embedding_amess import AMESSAnchorFusion, AMESSStatisticsEvidence, AMESSVotes, modality_loss_terms
from .configuration_amess import (
    LOSS_ITEMS,
    LOSS_PARTS,
    MODALITIES,
    NO_ANCHOR,
    OUT_OF_SCOPE_ID,
    AMESSConfig,
    check_field_names,
)
from .datasets_amess import config_fields_for, front_end_fields, label_names, merge_fields, text_length_for
from .descriptions_amess import describe_labels
from .fusion_amess import FUSIONS, AMESSLateClassifier
from .layers_amess import AMESSGridLayer, AMESSModalityEmbedding, FusionOutput
from .loss_amess import (
    classification_loss,
    consistency_loss,
    distillation_loss,
    mean_over_processes,
    outlier_exposure_loss,
)

# Not used here: what a model that was loaded with `trust_remote_code` takes along when it is saved again.
from .pipeline_amess import IntentRecognitionPipeline  # noqa: F401
from .processing_amess import give_usual_mode
from .synchronization_amess import AMESSSynchronization
from .text_encoders_amess import (
    build_text_encoder,
    encode_tokens,
    frozen_names,
    inject_adapter,
    left_padding,
    load_frozen_weights,
    load_text_encoder,
    merged_state_dict,
    pool,
    shifted,
    text_encoder_fields,
    unquantized_config,
)


@dataclass
class AMESSModelOutput(ModelOutput):
    """Output of [`AMESSModel`].

    Args:
        multimodal_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The clips in the space of label descriptions, unit length.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, text_config.hidden_size)`):
            The fused representation that the classifier sees.
        anchor_indices (`torch.LongTensor` of shape `(batch_size, 3, num_anchors)`, *optional*):
            Positions of the anchors in text, audio and video (in this order), best first; -1 for none.
            Only with `fusion_type="anchor"`.
        anchor_scores (`torch.FloatTensor` of shape `(batch_size, 3, num_anchors)`, *optional*):
            The share of its modality that each anchor carries (of the support, in audio and video), from 0 to 1; 0 for none.
        evidence (`torch.FloatTensor` of shape `(batch_size, 2, num_labels)`, *optional*):
            What audio and video add to the logits of each label; 0 for a clip that lacks them. Only with
            `fusion_type` `"anchor"` and `"late"`.
        modality_mask (`torch.BoolTensor` of shape `(batch_size, 3)`, *optional*):
            Which clips were answered from text, audio and video.
        text_pooler_output (`torch.FloatTensor` of shape `(batch_size, text_config.hidden_size)`, *optional*):
            The mean of the text's states; what the classifier sees of a text-only clip.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            With `output_hidden_states=True` and `fusion_type="anchor"`: the anchors before the first fusion layer and
            after each, of shape `(batch_size, modalities * num_anchors, hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            With `output_attentions=True` and `fusion_type="anchor"`: for each fusion layer `(batch_size,
            num_attention_heads, modalities * num_anchors, modalities * num_anchors + 1 + tokens)`; the last axis holds
            the anchors, a token that stands for nothing, then all tokens of all modalities.
    """

    multimodal_embeds: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    anchor_indices: torch.LongTensor | None = None
    anchor_scores: torch.FloatTensor | None = None
    evidence: torch.FloatTensor | None = None
    modality_mask: torch.BoolTensor | None = None
    text_pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    def first(self, clips: int) -> "AMESSModelOutput":
        """Return the rows of the first `clips` clips."""
        rows = {
            name: tuple(states[:clips] for states in value) if isinstance(value, tuple) else value[:clips]
            for name, value in self.items()
        }
        return AMESSModelOutput(**rows)


@dataclass
class AMESSClassifierOutput(ModelOutput):
    """Output of [`AMESSForIntentClassification`]: that of [`AMESSModel`], and what the labels add.

    Args:
        loss (`torch.FloatTensor`, scalar, *optional*):
            With `labels`: cross-entropy and the weighted sum of the other losses.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Scores of the labels; in evaluation mode calibrated, if the model was.
        label_embeds (`torch.FloatTensor` of shape `(num_labels, projection_dim)`, *optional*):
            The label descriptions, unit length; `None` where the model has none.
        classification_loss, text_loss, audio_loss, video_loss, label_triplet_loss, label_contrastive_loss,
        batch_triplet_loss, consistency_loss, outlier_exposure_loss,
        distillation_loss (`torch.FloatTensor`, scalar, *optional*):
            The parts of the loss (`LOSS_PARTS`), before their weights, detached; `None` where the weight is zero.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    multimodal_embeds: torch.FloatTensor | None = None
    label_embeds: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    anchor_indices: torch.LongTensor | None = None
    anchor_scores: torch.FloatTensor | None = None
    evidence: torch.FloatTensor | None = None
    modality_mask: torch.BoolTensor | None = None
    text_pooler_output: torch.FloatTensor | None = None
    classification_loss: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    video_loss: torch.FloatTensor | None = None
    label_triplet_loss: torch.FloatTensor | None = None
    label_contrastive_loss: torch.FloatTensor | None = None
    batch_triplet_loss: torch.FloatTensor | None = None
    consistency_loss: torch.FloatTensor | None = None
    outlier_exposure_loss: torch.FloatTensor | None = None
    distillation_loss: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class AMESSProjection(nn.Linear):
    """Linear map into the space that clips and descriptions share."""


class AMESSPreTrainedModel(PreTrainedModel):
    """What the models share: weight initialization, the features of transformers that they support, loading and saving."""

    config: AMESSConfig
    base_model_prefix = "amess"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AMESSFusionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # Revision, token and cache that the model was loaded with: its tokenizer and detector are loaded from the same place.
    hub_kwargs = {}
    # Whether `save_pretrained` saves an adapter as part of the weights, unless told otherwise; set while pushing.
    _merge_adapter = False

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that the model answers from, as transformers names this."""
        return self.config.modalities

    @classmethod
    def from_pretrained(  # noqa: D417 (the arguments are transformers')
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> "AMESSPreTrainedModel":
        """Load a model as [`~transformers.PreTrainedModel.from_pretrained`] does, and remember from which revision.

        Returns:
            The model; with `output_loading_info=True` a `tuple` of the model and the report of loading.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if os.path.isdir(pretrained_model_name_or_path):  # found again from another working directory
            model.config._name_or_path = os.path.abspath(pretrained_model_name_or_path)
        names = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
        model.hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if base := (model.config.text_adapter or {}).get("base_model_name_or_path"):
            encoder = model.base_model.text_encoder
            load_frozen_weights(encoder, load_text_encoder(base, dtype=encoder.dtype), model.config.text_adapter)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, merge_adapter: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the model as [`~transformers.PreTrainedModel.save_pretrained`] does.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            args: As for [`~transformers.PreTrainedModel.save_pretrained`].
            merge_adapter (`bool`, *optional*, defaults to `False`): Merge an adapter into the weights, and save a model
                without one.
            kwargs: As for [`~transformers.PreTrainedModel.save_pretrained`].
        """
        adapter, ignored = self.config.text_adapter, self._keys_to_ignore_on_save
        try:
            if adapter is not None and (self._merge_adapter if merge_adapter is None else merge_adapter):
                kwargs["state_dict"] = merged_state_dict(self, kwargs.get("state_dict"))
                self.config.text_adapter, self._keys_to_ignore_on_save = None, set()
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.text_adapter, self._keys_to_ignore_on_save = adapter, ignored
        for path in Path(save_directory).glob("*.safetensors"):
            give_usual_mode(path)

    def push_to_hub(self, *args: Any, merge_adapter: bool = True, **kwargs: Any) -> str:
        """Upload the model as [`~transformers.PreTrainedModel.push_to_hub`] does.

        Args:
            args: As for [`~transformers.PreTrainedModel.push_to_hub`].
            merge_adapter (`bool`): Merge an adapter into the weights, so that the model loads without peft.
            kwargs: As for [`~transformers.PreTrainedModel.push_to_hub`].
        """
        try:
            self._merge_adapter = merge_adapter
            return super().push_to_hub(*args, **kwargs)
        finally:
            self._merge_adapter = False

    def _leave_frozen_weights_out(self):
        """Leave out frozen weights of the text encoder that are loaded from elsewhere when saving and loading."""
        if (self.config.text_adapter or {}).get("base_model_name_or_path") is None:
            self._keys_to_ignore_on_save = set()
            return
        prefix = next(name for name, module in self.named_modules() if module is self.base_model.text_encoder)
        self._keys_to_ignore_on_save = {f"{prefix}.{name}" for name in frozen_names(self.base_model.text_encoder)}
        self._keys_to_ignore_on_load_missing.update(re.escape(name) for name in self._keys_to_ignore_on_save)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, AMESSProjection):
            # Orthonormal rows keep, as far as they can, the angles of a pretrained sentence encoder's embeddings.
            init.orthogonal_(module.weight)
            return
        super()._init_weights(module)
        if isinstance(module, AMESSModalityEmbedding):
            # A deviation of 0.5, next to 0.7 of the positions, however narrow the features. If it were much smaller, the
            # scores of anchors would start uninformative.
            init.normal_(module.projection.weight, std=0.5 * module.projection.in_features**-0.5)
            init.normal_(module.modality_embedding, std=self.config.initializer_range)
        elif isinstance(module, AMESSGridLayer):
            # std=0.02 is too small: with zero-initialized votes, gradients vanish at first.
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, AMESSVotes):
            init.zeros_(module.weight)
        elif isinstance(module, AMESSStatisticsEvidence):
            init.zeros_(module.mean)
            init.ones_(module.deviation)
        elif isinstance(module, AMESSLateClassifier):
            init.ones_(module.scale)
        elif isinstance(module, AMESSAnchorFusion):
            init.normal_(module.nothing, std=self.config.initializer_range)
        elif isinstance(module, AMESSForIntentClassification):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.zeros_(module.label_embeds)


class AMESSModel(AMESSPreTrainedModel):
    """Text encoder and A-ME: from text, audio and video to one embedding.

    The text encoder is built from `config.text_config` with new weights; for pretrained ones see
    [`AMESSForIntentClassification.from_text_pretrained`].
    """

    def __init__(self, config: AMESSConfig):
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        fusion = FUSIONS[config.fusion_type]
        self.fusion = None if fusion is None else fusion(config)
        width = config.text_config.hidden_size
        # Without a projection clips and descriptions are compared in the space that the encoder was pretrained for.
        self.projection = AMESSProjection(width, config.projection_dim, bias=False) if config.projection_dim else None
        self.post_init()
        if config.text_adapter is not None:
            inject_adapter(self.text_encoder, config.text_adapter)
            self._leave_frozen_weights_out()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text encoder's word embeddings."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    def encode_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        utterance_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode the text.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`): Tokens, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): 1 for tokens, 0 for padding.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Passed on if the encoder takes them.
            utterance_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for the utterance's own tokens, 0 for its dialogue context.

        Returns:
            `tuple`: token states `(batch_size, text_length, width)`, the summary of the utterance's `(batch_size, width)`
            (zero where there is no text), and the utterance's mask as `torch.BoolTensor`.
        """
        vocabulary = self.config.text_config.vocab_size
        if _can_look_at(input_ids) and input_ids.numel() and int(input_ids.max()) >= vocabulary:
            raise ValueError(
                f"`input_ids` has {int(input_ids.max())}, but the text encoder has {vocabulary} tokens; after adding tokens to "
                "the tokenizer call `model.resize_token_embeddings(len(tokenizer))`"
            )
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        states = encode_tokens(self.text_encoder, input_ids, mask, token_type_ids)
        if utterance_mask is not None:
            mask = mask & utterance_mask.bool()
        return states, pool(states, mask, self.config.text_pooling), mask

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map `(batch_size, text_config.hidden_size)` to unit vectors `(batch_size, projection_dim)`, in float32."""
        projected = pooled if self.projection is None else self.projection(pooled)
        return nn.functional.normalize(projected.float(), dim=-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        audio_features: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        video_features: torch.FloatTensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        utterance_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> AMESSModelOutput:
        r"""Embed a batch of clips.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Tokens of the utterances, padded on either side. A clip without text has a mask of zeros.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for tokens, 0 for padding; all ones if not given.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Token types, for text encoders that take them.
            audio_features (`torch.FloatTensor` of shape `(batch_size, audio_length, audio_feature_size)`, *optional*):
                Audio features.
            audio_attention_mask (`torch.Tensor` of shape `(batch_size, audio_length)`, *optional*):
                1 for frames, 0 for padding; all zeros for a clip without audio; all ones if not given.
            video_features (`torch.FloatTensor` of shape `(batch_size, video_length, video_feature_size)`, *optional*):
                Video features.
            video_attention_mask (`torch.Tensor` of shape `(batch_size, video_length)`, *optional*):
                1 for frames, 0 for padding; all zeros for a clip without video; all ones if not given.
            utterance_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for the utterance's own tokens, 0 for its dialogue context, which the text encoder reads but which is
                neither summarized nor fused; like `attention_mask` if not given.
            output_hidden_states (`bool`, *optional*):
                Whether to return the anchors' states of all fusion layers; by default as the configuration says.
            output_attentions (`bool`, *optional*):
                Whether to return the attention weights of all fusion layers; by default as the configuration says.

        Returns:
            [`AMESSModelOutput`], or with `return_dict=False` a `tuple` of what it holds.

        Raises:
            `TypeError`: If an argument is unknown; the message names it.
            `ValueError`: If no modality is given, if features have another shape or (on the CPU) values that are not finite,
                or if attention weights are requested from an implementation that has none.
        """
        states, attentions = self._requested(output_hidden_states, output_attentions)
        frames = {"audio": (audio_features, audio_attention_mask), "video": (video_features, video_attention_mask)}
        features, masks = self._check_inputs(input_ids, frames)
        # Positions count from the first token on, so that padding on the left moves nothing.
        shift = None if input_ids is None else left_padding(attention_mask)
        if input_ids is not None:
            texts = (input_ids, attention_mask, token_type_ids, utterance_mask)
            features["text"], summary, masks["text"] = self.encode_text(*(shifted(text, shift) for text in texts))
        else:
            like = audio_features if audio_features is not None else video_features
            summary = like.new_zeros(like.shape[0], self.config.text_config.hidden_size, dtype=self.dtype)
        if self.training and self.config.modality_dropout and len(features) > 1:
            masks = self._drop_modalities(masks)
            if input_ids is not None:
                summary = summary * masks["text"].any(1, keepdim=True)
        fused = self.fusion(features, masks, summary) if self.fusion else FusionOutput(torch.zeros_like(summary))
        nowhere = torch.zeros(summary.shape[0], dtype=torch.bool, device=summary.device)
        present = torch.stack([masks[name].any(1) if name in masks else nowhere for name in MODALITIES], dim=1)
        pooled = embedded = summary + fused.state
        if fused.evidence is not None:
            # With a single modality there is nothing to fuse: text is classified as if there were no fusion.
            pooled = summary + fused.state * (present.sum(1, keepdim=True) > 1)
            embedded = summary + fused.state * present[:, 1:].any(1, keepdim=True)
        return AMESSModelOutput(
            multimodal_embeds=self.project(embedded),
            pooler_output=pooled,
            anchor_indices=_shift_text_anchors(fused.anchor_indices, shift),
            anchor_scores=fused.anchor_scores,
            evidence=fused.evidence,
            modality_mask=present,
            text_pooler_output=None if fused.evidence is None else summary,
            hidden_states=fused.hidden_states if states else None,
            attentions=fused.attentions if attentions else None,
        )

    def _requested(self, output_hidden_states: bool | None, output_attentions: bool | None):
        """Whether hidden states and attention weights are requested, by default as the configuration says."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        states, attentions = (getattr(self.config, name) if value is None else value for name, value in asked.items())
        if attentions and (self.config.fusion_type, self.config._attn_implementation) != ("anchor", "eager"):
            raise ValueError(
                "attention weights are returned for `fusion_type='anchor'` with `attn_implementation='eager'`; this model "
                f"has {self.config.fusion_type!r} and {self.config._attn_implementation!r}; call "
                "`model.set_attn_implementation('eager')` first"
            )
        return states, attentions

    def _check_inputs(
        self, input_ids: torch.Tensor | None, given: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]
    ):
        """Check a batch; return its features and masks by modality, without those that the model lacks."""
        tensors = {"text": input_ids, **{name: frames for name, (frames, _) in given.items()}}
        sizes = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor is not None}
        if not sizes:
            raise ValueError("no modality given; pass `input_ids`, `audio_features` or `video_features`")
        features, masks = {}, {}
        for name, config in self.config.feature_configs.items() if self.fusion else ():
            frames, mask = given[name]
            if frames is not None and 0 not in frames.shape[1:2]:
                features[name], masks[name] = _check_frames(name, frames, mask, config.feature_size)
        sizes = {name: size for name, size in sizes.items() if name == "text" or name in features} or sizes
        first = next(iter(sizes.values()))
        if any(size != first for size in sizes.values()):  # not as a set: an exported batch has no fixed size
            raise ValueError(
                f"the modalities have different numbers of clips: {sizes}; give all of them the same number"
            )
        return features, masks

    def _drop_modalities(self, masks: dict[str, torch.Tensor]):
        """Mask one modality of a random share of the clips, unless it is the only one the clip has."""
        names = list(masks)
        there = torch.stack([masks[name].any(1) for name in names], dim=1)  # (batch, modalities)
        drawn = torch.rand(there.shape, device=there.device).argmax(1, keepdim=True)
        dropped = torch.zeros_like(there).scatter(1, drawn, True)
        chance = torch.rand(there.shape[0], 1, device=there.device) < self.config.modality_dropout
        dropped = dropped & chance & ((there & ~dropped).any(1, keepdim=True))
        return {name: masks[name] & ~dropped[:, index, None] for index, name in enumerate(names)}


class AMESSForIntentClassification(AMESSSynchronization, AMESSPreTrainedModel):
    """A-MESS with a classifier over intents and the embeddings of their descriptions (SS)."""

    def __init__(self, config: AMESSConfig):
        super().__init__(config)
        self.amess = AMESSModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels)
        # A vector of one number: FSDP cannot shard scalars.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.register_buffer("label_embeds", torch.zeros(config.num_labels, config.embedding_dim))
        self.post_init()
        self._leave_frozen_weights_out()

    @classmethod
    def from_text_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        labels: list[str] | None = None,
        label_descriptions: str | os.PathLike | list[str] | dict[str, list[str]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Any = None,
        dtype: str | torch.dtype = torch.float32,
        quantization_config: Any = None,
        audio_encoder: str | None = None,
        audio_encoder_layer: int | None = None,
        video_encoder: str | None = None,
        **config_kwargs: Any,
    ) -> "AMESSForIntentClassification":
        """Make a model around a pretrained text encoder; everything else is new.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A text encoder that `AutoModel` loads: a Hub repository or a folder.
            labels (`list[str]`, *optional*):
                Names of the intents, in the order of their ids; by default those of `dataset` or `label_descriptions`.
            label_descriptions (`str`, `os.PathLike`, `list[str]` or `dict[str, list[str]]`, *optional*):
                Sentences that describe each intent: `"mintrec"` or `"mintrec2.0"` (shipped), the path of a JSON file,
                several of these, or the sentences themselves. Labels are matched without regard to case.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Tokenizer for the descriptions and the length of text; loaded from `pretrained_model_name_or_path` if not given.
            dataset (`datasets.Dataset`, *optional*):
                Training clips, as [`load_mintrec`] gives them: labels, feature widths, lengths and turns of context are
                taken from them, and `fusion_type` is `"text"` where they have text only. Lengths are the published ones
                of MIntRec and MIntRec2.0; of other data, `max_text_length` holds the text of 99 of 100 clips.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `torch.float32`):
                Type of the weights, however they are stored: training in float16 soon ends in NaN. `"auto"` keeps them
                as stored. For half precision in training, use `bf16` of the training arguments.
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
                Load the text encoder in 8 or 4 bits; it is then trained with an adapter (`amess_hf.training.add_lora`).
            audio_encoder (`str`, *optional*):
                What made the audio features (`encoder` of [`AMESSFeatureConfig`]); the fields that suit it follow.
            audio_encoder_layer (`int`, *optional*):
                The layer of `audio_encoder` whose states they are.
            video_encoder (`str`, *optional*):
                What made the video features.
            config_kwargs:
                Fields of [`AMESSConfig`], with `audio_config` and `video_config` as dicts; they take precedence over what
                follows from `dataset` and the encoders.

        Raises:
            ValueError: If there are fewer than two labels, a label lacks a description, or `config_kwargs` has an unknown field.

        Example:
            ```python
            >>> dataset = load_mintrec("path/to/MIntRec")
            >>> model = AMESSForIntentClassification.from_text_pretrained(
            ...     "bert-base-uncased", dataset=dataset["train"], label_descriptions="mintrec"
            ... )
            ```
        """
        if dataset is not None:
            labels = label_names(dataset) if labels is None else labels
            config_kwargs = merge_fields(config_fields_for(dataset, config_kwargs.get("context_turns")), config_kwargs)
        encoders = {"audio": audio_encoder, "video": video_encoder}
        config_kwargs = merge_fields(front_end_fields(**encoders, audio_layer=audio_encoder_layer), config_kwargs)
        if labels is None and isinstance(label_descriptions, dict):
            labels = list(label_descriptions)
        if len(labels or ()) < 2:
            found = f"{labels[0]!r} is the only label" if labels else "no labels"
            raise ValueError(f"{found}: give at least two as `labels`, `dataset`, or keys of `label_descriptions`")
        if label_descriptions is not None:
            label_descriptions = describe_labels(list(labels), label_descriptions)
        check_field_names(AMESSConfig, config_kwargs)
        quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
        text_encoder = load_text_encoder(pretrained_model_name_or_path, dtype=dtype, **quantized)
        if dataset is not None and "max_text_length" not in config_kwargs:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(pretrained_model_name_or_path)
            turns = config_kwargs["context_turns"]
            config_kwargs["max_text_length"] = text_length_for(dataset, tokenizer, turns)
        usage = text_encoder_fields(pretrained_model_name_or_path, text_encoder.config)
        config = AMESSConfig(
            text_config=unquantized_config(text_encoder.config),
            id2label=dict(enumerate(labels)),
            label_descriptions=label_descriptions,
            **{**usage, **config_kwargs},
        )
        model = cls(config).to(text_encoder.dtype)
        model.amess.text_encoder = text_encoder
        if label_descriptions is not None:
            model.update_label_embeds(tokenizer or AutoTokenizer.from_pretrained(pretrained_model_name_or_path))
        return model

    @can_return_tuple
    def forward(  # noqa: D417 (the other arguments are described in `AMESSModel.forward`)
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        audio_features: torch.FloatTensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        video_features: torch.FloatTensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        candidate_mask: torch.BoolTensor | None = None,
        utterance_mask: torch.Tensor | None = None,
        teacher_logits: torch.FloatTensor | None = None,
        description_input_ids: torch.LongTensor | None = None,
        description_attention_mask: torch.Tensor | None = None,
        description_indices: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> AMESSClassifierOutput:
        r"""Classify a batch of clips; with `labels`, compute the loss.

        Arguments that are not listed are those of [`AMESSModel.forward`].

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Intents; -1 for out of scope, anything below for a row that is ignored by every loss.
            candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*):
                Labels that a clip may have, where clips come from data sets with different label sets.
            teacher_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*):
                A teacher's logits, for distillation.
            description_input_ids (`torch.LongTensor` of shape `(descriptions, text_length)`, *optional*):
                Tokens of descriptions to encode in this step, at most one for a label; the stored embeddings serve for
                the others.
            description_attention_mask (`torch.Tensor` of shape `(descriptions, text_length)`, *optional*):
                1 for tokens, 0 for padding.
            description_indices (`torch.LongTensor` of shape `(descriptions,)`, *optional*):
                The label of each description.
            num_items_in_batch (`torch.Tensor` of shape `(5,)`, *optional*):
                How many clips the losses are means over, in the order of `LOSS_ITEMS`, where gradients are accumulated:
                the means over the batches and processes of an update, as
                [`~amess_hf.training.batches.count_loss_items`] counts them. By default, what all processes hold in this
                batch. `batch_triplet_loss` compares the clips of a batch, and is a mean over them either way.

        Returns:
            [`AMESSClassifierOutput`] with one row for each clip, or with `return_dict=False` a `tuple` of what it holds.

        Raises:
            `TypeError`: If an argument is unknown; the message names it.
            `ValueError`: As for [`AMESSModel.forward`], or if `labels` do not fit the clips or the label set.
        """
        # R-Drop: both dropout passes are one batch.
        passes = 2 if self.training and labels is not None and self.config.consistency_loss_weight else 1
        text = input_ids, attention_mask, token_type_ids
        features = audio_features, audio_attention_mask, video_features, video_attention_mask
        clips = (_repeat(value, passes) for value in (*text, *features, utterance_mask))
        outputs = self.amess(*clips, output_hidden_states, output_attentions, return_dict=True)
        label_embeds = self._refreshed_label_embeds(
            description_input_ids, description_attention_mask, description_indices
        )
        class_logits = self.classifier(self.dropout(outputs.pooler_output))
        similarity_logits = self._compare(outputs, label_embeds)
        losses = {}
        if labels is not None:
            self._check_labels(labels, class_logits.shape[0] // passes)
            given = (_repeat(value, passes) for value in (labels, candidate_mask, teacher_logits))
            items = None if num_items_in_batch is None else num_items_in_batch * passes
            losses = self._losses(outputs, label_embeds, class_logits, similarity_logits, *given, items)
        if self.training:  # without the similarity to descriptions, which has losses of its own
            logits = class_logits if outputs.evidence is None else class_logits + outputs.evidence.sum(1)
        else:
            logits = self._calibrated(class_logits, similarity_logits, outputs.evidence)
        if passes > 1:
            count = logits.shape[0] // passes
            outputs, logits = outputs.first(count), logits[:count]
        if candidate_mask is not None:
            logits = logits.masked_fill(~candidate_mask, torch.finfo(logits.dtype).min)
        label_embeds = None if similarity_logits is None else label_embeds
        return AMESSClassifierOutput(logits=logits, label_embeds=label_embeds, **outputs, **losses)

    def answer(self, outputs: AMESSModelOutput) -> torch.Tensor:
        """Return the logits of [`forward`] from states, embeddings and evidence that may have been pooled since."""
        similarity_logits = self._compare(outputs, self.label_embeds)
        return self._calibrated(self.classifier(outputs.pooler_output), similarity_logits, outputs.evidence)

    def _calibrated(
        self, class_logits: torch.Tensor, similarity_logits: torch.Tensor | None, evidence: torch.Tensor | None
    ):
        """The combined logits, with the temperatures that were fitted on dev; see `amess_hf/evaluation/calibration.py`."""
        if evidence is not None and self.config.evidence_scales:
            evidence = evidence * evidence.new_tensor(self.config.evidence_scales).unsqueeze(-1)
        evidence = 0.0 if evidence is None else evidence.sum(1)
        return self.combine_logits(class_logits, similarity_logits, evidence) / self.config.temperature

    def _compare(self, outputs: AMESSModelOutput, label_embeds: torch.Tensor):
        """Similarity logits of clips and descriptions, `None` without descriptions; zero for a clip without text."""
        if self.config.label_descriptions is None:
            return None
        logits = self.similarity_logits(outputs.multimodal_embeds, label_embeds)
        return logits if outputs.evidence is None else logits * outputs.modality_mask[:, :1]

    def _check_labels(self, labels: torch.Tensor, clips: int):
        if labels.shape != (clips,):
            raise ValueError(f"`labels` has shape {tuple(labels.shape)} for {clips} clips; give one for each")
        if _can_look_at(labels) and labels.numel() and int(labels.max()) >= self.config.num_labels:
            raise ValueError(
                f"`labels` has {int(labels.max())}, but this model has {self.config.num_labels} labels; give ids "
                f"below {self.config.num_labels}"
            )

    def _losses(
        self,
        outputs: AMESSModelOutput,
        label_embeds: torch.Tensor,
        class_logits: torch.Tensor,
        similarity_logits: torch.Tensor | None,
        labels: torch.Tensor,
        candidate_mask: torch.Tensor | None,
        teacher_logits: torch.Tensor | None,
        num_items: torch.Tensor | None,
    ):
        """Compute `loss` and its parts; each is a mean over the clips of all processes that count for it."""
        config, labelled = self.config, labels >= 0
        evidence = None if outputs.evidence is None else outputs.evidence.sum(1)
        # Detached: audio and video have separate losses; the text, which fits the training clips within two epochs,
        # would leave them no gradient (Wang et al., CVPR 2020).
        joint_logits = class_logits if evidence is None else class_logits + evidence.detach()
        # With smoothing, the fused state would learn to contradict the evidence, whose sum is surer than that allows.
        smoothing = config.label_smoothing if evidence is None else 0.0
        values = classification_loss(joint_logits, labels, smoothing, candidate_mask)
        terms = [("classification_loss", 1.0, values, labelled)]  # name, weight, value of each clip, clips that count
        if evidence is not None and config.modality_loss_weight:
            text_logits = self.classifier(self.dropout(outputs.text_pooler_output))
            evidence_logits = outputs.evidence + self._classifier_bias(outputs.text_pooler_output)
            masks = outputs.modality_mask, labels, candidate_mask
            terms += modality_loss_terms(config, text_logits, evidence_logits, *masks)
        terms += self.synchronization_loss_terms(
            outputs.multimodal_embeds, label_embeds, similarity_logits, labels, candidate_mask
        )
        if weight := config.outlier_exposure_loss_weight:
            values = outlier_exposure_loss(joint_logits, labels)
            terms.append(("outlier_exposure_loss", weight, values, labels == OUT_OF_SCOPE_ID))
        if self.training and (weight := config.consistency_loss_weight):
            first, second = joint_logits.chunk(2)
            candidates = None if candidate_mask is None else candidate_mask[: first.shape[0]]
            values = consistency_loss(first, second, candidates).repeat(2)
            terms.append(("consistency_loss", weight, values, labelled))
        if teacher_logits is not None and (weight := config.distillation_loss_weight):
            answers = self.combine_logits(class_logits, similarity_logits, 0.0 if evidence is None else evidence)
            values = distillation_loss(answers, teacher_logits, config.distillation_temperature, candidate_mask)
            terms.append(("distillation_loss", weight, values, labelled))
        means = {name: self._mean(name, values, counts, num_items) for name, _, values, counts in terms}
        loss = sum(weight * means[name] for name, weight, _, _ in terms)
        return {"loss": loss, **{name: mean.detach() for name, mean in means.items()}}

    def _classifier_bias(self, like: torch.Tensor):
        """The classifier's bias in float32, as its answer to nothing: offloaded weights are there only in its forward."""
        with torch.autocast(like.device.type, enabled=False):
            return self.classifier(torch.zeros_like(like[:1], dtype=self.dtype)).float()

    def _mean(self, name: str, values: torch.Tensor, mask: torch.Tensor, num_items: torch.Tensor | None):
        if num_items is not None and name != "batch_triplet_loss":
            item = {"outlier_exposure_loss": "out_of_scope"}.get(name, name.removesuffix("_loss"))
            count = num_items[LOSS_ITEMS.index(item if item in LOSS_ITEMS else "labelled")]
            return values.where(mask, 0.0).sum() / count.where(count > 0, 1.0)
        if self.training:
            return mean_over_processes(values, mask)
        return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)


def _check_frames(name: str, frames: torch.Tensor, mask: torch.Tensor | None, width: int):
    """Check the features of one modality; return them with zeros for padding, which may hold anything, and their mask."""
    if frames.dim() != 3 or (mask is not None and mask.shape != frames.shape[:2]):
        raise ValueError(
            f"`{name}_features` has shape {tuple(frames.shape)}"
            f"{'' if mask is None else f' and its mask {tuple(mask.shape)}'}; it must be (batch_size, length, "
            f"{width}), and its mask (batch_size, length)"
        )
    if frames.shape[-1] != width:
        raise ValueError(
            f"`{name}_features` is {frames.shape[-1]} wide, but this model was made for {width} "
            f"(`config.{name}_config.feature_size`); give features of the encoder that it was trained with"
        )
    mask = frames.new_ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if not (_can_look_at(mask) and mask.all()):
        frames = frames.masked_fill(~mask.unsqueeze(-1), 0.0)
    # By their sum, in a twentieth of the time. Finite values with an infinite sum have squares that are infinite.
    if _can_look_at(frames) and not frames.sum(dtype=torch.float32).isfinite():
        raise ValueError(
            f"`{name}_features` holds NaN or infinite values where its mask is 1; extract the features again, or "
            "mask these frames"
        )
    return frames, mask


def _can_look_at(tensor: torch.Tensor):
    """Whether to look at values: elsewhere than on the CPU the host would have to wait, and the output is NaN."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
    return tensor.device.type == "cpu" and not traced


def _shift_text_anchors(anchor_indices: torch.Tensor | None, shift: torch.Tensor | None):
    """Count the positions of the text's anchors from the left end of the padded batch."""
    if anchor_indices is None or shift is None:
        return anchor_indices
    text = torch.where(anchor_indices[:, 0] == NO_ANCHOR, NO_ANCHOR, anchor_indices[:, 0] + shift)
    return torch.cat([text.unsqueeze(1), anchor_indices[:, 1:]], dim=1)


def _repeat(tensor: torch.Tensor | None, times: int):
    """Repeat a batch; `None` stays `None`."""
    return tensor if tensor is None or times == 1 else torch.cat([tensor] * times)


__all__ = [
    "LOSS_PARTS",
    "AMESSClassifierOutput",
    "AMESSForIntentClassification",
    "AMESSModel",
    "AMESSModelOutput",
    "AMESSPreTrainedModel",
]
