"""Evidence: what sound and picture say about the intents on their own; it is added to the words' logits.

Each frame votes for intents, and the votes are pooled over time. Weights start at zero, so that a modality adds nothing
before it has learned something, and have no bias: frames say nothing about how frequent an intent is.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig


# Above so many labels the votes of the frames take more memory than all else of the fusion.
MANY_LABELS = 256


def frame_size(config: PreTrainedConfig, modality: str) -> int | None:
    """Return the width of the frames that a fusion reads: of grids, that of what a convolution makes of them.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        modality (`str`): `"audio"` or `"video"`.
    """
    features = config.feature_configs.get(modality)
    return features and (config.hidden_size if features.grid_side else features.feature_size)


class AMESSVotes(nn.Linear):
    """Votes for the intents: a linear map without bias, zero before training.

    Args:
        size (`int`): Width of the input.
        num_labels (`int`): Number of intents.
    """

    def __init__(self, size: int, num_labels: int):
        super().__init__(size, num_labels, bias=False)

    @torch.no_grad()
    def select_labels(self, rows: list[int | None]) -> None:
        """Select the weights of other labels: row `rows[i]` becomes row `i`, zero where that is `None`."""
        zero = self.weight.new_zeros(self.in_features)
        self.weight = nn.Parameter(torch.stack([zero if row is None else self.weight[row] for row in rows]))
        self.out_features = len(rows)


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


def pool_votes(votes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool the votes of frames: the logarithm of the mean of exp(vote).

    One frame that is confident of an intent is enough, and because it is a mean, a longer clip is not more confident.

    Args:
        votes (`torch.FloatTensor` of shape `(batch_size, length, num_labels)`): Votes of the frames.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which frames are present.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_labels)`; zero for a clip without frames.
    """
    votes = votes.masked_fill(~mask.unsqueeze(-1), torch.finfo(votes.dtype).min)
    count = mask.sum(1, keepdim=True)
    return (votes.logsumexp(1) - count.clamp(min=1).log()).where(count > 0, 0.0)


def support(votes: torch.Tensor, evidence: torch.Tensor) -> torch.Tensor:
    """Return how much each frame supports what its modality says: its votes for the likely intents, above its mean vote.

    A frame that only stands out (a breath, a cut) votes for some intents that the rest of the clip rules out, and scores
    low; no frame scores anything where the modality says nothing.

    Args:
        votes (`torch.FloatTensor` of shape `(batch_size, length, num_labels)`): Votes of the frames.
        evidence (`torch.FloatTensor` of shape `(batch_size, num_labels)`): What the modality says.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, length)`.
    """
    likely = evidence.softmax(-1) - 1 / evidence.shape[-1]
    # In full precision also under autocast, and without a copy of the votes, which are many where labels are.
    with torch.autocast(votes.device.type, enabled=False):
        return torch.einsum("btl,bl->bt", votes, likely)


