"""Fusions: how the words, the sound and the picture of a clip become one state.

To add a fusion:

1. Subclass [`AMESSTokenFusion`]: `self._embed` makes tokens of one width, `forward` returns a [`FusionOutput`].
2. Leave absent modalities out (`_concatenate` puts zeros in their place), and keep padding out with the masks.
3. Add the class to [`FUSIONS`] under its `fusion_type`: the configuration then accepts that value, the model builds it.
4. Initialise parameters that are not in a `torch.nn` layer in [`AMESSPreTrainedModel._init_weights`].
5. Describe the value in [`AMESSConfig`]; `tests/test_modeling.py` runs its general tests on every entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_amess import FEATURE_MODALITIES, MODALITIES, NO_ANCHOR
from .evidence_amess import AMESSEvidence, AMESSVotes, frame_size, masked_statistics


@dataclass
class FusionOutput:
    """What a fusion returns.

    Attributes:
        state (`torch.Tensor` of shape `(batch_size, text_config.hidden_size)`): The fused clip, added to the text summary.
        evidence (`torch.Tensor` of shape `(batch_size, 2, num_labels)`, *optional*):
            What sound and picture say on their own, added to the logits.
        anchor_indices (`torch.LongTensor` of shape `(batch_size, 3, num_anchors)`, *optional*): Positions of the anchors.
        anchor_scores (`torch.Tensor` of shape `(batch_size, 3, num_anchors)`, *optional*): How much of its modality each anchor carries.
        hidden_states (`tuple(torch.Tensor)`, *optional*): States before the first layer and after each.
        attentions (`tuple(torch.Tensor)`, *optional*): Attention weights of each layer.
    """

    state: torch.Tensor
    evidence: torch.Tensor | None = None
    anchor_indices: torch.Tensor | None = None
    anchor_scores: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor | None, ...] | None = None


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average states over the positions that a mask keeps.

    Args:
        states (`torch.Tensor` of shape `(batch_size, length, width)`): States.
        mask (`torch.Tensor` of shape `(batch_size, length)`): True, or 1, where a state counts.

    Returns:
        `torch.Tensor` of shape `(batch_size, width)`: The means; zero for a clip whose mask is empty.
    """
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def sinusoidal_positions(length: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return sines, then cosines, of positions (arXiv 1706.03762, section 3.5): `(length, width)`, of the type of `like`."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(length, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention that returns its weights.

    Takes queries, keys and values `(batch_size, heads, length, head_dim)`; returns the output `(batch_size, queries, heads,
    head_dim)` and the weights `(batch_size, heads, queries, tokens)`.
    """
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class AMESSAttention(nn.Module):
    """Multi-head attention of queries to a memory."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _heads(self, states: torch.Tensor):
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)  # (batch, heads, length, head_dim)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; see [`AMESSFusionLayer.forward`]."""
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
    """Pre-norm cross-attention and feed-forward part; the caller normalises the memory once for all layers."""

    def __init__(self, config: PreTrainedConfig):
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

    def forward(
        self, states: torch.Tensor, memory: torch.Tensor, attention_mask: torch.Tensor, attend_to_states: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Update the states from the memory.

        Args:
            states (`torch.Tensor` of shape `(batch_size, queries, hidden_size)`): What attends.
            memory (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): What is attended to.
            attention_mask (`torch.Tensor`): In the form that the attention implementation takes.
            attend_to_states (`bool`): Whether the states attend to one another too (they come before the memory).

        Returns:
            `tuple`: the new states, and the attention weights where the attention implementation gives them.
        """
        queries = self.attention_norm(states)
        memory = torch.cat([queries, memory], dim=1) if attend_to_states else memory
        attended, weights = self.attention(queries, memory, attention_mask)
        states = states + self.dropout(attended)
        return states + self.dropout(self.mlp(self.mlp_norm(states))), weights


class AMESSTemporalLayer(nn.Module):
    """Convolution over time that halves the rate, added to the mean of each pair of frames.

    The result for a clip depends on its own frames alone: padding counts as zero for a neighbour, as does everything
    beyond the clip's ends, and in no mean.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig, kernel_size: int):
        super().__init__()
        size = config.hidden_size
        self.conv = nn.Conv1d(size, size, kernel_size, stride=2, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve the tokens of one modality.

        Args:
            tokens (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): Tokens.
            mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.

        Returns:
            `tuple`: tokens `(batch_size, (length + 1) // 2, hidden_size)` and their mask.
        """
        present = mask.unsqueeze(1).to(tokens.dtype)  # (batch, 1, length)
        tokens = tokens.transpose(1, 2) * present
        share = nn.functional.avg_pool1d(present, 2, ceil_mode=True)  # share of each pair of frames
        means = nn.functional.avg_pool1d(tokens, 2, ceil_mode=True) / share.clamp(min=0.5)
        states = self.conv(tokens).transpose(1, 2)
        return means.transpose(1, 2) + nn.functional.gelu(self.norm(states)), share[:, 0] > 0


# The larger, the nearer is the soft maximum over a grid to its maximum.
GRID_SHARPNESS = 4.0


class AMESSGridLayer(nn.Conv2d):
    """A convolution over the places of a grid; a separate class because it is initialised differently."""


class AMESSGridConvolution(nn.Module):
    """Pictures that are grids of local features: convolutions find what is anywhere in the grid.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        feature_size (`int`): Width of the features.
        side (`int`): Places along each side of the grid; a place's numbers lie next to each other.
    """

    def __init__(self, config: PreTrainedConfig, feature_size: int, side: int):
        super().__init__()
        self.side = side
        quarter = max(1, config.hidden_size // 4)
        widths = (feature_size // side**2, quarter, 2 * quarter, 3 * quarter, config.hidden_size)
        self.conv_layers = nn.ModuleList(
            [AMESSGridLayer(before, after, 3, padding=1) for before, after in zip(widths, widths[1:], strict=False)]
        )
        # Each channel over the places of its frame: normalised together, hundreds of steps would learn nothing.
        self.norms = nn.ModuleList(
            [nn.InstanceNorm2d(width, eps=config.layer_norm_eps, affine=True) for width in widths[1:]]
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Read each frame by itself.

        Args:
            frames (`torch.Tensor` of shape `(batch_size, length, feature_size)`): Features.

        Returns:
            `torch.Tensor` of shape `(batch_size, length, hidden_size)`: A soft maximum of the answers all over the grid.
        """
        batch_size, length = frames.shape[:2]
        grid = frames.reshape(batch_size * length, self.side, self.side, -1).permute(0, 3, 1, 2)
        for number, (conv, norm) in enumerate(zip(self.conv_layers, self.norms, strict=True)):
            grid = nn.functional.gelu(norm(conv(grid)))
            if number in (1, 2):
                grid = nn.functional.max_pool2d(grid, 2, ceil_mode=True)
        # Unlike those of a maximum, the gradients reach every place.
        places = (GRID_SHARPNESS * grid.flatten(2)).logsumexp(-1) / GRID_SHARPNESS
        return self.dropout(places).reshape(batch_size, length, -1)


def shifted_places(size: int, most: int, batch_size: int, device: torch.device) -> torch.Tensor:
    """Return `0 … size - 1`, moved by a random number of places for each clip; the outermost fill what is left free.

    Args:
        size (`int`): Number of places.
        most (`int`): Places at most, in either direction.
        batch_size (`int`): Number of clips.
        device (`torch.device`): Where the result is.

    Returns:
        `torch.LongTensor` of shape `(batch_size, size)`.
    """
    steps = torch.randint(-most, most + 1, (batch_size, 1), device=device)
    return (torch.arange(size, device=device) + steps).clamp(0, size - 1)


def shift_bands(frames: torch.Tensor, most: int) -> torch.Tensor:
    """Move each clip's filterbank up or down by a random number of bands, as if another throat had spoken.

    A simple form of vocal tract length perturbation (Jaitly & Hinton, ICML workshop on deep learning for audio, 2013).

    Args:
        frames (`torch.Tensor` of shape `(batch_size, length, bands)`): Frames of a filterbank.
        most (`int`): Bands at most, in either direction.

    Returns:
        `torch.Tensor`: of the same shape.
    """
    batch_size, length, width = frames.shape
    bands = shifted_places(width, most, batch_size, frames.device)
    return frames.gather(2, bands.unsqueeze(1).expand(-1, length, -1))


def shift_grid(frames: torch.Tensor, side: int, most: int) -> torch.Tensor:
    """Move each clip's pictures by a random number of places across and down, as if the camera had stood elsewhere.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, length, side * side * width)`): Grids of features.
        side (`int`): Places along each side of the grid.
        most (`int`): Places at most, in each direction.

    Returns:
        `torch.Tensor`: of the same shape.
    """
    batch_size, length = frames.shape[:2]
    rows, columns = (shifted_places(side, most, batch_size, frames.device) for _ in range(2))
    clips = torch.arange(batch_size, device=frames.device)[:, None, None]
    grid = frames.reshape(batch_size, length, side, side, -1).permute(0, 2, 3, 1, 4)
    return grid[clips, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4).reshape(frames.shape)


class AMESSModalityEmbedding(nn.Module):
    """Project the features of one modality to the fusion's width; add embeddings of the modality and of the position.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        feature_size (`int`): Width of the features.
        num_conv_layers (`int`): Temporal convolutions, each of which halves the number of tokens.
    """

    def __init__(self, config: PreTrainedConfig, feature_size: int, num_conv_layers: int = 0, kernel_size: int = 1):
        super().__init__()
        self.projection = nn.Linear(feature_size, config.hidden_size)
        self.frames_per_token = 2**num_conv_layers
        self.conv_layers = nn.ModuleList([AMESSTemporalLayer(config, kernel_size) for _ in range(num_conv_layers)])
        self.conv_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if num_conv_layers else None
        self.modality_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed normalised features.

        Args:
            features (`torch.Tensor` of shape `(batch_size, length, feature_size)`): Features.
            mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.

        Returns:
            `tuple`: tokens `(batch_size, tokens, hidden_size)` and their mask; a token stands for `2**num_conv_layers`
            frames.
        """
        tokens = self.projection(features)
        if self.conv_norm is not None:
            tokens = self.conv_norm(tokens)
        for layer in self.conv_layers:
            tokens, mask = layer(tokens, mask)
        tokens = tokens + self.modality_embedding
        return self.norm(tokens + sinusoidal_positions(tokens.shape[1], tokens.shape[2], tokens)), mask


class AMESSModalityEmbeddings(nn.ModuleDict):
    """One embedding for each modality that the configuration names.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        embeddings = {"text": AMESSModalityEmbedding(config, config.text_config.hidden_size)}
        for name, features in config.feature_configs.items():
            layers = features.num_conv_layers, features.conv_kernel_size
            embeddings[name] = AMESSModalityEmbedding(config, frame_size(config, name), *layers)
        super().__init__(embeddings)

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Embed each modality; both arguments and both results are dictionaries by modality."""
        embedded = {name: layer(features[name], masks[name]) for name, layer in self.items() if name in features}
        return {name: pair[0] for name, pair in embedded.items()}, {name: pair[1] for name, pair in embedded.items()}


def _attention_mask(config: PreTrainedConfig, queries: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor):
    """Convert the mask of `memory` (batch, tokens) to the form that the attention implementation takes."""
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=mask,
        encoder_hidden_states=memory,
        # Checking whether the mask is all ones would make the host wait for the device.
        allow_is_bidirectional_skip=False,
    )


class AMESSFusion(nn.Module):
    """Base class of the fusions.

    `forward(features, masks, summary)` takes two dictionaries from modality to tensor, which have the modalities of the
    batch (`features`, `(batch_size, length, feature_size)`; `masks`, bool, `(batch_size, length)`), and the mean state of
    the utterance's words (`summary`, `(batch_size, text_config.hidden_size)`), and returns a [`FusionOutput`].

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        self.grids = nn.ModuleDict(
            {
                name: AMESSGridConvolution(config, features.feature_size, features.grid_side)
                for name, features in config.feature_configs.items()
                if features.grid_side
            }
        )

    def _shift(self, features: dict[str, torch.Tensor]):
        """The features with bands and grids moved, as far as the configuration says so."""
        shifted = {}
        for name, config in self.config.feature_configs.items():
            if config.max_shift and name in features:
                grid = (config.grid_side,) if config.grid_side else ()
                shifted[name] = (shift_grid if grid else shift_bands)(features[name], *grid, config.max_shift)
        return features | shifted

    def _read_features(self, features: dict[str, torch.Tensor]):
        """The features, augmented in training, with grids replaced by what a convolution makes of them."""
        dtype = next(self.parameters()).dtype
        features = self._shift(features) if self.training else features
        return features | {
            name: grid(features[name].to(dtype)) for name, grid in self.grids.items() if name in features
        }

    def _normalize(self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]):
        """Normalise each frame over its numbers or, where the configuration says so, each number over the clip's frames."""
        dtype, eps = next(self.parameters()).dtype, self.config.layer_norm_eps
        normalized = {}
        for name, frames in features.items():
            frames = frames.to(dtype)
            if name != "text" and self.config.feature_configs[name].norm == "clip":
                mean, deviation = masked_statistics(frames, masks[name])
                normalized[name] = (frames - mean.unsqueeze(1)) / (deviation.unsqueeze(1) + eps)
            else:
                # No gain or bias: the linear maps that follow have both, and without them the backward pass skips the
                # features.
                normalized[name] = nn.functional.layer_norm(frames, frames.shape[-1:], eps=eps)
        return normalized

    def _stack_evidence(self, evidence: dict[str, torch.Tensor], summary: torch.Tensor):
        """Evidence of sound and picture, (batch, 2, num_labels); zero for a modality that is absent."""
        absent = summary.new_zeros(summary.shape[0], self.num_labels, dtype=torch.float32)
        return torch.stack([evidence.get(name, absent) for name in FEATURE_MODALITIES], dim=1)

    def select_labels(self, rows: list[int | None]) -> None:
        """Follow a new label set: label `i` votes as label `rows[i]` did, and not at all where that is `None`."""
        self.num_labels = len(rows)
        for module in self.modules():
            if isinstance(module, AMESSVotes):
                module.select_labels(rows)


class AMESSTokenFusion(AMESSFusion):
    """Base class of the fusions that embed the features as tokens of one width.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.embeddings = AMESSModalityEmbeddings(config)

    def _embed(self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]):
        """Tokens and their masks by modality, (batch, tokens, hidden_size) and (batch, tokens)."""
        return self.embeddings(self._normalize(self._read_features(features), masks), masks)

    def _concatenate(self, states: dict[str, torch.Tensor], summary: torch.Tensor):
        """Concatenate one state (batch, hidden_size) for each modality, with zeros for those that are absent."""
        absent = summary.new_zeros(summary.shape[0], self.config.hidden_size)
        return torch.cat([states.get(name, absent) for name in self.embeddings], dim=-1)


def choose_anchors(
    scores: torch.Tensor, mask: torch.Tensor, num_anchors: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the tokens with the highest scores.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, length)`): Scores of the tokens of one modality.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.
        num_anchors (`int`): How many to choose; fewer for a clip that has fewer.

    Returns:
        `tuple`: positions (0 where there is none), shares in the softmax of all scores (0 where there is none), through
        which all tokens get gradient, and which are present, each `(batch_size, num_anchors)`, best first.
    """
    shares = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
    # With the padding, a clip shorter than `num_anchors` takes the same path as any other.
    ranks = nn.functional.pad(scores.masked_fill(~mask, float("-inf")), (0, num_anchors), value=float("-inf"))
    ranks, indices = ranks.topk(num_anchors)
    present = ranks > float("-inf")
    indices = indices.masked_fill(~present, 0)
    return indices, shares.gather(1, indices) * present, present


class AMESSAnchorFusion(AMESSTokenFusion):
    """A-ME: anchors of all modalities attend to one another and to all tokens; linear in the number of tokens.

    The frames of sound and picture vote for intents, and the frames that say most are their anchors; the anchors of the
    words are those that a summary of the utterance scores highest.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self._make_choice(config)
        # Attended to when there is nothing else, so that a clip without any modality has defined attention weights.
        self.nothing = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList([AMESSFusionLayer(config) for _ in range(config.num_fusion_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size * len(self.embeddings), config.text_config.hidden_size)

    def _make_choice(self, config: PreTrainedConfig):
        self.evidence = AMESSEvidence(config)
        self.query = nn.Linear(config.text_config.hidden_size, config.hidden_size)

    def _choose(
        self,
        features: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        tokens: dict[str, torch.Tensor],
        token_masks: dict[str, torch.Tensor],
        summary: torch.Tensor,
    ):
        """Anchors by modality, as (states, positions, shares, present), and the evidence by modality (`None` if there is none)."""
        evidence, scores = {}, {}
        for name, layer in self.evidence.items():
            if name in tokens:
                evidence[name], scores[name] = layer(features[name], masks[name], tokens[name], token_masks[name])
        if "text" in tokens:
            query = self.query(summary) / math.sqrt(self.config.hidden_size)
            scores["text"] = torch.einsum("bth,bh->bt", tokens["text"], query).float()
        chosen = {}
        for name in tokens:
            indices, shares, present = choose_anchors(scores[name], token_masks[name], self.config.num_anchors)
            states = tokens[name].gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens[name].shape[-1]))
            chosen[name] = states, indices, shares, present
        return chosen, evidence

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        features = self._read_features(features)
        normalized = self._normalize(features, masks)
        tokens, token_masks = self.embeddings(normalized, masks)
        # Statistics of a clip preserve how loud it is.
        raw = {name for name, features in self.config.feature_configs.items() if features.norm == "clip"}
        frames = {name: features[name] if name in raw else normalized[name] for name in features}
        chosen, evidence = self._choose(frames, masks, tokens, token_masks, summary)
        anchors = torch.cat([chosen[name][0] for name in tokens], dim=1)
        present = torch.cat([chosen[name][3] for name in tokens], dim=1)
        nothing = self.nothing.expand(anchors.shape[0], 1, -1)
        memory = torch.cat([nothing, *tokens.values()], dim=1)
        mask = torch.cat([present, present.new_ones(present.shape[0], 1), *token_masks.values()], dim=1)
        attention_mask = _attention_mask(self.config, anchors, torch.cat([anchors, memory], dim=1), mask)
        # Kept by hand: the hooks of transformers' `capture_outputs` cannot be compiled where a model contains another.
        hidden_states, attentions = (anchors,), ()
        for layer in self.layers:
            anchors, weights = layer(anchors, memory, attention_mask, attend_to_states=True)
            hidden_states, attentions = (*hidden_states, anchors), (*attentions, weights)
        pooled = self._pool(self.norm(anchors), chosen)
        indices, shares = self._by_modality(chosen, summary)
        return FusionOutput(
            self.out_proj(self._concatenate(pooled, summary)),
            None if evidence is None else self._stack_evidence(evidence, summary),
            indices,
            shares,
            hidden_states,
            attentions,
        )

    def _pool(self, anchors: torch.Tensor, chosen: dict[str, tuple[torch.Tensor, ...]]):
        """Average each modality's anchors, weighted by their shares: modality -> (batch, hidden_size)."""
        pooled = {}
        for name, states in zip(chosen, anchors.split(self.config.num_anchors, dim=1), strict=True):
            shares = chosen[name][2].to(states.dtype).unsqueeze(-1)
            pooled[name] = (states * shares).sum(1) / shares.sum(1).clamp(min=1e-6)
        return pooled

    def _by_modality(self, chosen: dict[str, tuple[torch.Tensor, ...]], summary: torch.Tensor):
        """Positions (of frames) and shares of all three modalities, (batch, 3, num_anchors) each."""
        shape = (summary.shape[0], self.config.num_anchors)
        indices, shares = [], []
        for name in MODALITIES:
            if name in chosen:
                _, index, share, present = chosen[name]
                frames = index * self.embeddings[name].frames_per_token
                indices.append(frames.masked_fill(~present, NO_ANCHOR))
                shares.append(share)
            else:
                indices.append(torch.full(shape, NO_ANCHOR, dtype=torch.long, device=summary.device))
                shares.append(torch.zeros(shape, device=summary.device))
        return torch.stack(indices, dim=1), torch.stack(shares, dim=1)


class AMESSLateFusion(AMESSFusion):
    """Baseline: a classifier over the mean frame of each of sound and picture.

    Their log-probabilities are added to the words' logits, with scales that are learned.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        sizes = {name: frame_size(config, name) for name in config.feature_configs}
        self.votes = nn.ModuleDict({name: AMESSVotes(size, config.num_labels) for name, size in sizes.items()})
        self.scales = nn.ParameterDict({name: nn.Parameter(torch.ones(1)) for name in sizes})

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        normalized = self._normalize(self._read_features(features), masks)
        evidence = {}
        for name, votes in self.votes.items():
            if name in features:
                log_probs = votes(masked_mean(normalized[name], masks[name])).float().log_softmax(-1)
                evidence[name] = self.scales[name].float() * log_probs * masks[name].any(1, keepdim=True)
        return FusionOutput(torch.zeros_like(summary), self._stack_evidence(evidence, summary))


class AMESSMeanFusion(AMESSTokenFusion):
    """Ablation: mean of each modality, concatenation, MLP."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size * len(self.embeddings), config.intermediate_size),
            ACT2FN["gelu"],
            nn.Dropout(config.dropout),
            nn.Linear(config.intermediate_size, config.text_config.hidden_size),
        )

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        tokens, masks = self._embed(features, masks)
        means = {name: masked_mean(tokens[name], masks[name]) for name in tokens}
        return FusionOutput(self.mlp(self._concatenate(means, summary)))


