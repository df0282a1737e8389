"""Losses of semantic synchronization: pure functions of embeddings, logits and labels.

All are computed in float32, whatever the inputs' precision, and return one value per clip, so that a caller takes
the mean over the clips of all processes. A clip that a loss does not apply to (no label, no positive in the batch) gets
exactly zero. `labels` holds -1 for a clip without a label in the label set (out of scope).

A-MESS (arXiv 2503.19474) names the triplet contrastive learning; its formulas were not available, and the ones below are
the textbook forms: the margin triplet of FaceNet (Schroff et al., CVPR 2015, eq. 2) on cosine similarity, the softmax
over candidates of InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4), R-Drop (Liang et al., arXiv 2106.14448,
eq. 2) and Outlier Exposure (Hendrycks et al., arXiv 1812.04606, section 3).
"""

import torch
from torch import nn


def _restrict(scores: torch.Tensor, candidate_mask: torch.Tensor | None):
    """Set `scores` (batch, labels) to minus infinity where `candidate_mask` (same shape, bool) is False, in float32."""
    scores = scores.float()
    return scores if candidate_mask is None else scores.masked_fill(~candidate_mask, float("-inf"))


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float | torch.Tensor = 0.0,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy with label smoothing spread evenly over the candidates.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the labels.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        label_smoothing (`float` or `torch.Tensor` of shape `(batch_size,)`):
            Share of the target that is spread over all candidates.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    log_probs = _restrict(logits, candidate_mask).log_softmax(-1)
    present = labels >= 0
    own = -log_probs.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    if isinstance(label_smoothing, torch.Tensor) or label_smoothing:
        if candidate_mask is None:
            spread = -log_probs.mean(-1)
        else:
            spread = -log_probs.masked_fill(~candidate_mask, 0.0).sum(-1) / candidate_mask.sum(-1)
        own = (1 - label_smoothing) * own + label_smoothing * spread
    return own.where(present, 0.0)


def modality_losses(
    logits: torch.Tensor,
    modality_mask: torch.Tensor,
    labels: torch.Tensor,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each modality on its own, towards as much of the label as the modality accounts for.

    It is not known which modality tells the intent of a clip. As in a mixture of experts (Jacobs et al., Neural
    Computation 1991), each learns most from the clips that it knows best: modality `m` accounts for p_m / max(p_1, p_2,
    ...) of a clip, where p is the probability that it gives to the label; the rest of its target is uniform. So a picture
    that shows nothing learns to say nothing where the sound tells the intent; a full cross-entropy would learn such
    clips by heart, and be sure of whatever it sees in others.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, modalities, num_labels)`): Scores of each modality.
        modality_mask (`torch.BoolTensor` of shape `(batch_size, modalities)`): Which modalities a clip has.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, modalities)`; zero where a clip lacks the modality or has no label.
    """
    alone = logits.unbind(1)
    log_probs = -torch.stack([classification_loss(one, labels, 0.0, candidate_mask) for one in alone], dim=1).detach()
    best = log_probs.masked_fill(~modality_mask, torch.finfo(log_probs.dtype).min).amax(1, keepdim=True)
    # Clamped for a modality that is absent, whose loss is left out below.
    shares = (log_probs - best).clamp(max=0).exp()
    values = [
        classification_loss(one, labels, 1 - share, candidate_mask)
        for one, share in zip(alone, shares.unbind(1), strict=True)
    ]
    return torch.stack(values, dim=1).where(modality_mask, 0.0)


def label_triplet_loss(
    multimodal_embeds: torch.Tensor,
    label_embeds: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Margin triplet of a clip, the description of its intent, and the hardest other description.

    The loss is max(0, margin + s⁻ - s⁺), where s⁺ is the cosine similarity to the clip's own description and s⁻ the
    largest similarity to another one.

    Args:
        multimodal_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips, unit length.
        label_embeds (`torch.Tensor` of shape `(num_labels, projection_dim)`): Descriptions, unit length.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        margin (`float`): Margin in cosine similarity.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero where there is no other description.
    """
    similarities = _restrict(multimodal_embeds.float() @ label_embeds.float().T, candidate_mask)
    index = labels.clamp(min=0)[:, None]
    own = similarities.gather(1, index).squeeze(1)
    hardest = similarities.scatter(1, index, float("-inf")).amax(-1)
    return (margin + hardest - own).clamp(min=0).where(labels >= 0, 0.0)


