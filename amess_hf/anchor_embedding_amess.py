"""A-ME, anchor-based multimodal embedding (A-MESS, arXiv 2503.19474): from text, audio and video to one vector per clip.

Audio and video come as frames f_t, text as the states of its tokens, whose mean over the utterance is c (`summary`).
`AMESSModalityEmbedding` makes tokens of one width d of all of them: one of each frame, or of several (convolutions).

1. *Votes* (`AMESSVotes`): each frame of audio and of video votes for the intents, v_t = W f_t. W is initialized to zero.
2. *Evidence* (`pool_votes`): e = log mean_t exp(v_t), a smooth maximum that does not grow with the length of the clip; it is
   added to the logits. With `pooling="statistics"` (`AMESSStatisticsEvidence`), e is a linear map of mean, deviation and
   maximum over time, and v_t that of a token.
3. *Anchors* (`choose_anchors`): the `num_anchors` tokens of each modality with the highest scores. Audio and video (`support`):
   s_t = v_t · (softmax(e) - 1/K) with K = `num_labels`; of several frames, the maximum. Text: s_t = x_t · (Q c + b) / sqrt(d)
   for its tokens x_t.
4. *Fusion* (`_attend`): in each layer the anchors a attend to one another, to all tokens of all modalities and to a learned
   vector: a <- a + Attention(a, [a; nothing; tokens]); a <- a + MLP(a); at the end, a layer normalization. The cost is linear in
   the number of tokens.
5. *Embedding* (`_pool`, `forward`): the mean of the anchors of each modality with weights softmax(s), concatenated; a linear
   map of that, which `AMESSModel` adds to c. The classifier sees the sum; its projection to unit length is compared with
   descriptions (`synchronization_amess.py`).
6. *Losses of single modalities* (`modality_losses`): the target of modality m is r onehot(y) + (1 - r) uniform, where
   r = p_m(y) / max p(y) over audio and video, as far as the clip has them, without gradient. Text has the usual cross-entropy.
7. *Votes from examples* (`teach_votes`), of intents that were not trained: new rows V of W with the lowest mean over the clips of
   CE(e_audio, y) + CE(e_video, y), plus `VOTES_PENALTY` |V|^2.

The paper's formulas were not available; these are this project's reading of its abstract.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from .configuration_amess import FEATURE_MODALITIES, MODALITIES, NO_ANCHOR
from .layers_amess import (
    AMESSFusionLayer,
    AMESSTokenFusion,
    FusionOutput,
    frame_size,
    make_attention_mask,
    masked_statistics,
)
from .loss_amess import classification_loss


# Above so many labels the votes of the frames take more memory than all else of the fusion.
MANY_LABELS = 256
# Of votes that are learned from examples: weight of their squares, and steps of the optimizer at most.
VOTES_PENALTY, VOTES_STEPS = 1e-2, 30


class AMESSVotes(nn.Linear):
    """Votes for the intents: a linear map without a bias, as frames do not say how frequent an intent is.

    `AMESSPreTrainedModel._init_weights` initializes it to zero.
    """

    def __init__(self, size: int, num_labels: int):
        super().__init__(size, num_labels, bias=False)

    @torch.no_grad()
    def select_labels(self, rows: list[int | None]) -> None:
        """Select the weights of other labels: row `rows[i]` becomes row `i`, zero where that is `None`."""
        zero = self.weight.new_zeros(self.in_features)
        self.weight = nn.Parameter(torch.stack([zero if row is None else self.weight[row] for row in rows]))
        self.out_features = len(rows)


def voted_labels(fusion: nn.Module) -> set[int]:
    """Return the ids of the labels that audio or video votes for: not of those that are only described in sentences."""
    rows = [votes.weight.any(1) for votes in fusion.modules() if isinstance(votes, AMESSVotes)]
    return set(torch.stack(rows).any(0).nonzero().flatten().tolist())


def teach_votes(model: nn.Module, examples: dict[int, Sequence[dict[str, torch.Tensor]]]) -> None:
    """Learn votes for some labels from a few clips of each, all other votes being fixed.

    The new votes have the lowest mean cross-entropy of the evidence of audio and of video, each on its own, plus
    `VOTES_PENALTY` times their squares. They start from zero, as in training.

    Args:
        model ([`AMESSModel`]): Its votes for these labels are changed.
        examples (`dict[int, Sequence[dict[str, torch.Tensor]]]`): Id of a label -> clips, each a batch of one.
    """
    weights = {f"{name}.weight": part.weight for name, part in model.named_modules() if isinstance(part, AMESSVotes)}
    clips = [(label, clip) for label, group in sorted(examples.items()) for clip in sorted(group, key=_content)]
    masks = [f"{name}_attention_mask" for name in FEATURE_MODALITIES]
    clips = [(label, clip) for label, clip in clips if any(clip[mask].any() for mask in masks if mask in clip)]
    batch = _stack(model.config, [clip for _, clip in clips]) if weights else {}
    if not batch:
        return
    labels = torch.tensor([label for label, _ in clips], device=model.device)
    rows = labels.unique()
    with torch.inference_mode(False), torch.enable_grad():
        fixed = {name: weight.detach().clone() for name, weight in weights.items()}
        free = {name: torch.zeros_like(weight[rows], requires_grad=True) for name, weight in fixed.items()}
        optimizer = torch.optim.LBFGS(free.values(), max_iter=VOTES_STEPS, line_search_fn="strong_wolfe")

        def compute_loss():
            optimizer.zero_grad()
            changed = {name: fixed[name].index_copy(0, rows, free[name]) for name in fixed}
            outputs = torch.func.functional_call(model, changed, kwargs=batch)
            values = [classification_loss(evidence, labels) for evidence in outputs.evidence.unbind(1)]
            loss = torch.stack(values, dim=1).where(outputs.modality_mask[:, 1:], 0.0).sum() / len(clips)
            loss = loss + VOTES_PENALTY * sum(weight.float().square().sum() for weight in free.values())
            loss.backward()
            return loss

        optimizer.step(compute_loss)
    for name, weight in weights.items():
        weight.data[rows] = free[name].detach()


def _content(clip: dict[str, torch.Tensor]):
    """A key to sort clips by, so that their order changes nothing."""
    return [clip[name].float().cpu().numpy().tobytes() for name in sorted(clip)]


def _stack(config: PreTrainedConfig, clips: list[dict[str, torch.Tensor]]):
    """The audio and video of batches of one as one batch; empty if there is none."""
    batch = {}
    for name in config.feature_configs:
        keys = f"{name}_features", f"{name}_attention_mask"
        there = [clip[keys[0]] for clip in clips if keys[0] in clip]
        if there:
            nothing = {keys[0]: there[0][:, :0], keys[1]: there[0].new_zeros(1, 0, dtype=torch.long)}
            for key in keys:
                parts = [{**nothing, **clip}[key][0].clone() for clip in clips]
                batch[key] = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return batch


def pool_votes(votes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool the votes of frames (step 2): e = log mean_t exp(v_t).

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
    """Return how much each frame supports the evidence (step 3): s_t = v_t · (softmax(e) - 1/K).

    A frame scores high if it votes for intents that the pooled evidence favors; where the evidence is uniform, all score 0.

    Args:
        votes (`torch.FloatTensor` of shape `(batch_size, length, num_labels)`): Votes of the frames.
        evidence (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The evidence of the modality.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, length)`.
    """
    likely = evidence.softmax(-1) - 1 / evidence.shape[-1]
    # In full precision also under autocast, and without a copy of the votes, which is large with many labels.
    with torch.autocast(votes.device.type, enabled=False):
        return torch.einsum("btl,bl->bt", votes, likely)


class AMESSFrameEvidence(nn.Module):
    """Evidence of single frames, pooled by log-sum-exp: for evidence that lies in a part of the clip.

    Args:
        feature_size (`int`): Width of the frames.
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
            frames (`torch.Tensor` of shape `(batch_size, length, feature_size)`): Normalized frames.
            mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.
            tokens (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): Tokens made of them, in order.
            token_mask (`torch.BoolTensor` of shape `(batch_size, tokens)`): Which of these are present.

        Returns:
            `tuple`: the evidence `(batch_size, num_labels)`, float32, zero for a clip that lacks the modality; and the
            support of each token `(batch_size, tokens)`, float32.
        """
        if self.training and self.votes.out_features > MANY_LABELS and not torch.compiler.is_compiling():
            # Recompute the votes in backward to save memory.
            evidence, scores = checkpoint(self._vote, frames, mask, use_reentrant=False)
        else:
            evidence, scores = self._vote(frames, mask)
        if self.frames_per_token > 1:  # the support of a token is that of its best frame
            scores = nn.functional.max_pool1d(scores, self.frames_per_token, ceil_mode=True)
        return evidence, scores

    def _vote(self, frames: torch.Tensor, mask: torch.Tensor):
        votes = self.votes(frames).float()
        evidence = pool_votes(votes, mask)
        return evidence, support(votes, evidence).masked_fill(~mask, torch.finfo(torch.float32).min)


class AMESSStatisticsEvidence(nn.Module):
    """Evidence of mean, deviation and maximum over time: for what is spread over the clip, or anywhere in it.

    A linear map of the statistics of the frames (which contains the usual logistic regression) and of the tokens, whose
    maximum finds what is anywhere in the clip. The statistics of the frames are standardized with those of the training
    clips, as for a logistic regression: otherwise numbers with a large range dominate.

    Args:
        feature_size (`int`): Width of the frames.
        frames_per_token (`int`): As in [`AMESSFrameEvidence`]; not used.
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
        """Vote by statistics; see [`AMESSFrameEvidence.forward`]. Frames with `norm="clip"` are passed before normalization."""
        mean, deviation = masked_statistics(tokens, token_mask)
        statistics = self.frame_statistics(frames.to(tokens.dtype), mask)
        evidence = self.frame_votes(self.dropout(statistics)) + self.token_votes(self.dropout(mean))
        evidence = evidence + self.deviation_votes(self.dropout(deviation))
        peak = tokens.masked_fill(~token_mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).amax(1)
        peak = peak.where(token_mask.any(1, keepdim=True), 0.0)  # 0 if no token is present
        evidence = evidence + self.peak_votes(self.dropout(peak))
        evidence = evidence.float() * mask.any(1, keepdim=True)
        return evidence, support(self.token_votes(tokens).float(), evidence)

    def frame_statistics(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return mean and deviation of the frames over time, standardized: `(batch_size, 2 * feature_size)`."""
        return (torch.cat(masked_statistics(frames, mask), dim=-1) - self.mean) / self.deviation

    @property
    def is_standardized(self) -> bool:
        """Whether it has the statistics of training clips."""
        return bool((self.deviation != 1).any())

    @torch.no_grad()
    def standardize(self, statistics: torch.Tensor) -> None:
        """Standardize with the statistics of training clips.

        Args:
            statistics (`torch.Tensor` of shape `(clips, 2 * feature_size)`): What [`frame_statistics`] returns for them
                before this is called.
        """
        deviation, mean = torch.std_mean(statistics.double(), dim=0, correction=0)
        # A number that never changes says nothing, and must not be divided by its rounding error.
        varies = deviation > 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.where(varies, 1.0))


EVIDENCE = {"logsumexp": AMESSFrameEvidence, "statistics": AMESSStatisticsEvidence}


def choose_anchors(
    scores: torch.Tensor, mask: torch.Tensor, num_anchors: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose the tokens with the highest scores (step 3), of equal ones the earlier.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, length)`): Scores of the tokens of one modality.
        mask (`torch.BoolTensor` of shape `(batch_size, length)`): Which of them are present.
        num_anchors (`int`): How many to choose; fewer for a clip that has fewer.

    Returns:
        `tuple`: positions (0 where there is none), shares in the softmax of all scores (0 where there is none), and which
        are present, each `(batch_size, num_anchors)`, best first.
    """
    shares = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
    # With the padding, a clip shorter than `num_anchors` takes the same path as any other.
    ranks = nn.functional.pad(scores.masked_fill(~mask, float("-inf")), (0, num_anchors), value=float("-inf"))
    indices = _rank_keys(ranks).topk(num_anchors).indices
    ranks = ranks.gather(1, indices)
    present = ranks > float("-inf")
    indices = indices.masked_fill(~present, 0)
    return indices, shares.gather(1, indices) * present, present


def _rank_keys(scores: torch.Tensor):
    """Integer keys that sort like float32 `scores` (batch, length), unique within a row of the batch: ties favor the earlier.

    `topk` breaks ties (silence, a frozen picture, a new model) differently for different padded lengths.
    """
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
        return scores  # the operator of ONNX takes the earlier by itself
    bits = (scores + 0.0).view(torch.int32).long()  # of -0.0 and 0.0 the same
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative numbers, the larger is the smaller
    return (ordered << 32) - torch.arange(scores.shape[1], device=scores.device)


class AMESSAnchorFusion(AMESSTokenFusion):
    """A-ME: votes, evidence, anchors, fusion and embedding, in this order (the steps of this file's header)."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.evidence = nn.ModuleDict(
            {
                name: EVIDENCE[features.pooling](config, frame_size(config, name), features.frames_per_token)
                for name, features in config.feature_configs.items()
            }
        )
        self.query = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        # Attended to when there is nothing else, so that a clip without any modality has defined attention weights.
        self.nothing = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList([AMESSFusionLayer(config) for _ in range(config.num_fusion_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size * len(self.embeddings), config.text_config.hidden_size)

    def forward(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor], summary: torch.Tensor
    ) -> FusionOutput:
        """Fuse; see [`AMESSFusion`]."""
        features = self._read_features(features)
        normalized = self._normalize(features, masks)
        tokens, token_masks = self._embed(normalized, masks)
        # Statistics of a clip preserve how loud it is.
        raw = {name for name, config in self.config.feature_configs.items() if config.norm == "clip"}
        frames = {name: features[name] if name in raw else normalized[name] for name in features}
        evidence, scores = self._score(frames, masks, tokens, token_masks, summary)
        chosen = {
            name: choose_anchors(
                scores[name], token_masks[name], self.config.num_anchors
            )  # positions, shares, present
            for name in tokens
        }
        anchors, hidden_states, attentions = self._attend(tokens, token_masks, chosen)
        pooled = self._pool(anchors, {name: shares for name, (_, shares, _) in chosen.items()})
        update = self.out_proj(self._concatenate(pooled, summary))
        positions = self._positions(chosen, summary)
        return FusionOutput(update, self._stack_evidence(evidence, summary), *positions, hidden_states, attentions)

    def _score(
        self,
        frames: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        tokens: dict[str, torch.Tensor],
        token_masks: dict[str, torch.Tensor],
        summary: torch.Tensor,
    ):
        """Evidence of audio and video by modality (steps 1 and 2), and the scores of all tokens (step 3)."""
        evidence, scores = {}, {}
        for name, layer in self.evidence.items():
            if name in tokens:
                evidence[name], scores[name] = layer(frames[name], masks[name], tokens[name], token_masks[name])
        if "text" in tokens:
            query = self.query(summary) / math.sqrt(self.config.hidden_size)
            scores["text"] = torch.einsum("bth,bh->bt", tokens["text"], query).float()
        return evidence, scores

    def _attend(
        self,
        tokens: dict[str, torch.Tensor],
        token_masks: dict[str, torch.Tensor],
        chosen: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    ):
        """Step 4: the anchors (batch, modalities * num_anchors, hidden_size) after the layers, normalized; all states; attentions."""
        width = self.config.hidden_size
        anchors = torch.cat(
            [tokens[name].gather(1, chosen[name][0].unsqueeze(-1).expand(-1, -1, width)) for name in tokens], dim=1
        )
        present = torch.cat([chosen[name][2] for name in tokens], dim=1)
        memory = torch.cat([self.nothing.expand(anchors.shape[0], 1, -1), *tokens.values()], dim=1)
        mask = torch.cat([present, present.new_ones(present.shape[0], 1), *token_masks.values()], dim=1)
        attention_mask = make_attention_mask(self.config, anchors, torch.cat([anchors, memory], dim=1), mask)
        # Kept by hand: the hooks of transformers' `capture_outputs` cannot be compiled where a model contains another.
        hidden_states, attentions = (anchors,), ()
        for layer in self.layers:
            anchors, weights = layer(anchors, memory, attention_mask, attend_to_states=True)
            hidden_states, attentions = (*hidden_states, anchors), (*attentions, weights)
        return self.norm(anchors), hidden_states, attentions

    def _pool(self, anchors: torch.Tensor, shares: dict[str, torch.Tensor]):
        """Step 5: average each modality's anchors, weighted by their shares: modality -> (batch, hidden_size)."""
        pooled = {}
        for name, states in zip(shares, anchors.split(self.config.num_anchors, dim=1), strict=True):
            weights = shares[name].to(states.dtype).unsqueeze(-1)
            pooled[name] = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-6)
        return pooled

    def _positions(self, chosen: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]], summary: torch.Tensor):
        """Positions (of frames) and shares of the anchors of all three modalities, (batch, 3, num_anchors) each."""
        shape = (summary.shape[0], self.config.num_anchors)
        nowhere = torch.full(shape, NO_ANCHOR, dtype=torch.long, device=summary.device)
        positions, shares = {}, {}
        for name, (indices, shares[name], present) in chosen.items():
            positions[name] = (indices * self.embeddings[name].frames_per_token).masked_fill(~present, NO_ANCHOR)
        no_shares = torch.zeros(shape, device=summary.device)
        return (
            torch.stack([positions.get(name, nowhere) for name in MODALITIES], dim=1),
            torch.stack([shares.get(name, no_shares) for name in MODALITIES], dim=1),
        )