class AMESSCrossModalFusion(AMESSTokenFusion):
    """Ablation: the pairwise scheme of MulT (Tsai et al., ACL 2019, section 3), at this model's width.

    Every token of a modality attends to all tokens of each other modality, then to those of its own; the means of the
    modalities are concatenated.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
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

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        tokens, masks = self._embed(features, masks)
        means = {name: masked_mean(self._attend(name, tokens, masks), masks[name]) for name in tokens}
        return FusionOutput(self.out_proj(self._concatenate(means, summary)))

    def _attend(self, target: str, tokens: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]):
        """States of `target`'s tokens after attending to the other modalities and to themselves."""
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

    def _layer(self, layer: AMESSFusionLayer, states: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor):
        # A clip that lacks the modality attends to its padding, and the result is discarded.
        there = mask.any(1)
        mask = mask | ~there[:, None]
        result, _ = layer(states, memory, _attention_mask(self.config, states, memory, mask))
        return torch.where(there[:, None, None], result, states)


# `fusion_type` -> class; `None` means no fusion, for text-only models.
FUSIONS: dict[str, type[AMESSFusion] | None] = {
    "anchor": AMESSAnchorFusion,
    "cross_modal": AMESSCrossModalFusion,
    "late": AMESSLateFusion,
    "mean": AMESSMeanFusion,
    "text": None,
}