class AMESSFrameEvidence(nn.Module):
    """Evidence of single frames, pooled by log-sum-exp: for evidence that lies in a part of the clip.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        feature_size (`int`): Width of the features.
        frames_per_token (`int`): Number of frames that the temporal convolutions turn into one token.
    """

    def __init__(self, config: PreTrainedConfig, feature_size: int, frames_per_token: int = 1):
        super().__init__()
        self.frames_per_token = frames_per_token
        self.votes = AMESSVotes(feature_size, config.num_labels)

    def forward(
        self, frames: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the frames vote.

        Args:
            frames (`torch.Tensor` of shape `(batch_size, length, feature_size)`): Normalised frames.
            mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.
            tokens (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): Tokens made of them, in order.
            token_mask (`torch.BoolTensor` of shape `(batch_size, tokens)`): Which of these are present.

        Returns:
            `tuple`: the evidence `(batch_size, num_labels)`, float32, zero for a clip that lacks the modality; and how much
            each token says `(batch_size, tokens)`, float32.
        """
        if self.training and self.votes.out_features > MANY_LABELS and not torch.compiler.is_compiling():
            # A vote of each frame for each of thousands of labels is quicker made again than kept for the backward pass.
            evidence, scores = checkpoint(self._vote, frames, mask, use_reentrant=False)
        else:
            evidence, scores = self._vote(frames, mask)
        if self.frames_per_token > 1:  # a token says what the best of its frames says
            scores = nn.functional.max_pool1d(scores, self.frames_per_token, ceil_mode=True)
        return evidence, scores

    def _vote(self, frames: torch.Tensor, mask: torch.Tensor):
        votes = self.votes(frames).float()
        evidence = pool_votes(votes, mask)
        return evidence, support(votes, evidence).masked_fill(~mask, torch.finfo(torch.float32).min)


class AMESSStatisticsEvidence(nn.Module):
    """Evidence of mean, deviation and maximum over time: for a tone of voice, or a word that is somewhere in the clip.

    A linear map of the statistics of the frames (which contains the usual logistic regression) and of the tokens, whose
    maximum finds what is anywhere in the clip. The statistics of the frames are standardised with those of the training
    clips, as for a logistic regression: without that, the wide range of a few would hide the others.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        feature_size (`int`): Width of the features.
        frames_per_token (`int`): Number of frames that the temporal convolutions turn into one token.
    """

    def __init__(self, config: PreTrainedConfig, feature_size: int, frames_per_token: int = 1):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("mean", torch.zeros(2 * feature_size))
        self.register_buffer("deviation", torch.ones(2 * feature_size))
        self.frame_votes = AMESSVotes(2 * feature_size, config.num_labels)
        self.token_votes = AMESSVotes(config.hidden_size, config.num_labels)
        self.deviation_votes = AMESSVotes(config.hidden_size, config.num_labels)
        self.peak_votes = AMESSVotes(config.hidden_size, config.num_labels)

    def forward(
        self, frames: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vote by statistics; see [`AMESSFrameEvidence.forward`]. Frames normalised by clip come here as they were before."""
        mean, deviation = masked_statistics(tokens, token_mask)
        statistics = self.frame_statistics(frames.to(tokens.dtype), mask)
        evidence = self.frame_votes(self.dropout(statistics)) + self.token_votes(self.dropout(mean))
        evidence = evidence + self.deviation_votes(self.dropout(deviation))
        peak = tokens.masked_fill(~token_mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).amax(1)
        peak = peak.where(token_mask.any(1, keepdim=True), 0.0)  # of nothing
        evidence = evidence + self.peak_votes(self.dropout(peak))
        evidence = evidence.float() * mask.any(1, keepdim=True)
        return evidence, support(self.token_votes(tokens).float(), evidence)

    def frame_statistics(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return mean and deviation of the frames over time, standardised: `(batch_size, 2 * feature_size)`."""
        return (torch.cat(masked_statistics(frames, mask), dim=-1) - self.mean) / self.deviation

    @property
    def is_standardised(self) -> bool:
        """Whether it has the statistics of training clips."""
        return bool((self.deviation != 1).any())

    @torch.no_grad()
    def standardise(self, statistics: torch.Tensor) -> None:
        """Standardise with the statistics of training clips.

        Args:
            statistics (`torch.Tensor` of shape `(clips, 2 * feature_size)`): What [`frame_statistics`] returns for them
                before this is called.
        """
        deviation, mean = torch.std_mean(statistics.double(), dim=0, correction=0)
        # A number that never changes says nothing, and must not be divided by its rounding error.
        varies = deviation > 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.where(varies, 1.0))


class AMESSEvidence(nn.ModuleDict):
    """Evidence of sound and picture, as far as the configuration names them.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
    """

    def __init__(self, config: PreTrainedConfig):
        classes = {"logsumexp": AMESSFrameEvidence, "statistics": AMESSStatisticsEvidence}
        layers = {}
        for name, features in config.feature_configs.items():
            layers[name] = classes[features.pooling](config, frame_size(config, name), features.frames_per_token)
        super().__init__(layers)
