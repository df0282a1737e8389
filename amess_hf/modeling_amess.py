"""A-MESS: anchor-based multimodal embedding (A-ME) and semantic synchronization (SS); arXiv 2503.19474."""

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_amess import AMESSConfig, text_positions
from .constants_amess import MODALITIES, NO_ANCHOR, OUT_OF_SCOPE_ID
from .descriptions_amess import describe_labels
from .distributed_amess import gather_clips, mean_over_processes
from .loss_amess import (
    batch_triplet_loss,
    classification_loss,
    consistency_loss,
    label_contrastive_loss,
    label_triplet_loss,
    outlier_exposure_loss,
)
from .padding_amess import encode_texts
from .recipe_amess import config_fields_for, label_names


# Outputs that are parts of the loss, each before its weight.
LOSS_PARTS = (
    "classification_loss",
    "label_triplet_loss",
    "label_contrastive_loss",
    "batch_triplet_loss",
    "consistency_loss",
    "outlier_exposure_loss",
)


@dataclass
class AMESSModelOutput(ModelOutput):
    """
    Output of [`AMESSModel`].

    Args:
        multimodal_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`):
            The clips in the space of label descriptions, unit length.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, text_config.hidden_size)`):
            The fused representation that the classifier sees.
        anchor_indices (`torch.LongTensor` of shape `(batch_size, 3, num_anchors)`, *optional*):
            Positions of the anchors in the words, the sound and the picture (in this order), best first; -1 for none.
            Only with `fusion_type="anchor"`.
        anchor_scores (`torch.FloatTensor` of shape `(batch_size, 3, num_anchors)`, *optional*):
            Their gates, from 0 to 1; 0 for none.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*):
            With `output_hidden_states=True` and `fusion_type="anchor"`: the anchors before the first fusion layer and
            after each, of shape `(batch_size, modalities * num_anchors, hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*):
            With `output_attentions=True` and `fusion_type="anchor"`: for each fusion layer `(batch_size, num_attention_heads,
            modalities * num_anchors, modalities * num_anchors + 1 + tokens)`; the last axis holds the anchors, a token
            that stands for nothing, then all words, sounds and frames.
    """

    multimodal_embeds: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    anchor_indices: torch.LongTensor | None = None
    anchor_scores: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AMESSClassifierOutput(ModelOutput):
    """
    Output of [`AMESSForIntentClassification`]: that of [`AMESSModel`] and

    Args:
        loss (`torch.FloatTensor`, scalar, *optional*):
            With `labels`: cross-entropy and the weighted sum of the other losses.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Scores of the labels.
        label_embeds (`torch.FloatTensor` of shape `(num_labels, projection_dim)`, *optional*):
            The label descriptions, unit length; `None` where the model has none.
        classification_loss, label_triplet_loss, label_contrastive_loss, batch_triplet_loss, consistency_loss,
        outlier_exposure_loss (`torch.FloatTensor`, scalar, *optional*):
            The parts of the loss, before their weights, detached; `None` where the weight is zero.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    multimodal_embeds: torch.FloatTensor | None = None
    label_embeds: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    anchor_indices: torch.LongTensor | None = None
    anchor_scores: torch.FloatTensor | None = None
    classification_loss: torch.FloatTensor | None = None
    label_triplet_loss: torch.FloatTensor | None = None
    label_contrastive_loss: torch.FloatTensor | None = None
    batch_triplet_loss: torch.FloatTensor | None = None
    consistency_loss: torch.FloatTensor | None = None
    outlier_exposure_loss: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class _Fused:
    """What a fusion module gives: `state` (batch, width of the text encoder), and what there is to show of it."""

    state: torch.Tensor
    anchor_indices: torch.Tensor | None = None
    anchor_scores: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


def masked_mean(states, mask):
    """Mean of `states` (batch, length, width) where `mask` (batch, length); zero for a clip that has nothing."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def sinusoidal_positions(length, width, like):
    """Sines and cosines of the position, (length, width), in the type and on the device of `like`."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(length, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Scaled-dot-product attention, written out, for when the weights are asked for."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class AMESSProjection(nn.Linear):
    """Into the space that clips and descriptions share."""


class AMESSAttention(nn.Module):
    """Multi-head attention of queries (batch, queries, width) to a memory (batch, tokens, width)."""

    def __init__(self, config: AMESSConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _heads(self, states):
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)  # (batch, heads, length, head_dim)

    def forward(self, queries, memory, attention_mask):
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            self._heads(self.q_proj(queries)),
            self._heads(self.k_proj(memory)),
            self._heads(self.v_proj(memory)),
            attention_mask,
            is_causal=self.is_causal,
            scaling=self.scaling,
            dropout=self.config.dropout if self.training else 0.0,
        )
        return self.out_proj(output.reshape(*queries.shape[:2], -1)), weights


class AMESSFusionLayer(GradientCheckpointingLayer):
    """Pre-norm cross-attention and feed-forward part; the memory is normalised by the caller, once for all layers."""

    def __init__(self, config: AMESSConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AMESSAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN["gelu"],
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states, memory, attention_mask, attend_to_states=False):
        """
        Args:
            states (`torch.Tensor` of shape `(batch_size, queries, hidden_size)`): What attends.
            memory (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): What is attended to.
            attention_mask (`torch.Tensor`): As the attention interface takes it.
            attend_to_states (`bool`): Whether the states attend to one another too (they come before the memory).

        Returns:
            `tuple`: the new states, and the attention weights where the attention implementation gives them.
        """
        queries = self.attention_norm(states)
        memory = torch.cat([queries, memory], dim=1) if attend_to_states else memory
        attended, weights = self.attention(queries, memory, attention_mask)
        states = states + self.dropout(attended)
        return states + self.dropout(self.mlp(self.mlp_norm(states))), weights


class AMESSModalityEmbedding(nn.Module):
    """Tokens of one modality (batch, length, feature_size) → (batch, length, hidden_size), modality and position added."""

    def __init__(self, config: AMESSConfig, feature_size: int):
        super().__init__()
        self.layer_norm_eps = config.layer_norm_eps
        self.projection = nn.Linear(feature_size, config.hidden_size)
        self.modality_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, features):
        # No gain or bias here: the projection right after it has both, and none means no pass over the features
        # in the backward direction.
        features = nn.functional.layer_norm(
            features.to(self.projection.weight.dtype), features.shape[-1:], eps=self.layer_norm_eps
        )
        tokens = self.projection(features) + self.modality_embedding
        return self.norm(tokens + sinusoidal_positions(tokens.shape[1], tokens.shape[2], tokens))


class AMESSModalityEmbeddings(nn.ModuleDict):
    """One embedding for each modality that the configuration names."""

    def __init__(self, config: AMESSConfig):
        sizes = {
            "text": config.text_config.hidden_size,
            "audio": config.audio_feature_size,
            "video": config.video_feature_size,
        }
        super().__init__({name: AMESSModalityEmbedding(config, size) for name, size in sizes.items() if size})

    def forward(self, features):
        """`features`: modality → (batch, length, feature_size). Returns modality → (batch, length, hidden_size)."""
        return {name: embedding(features[name]) for name, embedding in self.items() if name in features}


class AMESSAnchorSelection(nn.Module):
    """
    Choose the anchors of one modality: the tokens that a summary of the utterance scores highest.

    The gate of an anchor is the sigmoid of its score and multiplies the token, which is how the choice learns.
    """

    def __init__(self, config: AMESSConfig, summary_size: int):
        super().__init__()
        self.num_anchors = config.num_anchors
        self.query = nn.Linear(summary_size, config.hidden_size)

    def forward(self, tokens, mask, summary):
        """
        Args:
            tokens (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): Tokens of one modality.
            mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are there.
            summary (`torch.Tensor` of shape `(batch_size, summary_size)`): What the utterance says.

        Returns:
            `tuple`: anchors `(batch_size, num_anchors, hidden_size)`, their positions (0 where there is none), their
            gates (0 where there is none), and which are there, each `(batch_size, num_anchors)`.
        """
        scores = torch.einsum("bth,bh->bt", tokens, self.query(summary)) / math.sqrt(tokens.shape[-1])
        scores = scores.float().masked_fill(~mask, float("-inf"))
        # Filling up means that a clip shorter than `num_anchors` takes the same path as any other.
        scores, indices = nn.functional.pad(scores, (0, self.num_anchors), value=float("-inf")).topk(self.num_anchors)
        present = scores > float("-inf")
        indices = indices.masked_fill(~present, 0)
        gates = scores.masked_fill(~present, 0.0).sigmoid() * present
        chosen = tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return chosen * gates.unsqueeze(-1).to(tokens.dtype), indices, gates, present


def _attention_mask(config, queries, memory, mask):
    """The mask of `memory` (batch, tokens) in the form that the attention implementation takes."""
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=mask,
        encoder_hidden_states=memory,
        # Looking whether the mask is all ones would make the host wait for the device.
        allow_is_bidirectional_skip=False,
    )


class AMESSAnchorFusion(nn.Module):
    """A-ME: anchors of all modalities attend to one another and to all tokens; linear in the number of tokens."""

    def __init__(self, config: AMESSConfig):
        super().__init__()
        self.config = config
        summary_size = config.text_config.hidden_size
        self.embeddings = AMESSModalityEmbeddings(config)
        self.selections = nn.ModuleDict({name: AMESSAnchorSelection(config, summary_size) for name in self.embeddings})
        # Attended to when nothing else is there, so that a clip without any modality has defined attention weights.
        self.nothing = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList([AMESSFusionLayer(config) for _ in range(config.num_fusion_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size * len(self.embeddings), summary_size)

    def forward(self, features, masks, summary):
        tokens = self.embeddings(features)
        chosen = {name: self.selections[name](tokens[name], masks[name], summary) for name in tokens}
        anchors = torch.cat([chosen[name][0] for name in tokens], dim=1)
        present = torch.cat([chosen[name][3] for name in tokens], dim=1)
        nothing = self.nothing.expand(anchors.shape[0], 1, -1)
        memory = torch.cat([nothing, *tokens.values()], dim=1)
        mask = torch.cat([present, present.new_ones(present.shape[0], 1), *[masks[name] for name in tokens]], dim=1)
        attention_mask = _attention_mask(self.config, anchors, torch.cat([anchors, memory], dim=1), mask)
        hidden_states, attentions = (anchors,), ()
        for layer in self.layers:
            anchors, weights = layer(anchors, memory, attention_mask, attend_to_states=True)
            hidden_states, attentions = (*hidden_states, anchors), (*attentions, weights)
        indices, gates = self._by_modality(chosen, summary)
        return _Fused(self._pool(self.norm(anchors), chosen), indices, gates, hidden_states, attentions)

    def _pool(self, anchors, chosen):
        """Mean of each modality's anchors, weighted by their gates; the modalities side by side."""
        pooled = {name: None for name in self.embeddings}
        for name, states in zip(chosen, anchors.split(self.config.num_anchors, dim=1), strict=True):
            gates = chosen[name][2].to(states.dtype).unsqueeze(-1)
            pooled[name] = (states * gates).sum(1) / gates.sum(1).clamp(min=1e-6)
        absent = anchors.new_zeros(anchors.shape[0], anchors.shape[2])
        return self.out_proj(torch.cat([absent if state is None else state for state in pooled.values()], dim=-1))

    def _by_modality(self, chosen, summary):
        """Positions and gates of all three modalities, (batch, 3, num_anchors) each."""
        shape = (summary.shape[0], self.config.num_anchors)
        indices, gates = [], []
        for name in MODALITIES:
            if name in chosen:
                _, index, gate, present = chosen[name]
                indices.append(index.masked_fill(~present, NO_ANCHOR))
                gates.append(gate)
            else:
                indices.append(torch.full(shape, NO_ANCHOR, dtype=torch.long, device=summary.device))
                gates.append(torch.zeros(shape, device=summary.device))
        return torch.stack(indices, dim=1), torch.stack(gates, dim=1)


