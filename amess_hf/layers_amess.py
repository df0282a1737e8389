"""The parts that fusions are made of: masked statistics, attention, convolutions, embeddings of modalities, and their base.

To add a fusion, see `fusion_amess.py`; A-ME is in `anchor_embedding_amess.py`.
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

from .configuration_amess import FEATURE_MODALITIES


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


def masked_statistics(states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation over time.

    Args:
        states (`torch.Tensor` of shape `(batch_size, length, width)`): States.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them count.

    Returns:
        `tuple`: two tensors of shape `(batch_size, width)`; the mean of nothing is zero.
    """
    weights = mask.to(states.dtype).unsqueeze(-1)
    count = weights.sum(1).clamp(min=1)
    mean = (states * weights).sum(1) / count
    variance = ((states - mean.unsqueeze(1)).square() * weights).sum(1) / count
    # The square root has no gradient at zero, where a clip has one frame or none.
    return mean, (variance + torch.finfo(torch.float32).eps).sqrt()


def _sinusoidal_positions(length: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Return sines, then cosines, of positions (arXiv 1706.03762, section 3.5): `(length, width)`, of the type of `like`."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angles = torch.arange(length, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def _eager_attention_forward(
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
            self.config._attn_implementation, _eager_attention_forward
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
    """Pre-norm cross-attention and feed-forward part; the caller normalizes the memory once for all layers."""

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


def make_attention_mask(
    config: PreTrainedConfig, queries: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Convert the mask of `memory` (batch, tokens) to the form that the attention implementation takes."""
    return create_bidirectional_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=mask,
        encoder_hidden_states=memory,
        # Checking whether the mask is all ones would make the host wait for the device.
        allow_is_bidirectional_skip=False,
    )


class AMESSTemporalLayer(nn.Module):
    """Convolution over time that halves the rate, added to the mean of each pair of frames.

    The result for a clip depends on its own frames alone: padding counts as zero for a neighbor, as does everything
    beyond the clip's ends, and in no mean.
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
    """A convolution over the places of a grid; a separate class because it is initialized differently."""


class AMESSGridConvolution(nn.Module):
    """Pictures that are grids of local features: convolutions find what is anywhere in the grid.

    Args:
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
        # Each channel over the places of its frame: normalized together, training stalls at first.
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


def _shifted_places(size: int, most: int, batch_size: int, device: torch.device):
    """Return `0 … size - 1` for each clip (batch, size), moved by up to `most` places; the outermost fill what is left."""
    steps = torch.randint(-most, most + 1, (batch_size, 1), device=device)
    return (torch.arange(size, device=device) + steps).clamp(0, size - 1)


def shift_features(frames: torch.Tensor, most: int, grid_side: int | None = None) -> torch.Tensor:
    """Move each clip's features by a random number of places: bands up or down, or pictures across and down.

    A shifted filterbank sounds as if another throat had spoken (vocal tract length perturbation; Jaitly & Hinton, ICML
    workshop on deep learning for audio, 2013), a shifted grid looks as if the camera had stood elsewhere.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, length, feature_size)`): A filterbank, or grids of features.
        most (`int`): Places at most, in each direction.
        grid_side (`int`, *optional*): Places along each side of the grid.

    Returns:
        `torch.Tensor`: of the same shape.
    """
    batch_size, length, width = frames.shape
    if grid_side is None:
        bands = _shifted_places(width, most, batch_size, frames.device)
        return frames.gather(2, bands.unsqueeze(1).expand(-1, length, -1))
    rows, columns = (_shifted_places(grid_side, most, batch_size, frames.device) for _ in range(2))
    clips = torch.arange(batch_size, device=frames.device)[:, None, None]
    grid = frames.reshape(batch_size, length, grid_side, grid_side, -1).permute(0, 2, 3, 1, 4)
    return grid[clips, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4).reshape(frames.shape)


def frame_size(config: PreTrainedConfig, modality: str) -> int:
    """Return the width of the frames that a fusion reads: of grids, that of what a convolution makes of them."""
    features = config.feature_configs[modality]
    return config.hidden_size if features.grid_side else features.feature_size


class AMESSModalityEmbedding(nn.Module):
    """Project the features of one modality to the fusion's width; add embeddings of the modality and of the position.

    Args:
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
        """Embed normalized features.

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
        return self.norm(tokens + _sinusoidal_positions(tokens.shape[1], tokens.shape[2], tokens)), mask


@dataclass
class FusionOutput:
    """What a fusion returns.

    Attributes:
        state (`torch.Tensor` of shape `(batch_size, text_config.hidden_size)`): The fused clip, added to the text summary.
        evidence (`torch.Tensor` of shape `(batch_size, 2, num_labels)`, *optional*):
            What audio and video say on their own, added to the logits.
        anchor_indices (`torch.LongTensor` of shape `(batch_size, 3, num_anchors)`, *optional*): Positions of the anchors.
        anchor_scores (`torch.Tensor` of shape `(batch_size, 3, num_anchors)`, *optional*):
            How much of its modality each anchor carries.
        hidden_states (`tuple(torch.Tensor)`, *optional*): States before the first layer and after each.
        attentions (`tuple(torch.Tensor)`, *optional*): Attention weights of each layer.
    """

    state: torch.Tensor
    evidence: torch.Tensor | None = None
    anchor_indices: torch.Tensor | None = None
    anchor_scores: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor | None, ...] | None = None


class AMESSFusion(nn.Module):
    """Base class of the fusions.

    `forward(features, masks, summary)` takes two dictionaries from modality to tensor, which have the modalities of the
    batch (`features`, `(batch_size, length, feature_size)`; `masks`, bool, `(batch_size, length)`), and the mean state of
    the utterance's tokens (`summary`, `(batch_size, text_config.hidden_size)`), and returns a [`FusionOutput`].
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

    def _dtype(self):
        # `"late"` has no weights where there is text alone.
        return next((weight.dtype for weight in self.parameters()), torch.float32)

    def _shift(self, features: dict[str, torch.Tensor]):
        """The features with bands and grids moved, as far as the configuration says so."""
        shifted = {}
        for name, config in self.config.feature_configs.items():
            if config.max_shift and name in features:
                shifted[name] = shift_features(features[name], config.max_shift, config.grid_side)
        return features | shifted

    def _read_features(self, features: dict[str, torch.Tensor]):
        """The features, augmented in training, with grids replaced by what a convolution makes of them."""
        dtype = self._dtype()
        features = self._shift(features) if self.training else features
        return features | {
            name: grid(features[name].to(dtype)) for name, grid in self.grids.items() if name in features
        }

    def _normalize(self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]):
        """Normalize each frame over its numbers or, where the configuration says so, each number over the clip's frames."""
        dtype, eps = self._dtype(), self.config.layer_norm_eps
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
        """Evidence of audio and video, (batch, 2, num_labels); zero for a modality that is absent."""
        absent = summary.new_zeros(summary.shape[0], self.num_labels, dtype=torch.float32)
        return torch.stack([evidence.get(name, absent) for name in FEATURE_MODALITIES], dim=1)

    def select_labels(self, rows: list[int | None]) -> None:
        """Follow a new label set: label `i` votes as label `rows[i]` did, and not at all where that is `None`."""
        self.num_labels = len(rows)
        for module in self.modules():
            if module is not self and hasattr(module, "select_labels"):
                module.select_labels(rows)


class AMESSTokenFusion(AMESSFusion):
    """Base class of the fusions that embed the features as tokens of one width."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        embeddings = {"text": AMESSModalityEmbedding(config, config.text_config.hidden_size)}
        for name, features in config.feature_configs.items():
            layers = features.num_conv_layers, features.conv_kernel_size
            embeddings[name] = AMESSModalityEmbedding(config, frame_size(config, name), *layers)
        self.embeddings = nn.ModuleDict(embeddings)

    def _embed(self, normalized: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]):
        """Tokens and their masks by modality, (batch, tokens, hidden_size) and (batch, tokens), of normalized features."""
        layers = {name: layer for name, layer in self.embeddings.items() if name in normalized}
        embedded = {name: layer(normalized[name], masks[name]) for name, layer in layers.items()}
        return {name: tokens for name, (tokens, _) in embedded.items()}, {name: m for name, (_, m) in embedded.items()}

    def _concatenate(self, states: dict[str, torch.Tensor], summary: torch.Tensor):
        """Concatenate one state (batch, hidden_size) for each modality, with zeros for those that are absent."""
        absent = summary.new_zeros(summary.shape[0], self.config.hidden_size)
        return torch.cat([states.get(name, absent) for name in self.embeddings], dim=-1)