def modality_losses(
    logits: torch.Tensor, modality_mask: torch.Tensor, labels: torch.Tensor, candidate_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of each modality on its own, whose target is smoothed where another modality knows the label better (step 6).

    The modality that gives the label the highest probability gets the full target, the others a softer one, which reduces
    overfitting to clips where a modality is uninformative. Similar to a mixture of experts (Jacobs et al., Neural
    Computation 1991), but the weights are relative to the maximum and do not sum to one.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, modalities, num_labels)`): Scores of each modality.
        modality_mask (`torch.BoolTensor` of shape `(batch_size, modalities)`): Which modalities a clip has.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, modalities)`; zero where a clip lacks the modality or has no label.
    """
    alone = logits.unbind(1)
    log_probs = -torch.stack(
        [classification_loss(one, labels, candidate_mask=candidate_mask) for one in alone], dim=1
    ).detach()
    best = log_probs.masked_fill(~modality_mask, torch.finfo(log_probs.dtype).min).amax(1, keepdim=True)
    # Clamped for a modality that is absent, whose loss is left out below.
    shares = (log_probs - best).clamp(max=0).exp()
    values = [
        classification_loss(one, labels, label_smoothing=1 - share, candidate_mask=candidate_mask)
        for one, share in zip(alone, shares.unbind(1), strict=True)
    ]
    return torch.stack(values, dim=1).where(modality_mask, 0.0)


def modality_loss_terms(
    config: PreTrainedConfig,
    text_logits: torch.Tensor,
    evidence_logits: torch.Tensor,
    modality_mask: torch.Tensor,
    labels: torch.Tensor,
    candidate_mask: torch.Tensor | None,
) -> list[tuple[str, float, torch.Tensor, torch.Tensor]]:
    """Return the losses of text, audio and video on their own, as (name, weight, values, clips that count).

    Args:
        config ([`AMESSConfig`]): The weights, and which modalities there are.
        text_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The classifier's scores of the text alone.
        evidence_logits (`torch.Tensor` of shape `(batch_size, 2, num_labels)`): Those of audio and of video alone.
        modality_mask (`torch.BoolTensor` of shape `(batch_size, 3)`): Which modalities a clip has.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.
    """
    values = {"text": classification_loss(text_logits, labels, config.label_smoothing, candidate_mask)}
    columns = modality_losses(evidence_logits, modality_mask[:, 1:], labels, candidate_mask).unbind(1)
    values |= {name: c for name, c in zip(FEATURE_MODALITIES, columns, strict=True) if name in config.feature_configs}
    counts = {name: (labels >= 0) & modality_mask[:, MODALITIES.index(name)] for name in values}
    return [(f"{name}_loss", config.modality_loss_weight, values[name], counts[name]) for name in values]