class AMESSMeanFusion(nn.Module):
    """Ablation: mean of each modality, concatenation, MLP."""

    def __init__(self, config: AMESSConfig):
        super().__init__()
        self.embeddings = AMESSModalityEmbeddings(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size * len(self.embeddings), config.intermediate_size),
            ACT2FN["gelu"],
            nn.Dropout(config.dropout),
            nn.Linear(config.intermediate_size, config.text_config.hidden_size),
        )

    def forward(self, features, masks, summary):
        tokens = self.embeddings(features)
        absent = summary.new_zeros(summary.shape[0], self.mlp[0].in_features // len(self.embeddings))
        means = [masked_mean(tokens[name], masks[name]) if name in tokens else absent for name in self.embeddings]
        return _Fused(self.mlp(torch.cat(means, dim=-1)))


class AMESSCrossModalFusion(nn.Module):
    """
    Ablation: every token of a modality attends to all tokens of each other modality, then to its own; means of the
    modalities side by side. The pairwise scheme of MulT (Tsai et al., ACL 2019, section 3), at this model's width.
    """

    def __init__(self, config: AMESSConfig):
        super().__init__()
        self.config = config
        self.embeddings = AMESSModalityEmbeddings(config)
        names = list(self.embeddings)
        self.cross_layers = nn.ModuleDict(
            {
                f"{target}_from_{source}": nn.ModuleList(
                    [AMESSFusionLayer(config) for _ in range(config.num_fusion_layers)]
                )
                for target in names
                for source in names
                if target != source
            }
        )
        self.self_layers = nn.ModuleDict({name: AMESSFusionLayer(config) for name in names})
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size * len(names), config.text_config.hidden_size)

    def forward(self, features, masks, summary):
        tokens = self.embeddings(features)
        pooled = []
        for name in self.embeddings:
            if name in tokens:
                pooled.append(masked_mean(self._attend(name, tokens, masks), masks[name]))
            else:
                pooled.append(summary.new_zeros(summary.shape[0], self.config.hidden_size))
        return _Fused(self.out_proj(torch.cat(pooled, dim=-1)))

    def _attend(self, target, tokens, masks):
        """States of `target`'s tokens after looking at the other modalities and at themselves."""
        seen = tokens[target]
        for source in tokens:
            if source == target:
                continue
            states = tokens[target]
            for layer in self.cross_layers[f"{target}_from_{source}"]:
                states = self._layer(layer, states, tokens[source], masks[source])
            # What a source adds does not depend on which other sources are there.
            seen = seen + (states - tokens[target]) / (len(self.embeddings) - 1)
        seen = self.norm(seen)
        return self._layer(self.self_layers[target], seen, seen, masks[target])

    def _layer(self, layer, states, memory, mask):
        # A clip that lacks the modality attends to its padding, and what comes of that is dropped.
        there = mask.any(1)
        mask = mask | ~there[:, None]
        result, _ = layer(states, memory, _attention_mask(self.config, states, memory, mask))
        return torch.where(there[:, None, None], result, states)


