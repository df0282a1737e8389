"""The registry of fusions, and the baselines that A-ME (`anchor_embedding_amess.py`) is compared with.

To add a fusion:

1. Subclass [`AMESSTokenFusion`]: `self._embed` makes tokens of one width, `forward` returns a [`FusionOutput`].
2. Leave absent modalities out (`_concatenate` puts zeros in their place), and keep padding out with the masks.
3. Add the class to [`FUSIONS`] under its `fusion_type`, and the name to `FUSION_TYPES` of `configuration_amess.py`.
4. Initialize parameters that are not in a `torch.nn` layer in [`AMESSPreTrainedModel._init_weights`].
5. Describe the value in [`AMESSConfig`]; `tests/test_modeling.py` runs its general tests on every entry.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .anchor_embedding_amess import AMESSAnchorFusion, AMESSVotes
from .layers_amess import (
    AMESSFusion,
    AMESSFusionLayer,
    AMESSTokenFusion,
    FusionOutput,
    frame_size,
    make_attention_mask,
    masked_mean,
)


class AMESSLateClassifier(nn.Module):
    """A classifier over the mean frame of one modality; the scale of its log-probabilities is learned."""

    def __init__(self, config: PreTrainedConfig, modality: str):
        super().__init__()
        self.votes = AMESSVotes(frame_size(config, modality), config.num_labels)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Score `(batch_size, length, feature_size)`; returns `(batch_size, num_labels)`, zero for a clip without frames."""
        log_probs = self.votes(masked_mean(frames, mask)).float().log_softmax(-1)
        return self.scale.float() * log_probs * mask.any(1, keepdim=True)


class _LateFusion(AMESSFusion):
    """Baseline: the log-probabilities of a classifier of audio and of one of video are added to the text's logits."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.classifiers = nn.ModuleDict({name: AMESSLateClassifier(config, name) for name in config.feature_configs})

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        frames = self._normalize(self._read_features(features), masks)
        evidence = {
            name: layer(frames[name], masks[name]) for name, layer in self.classifiers.items() if name in features
        }
        return FusionOutput(torch.zeros_like(summary), self._stack_evidence(evidence, summary))


class _MeanFusion(AMESSTokenFusion):
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
        tokens, masks = self._embed(self._normalize(self._read_features(features), masks), masks)
        means = {name: masked_mean(tokens[name], masks[name]) for name in tokens}
        return FusionOutput(self.mlp(self._concatenate(means, summary)))


class _CrossModalFusion(AMESSTokenFusion):
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
        tokens, masks = self._embed(self._normalize(self._read_features(features), masks), masks)
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
        result, _ = layer(states, memory, make_attention_mask(self.config, states, memory, mask))
        return torch.where(there[:, None, None], result, states)


# `fusion_type` -> class; `None` means no fusion, for text-only models.
FUSIONS: dict[str, type[AMESSFusion] | None] = {
    "anchor": AMESSAnchorFusion,
    "cross_modal": _CrossModalFusion,
    "late": _LateFusion,
    "mean": _MeanFusion,
    "text": None,
}