def label_contrastive_loss(
    similarity_logits: torch.Tensor, labels: torch.Tensor, candidate_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax over all descriptions: cross-entropy of scaled similarities.

    Args:
        similarity_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Cosine similarities over temperature.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Label of each clip, -1 for none.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    return classification_loss(similarity_logits, labels, candidate_mask=candidate_mask)


def batch_triplet_loss(
    embeds: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    all_embeds: torch.Tensor | None = None,
    all_labels: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """Margin triplets between the clips of a batch.

    For a clip a it is the mean, over the clips p of the same intent, of max(0, margin + s(a, n) - s(a, p)), where n is the
    most similar clip of another intent.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): Clips of this process, unit length.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Their labels, -1 for none.
        margin (`float`): Margin in cosine similarity.
        all_embeds (`torch.Tensor` of shape `(all_clips, projection_dim)`, *optional*):
            Clips of all processes; without it those of this process.
        all_labels (`torch.LongTensor` of shape `(all_clips,)`, *optional*): Their labels.
        first (`int`): Row of `all_embeds` at which this process' clips begin.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero for a clip without a label, without another clip of its
        intent, or without a clip of another intent.
    """
    all_embeds, all_labels = (embeds, labels) if all_embeds is None else (all_embeds, all_labels)
    similarities = embeds.float() @ all_embeds.float().T
    rows = torch.arange(embeds.shape[0], device=embeds.device)[:, None] + first
    itself = rows == torch.arange(all_embeds.shape[0], device=embeds.device)
    labelled = (labels >= 0)[:, None] & (all_labels >= 0)
    same = labels[:, None] == all_labels
    positive = labelled & same & ~itself
    negative = labelled & ~same
    hardest = similarities.masked_fill(~negative, float("-inf")).amax(-1, keepdim=True)
    # Where there is no negative, the hardest is minus infinity and the hinge below is zero: no gradient, no NaN.
    hinge = (margin + hardest - similarities).clamp(min=0).masked_fill(~positive, 0.0)
    return hinge.sum(-1) / positive.sum(-1).clamp(min=1)


def consistency_loss(
    logits: torch.Tensor, other_logits: torch.Tensor, candidate_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """R-Drop: half the sum of both Kullback-Leibler divergences between two dropout passes of the same clips.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the first pass.
        other_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the second pass.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    passes = logits.float(), other_logits.float()
    if candidate_mask is not None:
        # Not minus infinity, whose difference would be NaN below.
        passes = (scores.masked_fill(~candidate_mask, -1e9) for scores in passes)
    first, second = (scores.log_softmax(-1) for scores in passes)
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum(-1)


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Knowledge distillation (arXiv 1503.02531): the Kullback-Leibler divergence from a teacher's softened answers.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the labels.
        teacher_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): The teacher's.
        temperature (`float`): Divides both; the loss is multiplied by its square.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    scores = logits.float() / temperature, teacher_logits.float() / temperature
    if candidate_mask is not None:
        # Not minus infinity, whose difference would be NaN below.
        scores = (values.masked_fill(~candidate_mask, -1e9) for values in scores)
    own, teacher = (values.log_softmax(-1) for values in scores)
    return temperature**2 * (teacher.exp() * (teacher - own)).sum(-1)


def outlier_exposure_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the uniform distribution and the prediction, for out-of-scope clips only.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the labels.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Labels; the loss applies where they are -1.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero for clips that have a label.
    """
    uniform = -nn.functional.log_softmax(logits.float(), dim=-1).mean(-1)
    return uniform.where(labels < 0, 0.0)