_FUSIONS = {"anchor": AMESSAnchorFusion, "mean": AMESSMeanFusion, "cross_modal": AMESSCrossModalFusion}


class AMESSPreTrainedModel(PreTrainedModel):
    config: AMESSConfig
    base_model_prefix = "amess"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # A mean loss, whatever the number of items: the Trainer divides it by the accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = ["AMESSFusionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # Revision, token and cache that the model was loaded with: what else lies beside its weights comes from there too.
    hub_kwargs = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`, the report too
        names = ("revision", "token", "cache_dir", "local_files_only")
        model.hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return loaded

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, AMESSProjection):
            # Orthonormal rows keep, as far as they can, the angles of a pretrained sentence encoder's embeddings.
            init.orthogonal_(module.weight)
            return
        super()._init_weights(module)
        if isinstance(module, AMESSModalityEmbedding):
            # A deviation of 0.5 beside positions of 0.7, however narrow the features: much quieter, and the choice of
            # anchors starts blind.
            init.normal_(module.projection.weight, std=0.5 * module.projection.in_features**-0.5)
            init.normal_(module.modality_embedding, std=self.config.initializer_range)
        elif isinstance(module, AMESSAnchorFusion):
            init.normal_(module.nothing, std=self.config.initializer_range)
        elif isinstance(module, AMESSForIntentClassification):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            init.zeros_(module.label_embeds)


class AMESSModel(AMESSPreTrainedModel):
    """
    Text encoder and A-ME: from words, sound and picture to one embedding.

    The text encoder comes from `config.text_config` with new weights; pretrained ones come by
    [`AMESSForIntentClassification.from_text_pretrained`].
    """

    def __init__(self, config: AMESSConfig):
        super().__init__(config)
        self.text_encoder = AutoModel.from_config(config.text_config)
        self._drop_pooler()
        fusion = _FUSIONS.get(config.fusion_type)
        self.fusion = None if fusion is None else fusion(config)
        self.projection = AMESSProjection(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    def _drop_pooler(self):
        # Nothing reads the pooler of BERT and its kin: its weights would get no gradient and stop DDP.
        if getattr(self.text_encoder, "pooler", None) is not None:
            self.text_encoder.pooler = None

    def get_input_embeddings(self):
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_encoder.set_input_embeddings(value)

    def encode_text(self, input_ids, attention_mask=None, token_type_ids=None, utterance_mask=None):
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`): Tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): 1 for tokens, 0 for padding.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Passed on if the encoder takes them.
            utterance_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for the utterance's own tokens, which have seen the dialogue context beside them.

        Returns:
            `tuple`: token states `(batch_size, text_length, width)`, the mean of the utterance's `(batch_size, width)`
            (zero where there are no words), and the utterance's mask as `torch.BoolTensor`.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        # An encoder may give NaN where every token is masked; with the first one let through, what it gives is unused.
        first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        inputs = {"input_ids": input_ids, "attention_mask": (mask | (first & ~mask.any(1, keepdim=True))).long()}
        if token_type_ids is not None and "token_type_ids" in inspect.signature(self.text_encoder.forward).parameters:
            inputs["token_type_ids"] = token_type_ids
        states = self.text_encoder(**inputs, return_dict=True).last_hidden_state
        if utterance_mask is not None:
            mask = mask & utterance_mask.bool()
        return states, masked_mean(states, mask), mask

    def project(self, pooled):
        """`pooled` (batch, width of the text encoder) → unit vectors (batch, projection_dim), in float32."""
        return nn.functional.normalize(self.projection(pooled).float(), dim=-1)

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
        **kwargs,
    ) -> AMESSModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Tokens of the utterances. A clip without words has a mask of zeros.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for tokens, 0 for padding; all ones if not given.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Token types, for text encoders that take them.
            audio_features (`torch.FloatTensor` of shape `(batch_size, audio_length, audio_feature_size)`, *optional*):
                Features of the sound.
            audio_attention_mask (`torch.Tensor` of shape `(batch_size, audio_length)`, *optional*):
                1 for frames, 0 for padding; all zeros for a clip without sound; all ones if not given.
            video_features (`torch.FloatTensor` of shape `(batch_size, video_length, video_feature_size)`, *optional*):
                Features of the picture.
            video_attention_mask (`torch.Tensor` of shape `(batch_size, video_length)`, *optional*):
                1 for frames, 0 for padding; all zeros for a clip without picture; all ones if not given.
            utterance_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for the utterance's own tokens, 0 for its dialogue context, which the text encoder reads but which is
                neither summarised nor fused; like `attention_mask` if not given.
            output_hidden_states (`bool`, *optional*):
                Whether to return the anchors' states of all fusion layers; by default as the configuration says.
            output_attentions (`bool`, *optional*):
                Whether to return the attention weights of all fusion layers; by default as the configuration says.

        Raises:
            `ValueError`: if no modality is given, if features have another shape than said, or if attention weights are
            asked of an implementation that has none.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        self._check_attentions(output_attentions)
        features, masks = self._frames(audio_features, audio_attention_mask, video_features, video_attention_mask)
        if input_ids is not None:
            features["text"], summary, masks["text"] = self.encode_text(
                input_ids, attention_mask, token_type_ids, utterance_mask
            )
        else:
            summary = self._no_words(audio_features if audio_features is not None else video_features)
        if any(mask.shape[0] != summary.shape[0] for mask in masks.values()):
            sizes = {name: mask.shape[0] for name, mask in masks.items()}
            raise ValueError(f"the modalities have different numbers of clips: {sizes}; give each as many")
        if self.training and self.config.modality_dropout and len(features) > 1:
            masks = self._drop_modalities(masks)
            if input_ids is not None:
                summary = summary * masks["text"].any(1, keepdim=True)
        fused = _Fused(torch.zeros_like(summary)) if self.fusion is None else self.fusion(features, masks, summary)
        pooled = summary + fused.state
        return AMESSModelOutput(
            multimodal_embeds=self.project(pooled),
            pooler_output=pooled,
            anchor_indices=fused.anchor_indices,
            anchor_scores=fused.anchor_scores,
            hidden_states=fused.hidden_states if output_hidden_states else None,
            attentions=fused.attentions if output_attentions else None,
        )

    def _no_words(self, frames):
        """The summary of a batch without words, as long as `frames`."""
        if frames is None:
            raise ValueError("no modality given: pass `input_ids`, `audio_features` or `video_features`")
        return self.projection.weight.new_zeros(frames.shape[0], self.config.text_config.hidden_size)

    def _check_attentions(self, output_attentions):
        if not output_attentions:
            return
        if self.config.fusion_type != "anchor" or self.config._attn_implementation != "eager":
            raise ValueError(
                "attention weights are returned for `fusion_type='anchor'` with `attn_implementation='eager'`; this model "
                f"has {self.config.fusion_type!r} and {self.config._attn_implementation!r}. Call "
                "`model.set_attn_implementation('eager')` first."
            )

    def _frames(self, audio_features, audio_mask, video_features, video_mask):
        """Features and masks of sound and picture, checked, by modality; modalities that the model lacks are left out."""
        features, masks = {}, {}
        given = {"audio": (audio_features, audio_mask), "video": (video_features, video_mask)}
        for name, (frames, mask) in given.items():
            width = getattr(self.config, f"{name}_feature_size")
            if frames is None or width is None or self.fusion is None or 0 in frames.shape[1:2]:
                continue
            if frames.dim() != 3 or (mask is not None and mask.shape != frames.shape[:2]):
                raise ValueError(
                    f"`{name}_features` has shape {tuple(frames.shape)}"
                    f"{'' if mask is None else f' and its mask {tuple(mask.shape)}'}; it must be (batch_size, length, "
                    f"{width}), and its mask (batch_size, length)"
                )
            if frames.shape[-1] != width:
                raise ValueError(
                    f"`{name}_features` is {frames.shape[-1]} wide, but this model was made for {width} "
                    f"(`config.{name}_feature_size`); give features of the encoder it was trained with"
                )
            mask = frames.new_ones(frames.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
            # Padding may hold anything, NaN included.
            features[name] = frames.masked_fill(~mask.unsqueeze(-1), 0.0)
            masks[name] = mask
        return features, masks

    def _drop_modalities(self, masks):
        """Mask one modality of a random share of the clips, unless it is the only one the clip has."""
        names = list(masks)
        there = torch.stack([masks[name].any(1) for name in names], dim=1)  # (batch, modalities)
        drawn = torch.rand(there.shape, device=there.device).argmax(1, keepdim=True)
        dropped = torch.zeros_like(there).scatter(1, drawn, True)
        chance = torch.rand(there.shape[0], 1, device=there.device) < self.config.modality_dropout
        dropped = dropped & chance & ((there & ~dropped).any(1, keepdim=True))
        return {name: masks[name] & ~dropped[:, index, None] for index, name in enumerate(names)}


class AMESSForIntentClassification(AMESSPreTrainedModel):
    """A-MESS with a classifier over intents and the embeddings of their descriptions."""

    def __init__(self, config: AMESSConfig):
        super().__init__(config)
        self.amess = AMESSModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels)
        # One number in one dimension: FSDP shards no scalars.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.register_buffer("label_embeds", torch.zeros(config.num_labels, config.projection_dim))
        self.post_init()

    def get_input_embeddings(self):
        return self.amess.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.amess.set_input_embeddings(value)

    @classmethod
    def from_text_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        labels: list[str] | None = None,
        label_descriptions: str | os.PathLike | list[str] | dict[str, list[str]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Any = None,
        **config_kwargs: Any,
    ) -> "AMESSForIntentClassification":
        """Make a model around a pretrained text encoder; everything else is new.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A text encoder that `AutoModel` loads: a Hub repository or a folder.
            labels (`list[str]`, *optional*):
                Names of the intents, in the order of their ids; without it those of `dataset` or `label_descriptions`.
            label_descriptions (`str`, `os.PathLike`, `list[str]` or `dict[str, list[str]]`, *optional*):
                Sentences that describe each intent: `"mintrec"` or `"mintrec2.0"` (shipped), the path of a JSON file,
                several of these, or the sentences themselves. Labels are matched without regard to case.
            tokenizer (`PreTrainedTokenizerBase`, *optional*):
                Tokenizer for the descriptions; loaded from `pretrained_model_name_or_path` if not given.
            dataset (`datasets.Dataset`, *optional*):
                Training clips, as [`load_mintrec`] gives them: labels, feature widths, usual lengths and turns of context
                are taken from them, and `fusion_type` is `"text"` where they have words alone.
            config_kwargs:
                Fields of [`AMESSConfig`]; they come before what follows from `dataset`.

        Raises:
            ValueError: If there are no labels, or a label lacks a description.

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
            config_kwargs = {**config_fields_for(dataset, config_kwargs.get("context_turns")), **config_kwargs}
        if labels is None and isinstance(label_descriptions, dict):
            labels = list(label_descriptions)
        if not labels:
            raise ValueError("no labels: give `labels`, `dataset`, or `label_descriptions` whose keys are the labels")
        if label_descriptions is not None:
            label_descriptions = describe_labels(list(labels), label_descriptions)
        text_encoder = AutoModel.from_pretrained(pretrained_model_name_or_path)
        config = AMESSConfig(
            text_config=text_encoder.config,
            id2label=dict(enumerate(labels)),
            label_descriptions=label_descriptions,
            **config_kwargs,
        )
        model = cls(config).to(text_encoder.dtype)
        model.amess.text_encoder = text_encoder
        model.amess._drop_pooler()
        if label_descriptions is not None:
            model.update_label_embeds(tokenizer or AutoTokenizer.from_pretrained(pretrained_model_name_or_path))
        return model

    def similarity_logits(self, multimodal_embeds, label_embeds):
        """
        Cosine similarities over the learned temperature.

        Args:
            multimodal_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips, unit length.
            label_embeds (`torch.Tensor` of shape `(num_labels, projection_dim)`): Descriptions, unit length.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        # At most 100, as in CLIP: beyond that one step can throw the temperature away.
        scale = self.logit_scale.float().clamp(max=math.log(100)).exp()
        return scale * multimodal_embeds.float() @ label_embeds.float().T

    @torch.no_grad()
    def encode_label_descriptions(self, label_descriptions, tokenizer, batch_size=64):
        """
        Embed descriptions: the mean of each label's sentences, at unit length.

        Args:
            label_descriptions (`dict[str, list[str]]`, or `dict[str, str]`): Sentences for each label.
            tokenizer: The text encoder's tokenizer.
            batch_size (`int`): Sentences at a time.

        Returns:
            `torch.FloatTensor` of shape `(len(label_descriptions), projection_dim)`, rows in the order of the dict.

        Raises:
            `ValueError`: if a label has no sentence, or an empty one.
        """
        if not label_descriptions:
            raise ValueError("no intent is described; give at least one, with a sentence")
        groups = [[texts] if isinstance(texts, str) else list(texts) for texts in label_descriptions.values()]
        for label, group in zip(label_descriptions, groups, strict=True):
            if not group or not all(isinstance(text, str) and text.strip() for text in group):
                raise ValueError(
                    f"{group!r} is no description of the intent {label!r}; describe it in at least one sentence"
                )
        sentences = [sentence for group in groups for sentence in group]
        was_training = self.training
        self.eval()
        embeds = [
            self._encode_sentences(**self._tokenize(sentences[first : first + batch_size], tokenizer))
            for first in range(0, len(sentences), batch_size)
        ]
        self.train(was_training)
        means = [group.mean(0) for group in torch.cat(embeds).split([len(group) for group in groups])]
        return nn.functional.normalize(torch.stack(means), dim=-1)

    def _tokenize(self, sentences, tokenizer):
        batch = encode_texts(tokenizer, sentences, max_length=min(text_positions(self.config.text_config), 128))
        return {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _encode_sentences(self, input_ids, attention_mask):
        # A description takes the way of a clip that has words alone: both are then compared like with like.
        return self.amess(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).multimodal_embeds

    def update_label_embeds(self, tokenizer):
        """Embed `config.label_descriptions` anew and store them with the model: after training, before saving."""
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        descriptions = {name: self.config.label_descriptions[name] for name in names}
        self.label_embeds.copy_(self.encode_label_descriptions(descriptions, tokenizer))

    @torch.no_grad()
    def set_label_descriptions(self, label_descriptions, tokenizer=None):
        """
        Replace the label set by described intents, without training. Intents that the classifier knows by the same
        name keep their weights; the others are scored by their descriptions alone.

        Args:
            label_descriptions (`dict[str, list[str]]`, or `dict[str, str]`): Sentences for each intent.
            tokenizer (*optional*): The text encoder's tokenizer; loaded from the model's own folder if not given.

        Raises:
            `ValueError`: if an intent has no description, or no tokenizer can be found.
        """
        if tokenizer is None:
            if not self.config._name_or_path:
                raise ValueError("this model was not loaded from a folder that has a tokenizer: pass `tokenizer`")
            tokenizer = AutoTokenizer.from_pretrained(self.config._name_or_path, **self.hub_kwargs)
        label_embeds = self.encode_label_descriptions(label_descriptions, tokenizer)
        trained = {self.config.id2label[index]: index for index in self._trained_labels()}
        classifier = nn.Linear(self.classifier.in_features, len(label_descriptions)).to(self.classifier.weight)
        for row, name in enumerate(label_descriptions):
            known = trained.get(name)
            classifier.weight[row] = 0.0 if known is None else self.classifier.weight[known]
            classifier.bias[row] = 0.0 if known is None else self.classifier.bias[known]
        self.classifier = classifier
        self.label_embeds = label_embeds.to(self.label_embeds)
        self.config.id2label = dict(enumerate(label_descriptions))
        self.config.label2id = {name: index for index, name in enumerate(label_descriptions)}
        self.config.label_descriptions = {
            name: [texts] if isinstance(texts, str) else list(texts) for name, texts in label_descriptions.items()
        }
        self.config.zero_shot_labels = [name for name in label_descriptions if name not in trained] or None

    def _trained_labels(self):
        """Ids of the labels that the classifier was trained on."""
        zero_shot = set(self.config.zero_shot_labels or ())
        return [index for index, name in self.config.id2label.items() if name not in zero_shot]

    def combine_logits(self, class_logits, similarity_logits):
        """
        Scores from the classifier and from the descriptions together. The similarities share the
        probability between the labels that the classifier knows and those that it does not; among the known ones it is
        the geometric mean of both, with `config.label_similarity_weight` for the similarity.

        Args:
            class_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The classifier's scores.
            similarity_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scaled similarities.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_labels)`.
        """
        weight = self.config.label_similarity_weight
        trained = self._trained_labels()
        if self.config.label_descriptions is None or (weight == 0 and len(trained) == self.config.num_labels):
            return class_logits
        if len(trained) == self.config.num_labels:
            # The same up to a number for each clip, which keeps how sure both are: out-of-scope scores need it.
            return (1 - weight) * class_logits.float() + weight * similarity_logits
        by_similarity = similarity_logits.log_softmax(-1)
        if not trained:
            return by_similarity
        index = torch.tensor(trained, device=class_logits.device)
        known = by_similarity.index_select(1, index)
        share = known.logsumexp(-1, keepdim=True)
        by_class = class_logits.float().index_select(1, index).log_softmax(-1) + share
        return by_similarity.index_copy(1, index, (1 - weight) * by_class + weight * known)

    def _refreshed_label_embeds(self, input_ids, attention_mask, indices):
        """Label embeddings with those of `indices` encoded anew, gradient included, and remembered."""
        if input_ids is None:
            return self.label_embeds.clone()
        fresh = self._encode_sentences(input_ids, attention_mask).to(self.label_embeds.dtype)
        label_embeds = self.label_embeds.index_copy(0, indices, fresh)
        if self.training:
            # In place: DDP keeps the processes' buffers alike by the tensors it saw first.
            with torch.no_grad():
                self.label_embeds.copy_(label_embeds)
        return label_embeds

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
        labels: torch.LongTensor | None = None,
        candidate_mask: torch.BoolTensor | None = None,
        utterance_mask: torch.Tensor | None = None,
        description_input_ids: torch.LongTensor | None = None,
        description_attention_mask: torch.Tensor | None = None,
        description_indices: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> AMESSClassifierOutput:
        r"""
        The arguments of [`AMESSModel`]'s `forward`, and

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Intents; -1 for out of scope, anything below for a row that counts in no loss.
            candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*):
                Labels that a clip may have, where clips come from data sets with different label sets.
            description_input_ids (`torch.LongTensor` of shape `(descriptions, text_length)`, *optional*):
                Tokens of descriptions to encode in this step, at most one for a label; the others come from memory.
            description_attention_mask (`torch.Tensor` of shape `(descriptions, text_length)`, *optional*):
                1 for tokens, 0 for padding.
            description_indices (`torch.LongTensor` of shape `(descriptions,)`, *optional*):
                The label of each description.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "audio_features": audio_features,
            "audio_attention_mask": audio_attention_mask,
            "video_features": video_features,
            "video_attention_mask": video_attention_mask,
            "utterance_mask": utterance_mask,
        }
        twice = self.training and labels is not None and self.config.consistency_loss_weight > 0
        if twice:
            inputs = {name: None if value is None else torch.cat([value, value]) for name, value in inputs.items()}
            labels = torch.cat([labels, labels])
            candidate_mask = None if candidate_mask is None else torch.cat([candidate_mask, candidate_mask])
        outputs = self.amess(
            **inputs,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        label_embeds = self._refreshed_label_embeds(
            description_input_ids, description_attention_mask, description_indices
        )
        class_logits = self.classifier(self.dropout(outputs.pooler_output))
        similarity_logits = self.similarity_logits(outputs.multimodal_embeds, label_embeds)
        losses = {}
        if labels is not None:
            self._check_labels(labels, class_logits)
            losses = self._losses(outputs, class_logits, similarity_logits, label_embeds, labels, candidate_mask)
        logits = class_logits if self.training else self.combine_logits(class_logits, similarity_logits)
        if candidate_mask is not None:
            logits = logits.masked_fill(~candidate_mask, torch.finfo(logits.dtype).min)
        return AMESSClassifierOutput(
            logits=logits,
            multimodal_embeds=outputs.multimodal_embeds,
            label_embeds=None if self.config.label_descriptions is None else label_embeds,
            pooler_output=outputs.pooler_output,
            anchor_indices=outputs.anchor_indices,
            anchor_scores=outputs.anchor_scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **losses,
        )

    def _check_labels(self, labels, logits):
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)} for {logits.shape[0]} clips; give one for each"
            )
        # On the CPU looking costs nothing; elsewhere it would make the host wait, and the device checks by itself.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            if labels.numel() and int(labels.max()) >= self.config.num_labels:
                raise ValueError(
                    f"`labels` has {int(labels.max())}, but this model has {self.config.num_labels} labels"
                )

    def _losses(self, outputs, class_logits, similarity_logits, label_embeds, labels, candidate_mask):
        """`loss` and its parts; each is a mean over the labelled (or out-of-scope) clips of all processes."""
        config = self.config
        labelled = labels >= 0
        embeds = outputs.multimodal_embeds
        parts = {
            "classification_loss": (
                1.0,
                labelled,
                lambda: classification_loss(class_logits, labels, config.label_smoothing, candidate_mask),
            ),
            "batch_triplet_loss": (
                config.batch_triplet_loss_weight,
                labelled,
                lambda: self._batch_triplets(embeds, labels),
            ),
            "outlier_exposure_loss": (
                config.outlier_exposure_loss_weight,
                labels == OUT_OF_SCOPE_ID,
                lambda: outlier_exposure_loss(class_logits, labels),
            ),
        }
        if config.label_descriptions is not None:
            parts["label_triplet_loss"] = (
                config.label_triplet_loss_weight,
                labelled,
                lambda: label_triplet_loss(embeds, label_embeds, labels, config.triplet_margin, candidate_mask),
            )
            parts["label_contrastive_loss"] = (
                config.label_contrastive_loss_weight,
                labelled,
                lambda: label_contrastive_loss(similarity_logits, labels, candidate_mask),
            )
        if self.training:
            parts["consistency_loss"] = (
                config.consistency_loss_weight,
                labelled,
                lambda: consistency_loss(*self._both_passes(class_logits, candidate_mask)).repeat(2),
            )
        total, values = 0.0, {}
        for name, (weight, mask, compute) in parts.items():
            if weight:
                mean = self._mean(compute(), mask)
                total = total + weight * mean
                values[name] = mean.detach()
        return {"loss": total, **values}

    def _mean(self, values, mask):
        if self.training:
            return mean_over_processes(values, mask)
        return values.where(mask, 0.0).sum() / mask.sum().clamp(min=1)

    def _batch_triplets(self, embeds, labels):
        others = gather_clips(embeds, labels) if self.training else ()
        return batch_triplet_loss(embeds, labels, self.config.triplet_margin, *others)

    def _both_passes(self, class_logits, candidate_mask):
        """The two dropout passes' logits, and one pass' candidate mask."""
        first, second = class_logits.chunk(2)
        return first, second, None if candidate_mask is None else candidate_mask[: first.shape[0]]


__all__ = ["AMESSForIntentClassification", "AMESSModel", "AMESSPreTrainedModel"]
