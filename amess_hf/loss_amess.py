"""Losses that any classifier could have, and the mean that reduces every loss of the model.

Each loss is a pure function in float32, whatever the precision of its inputs, and returns one value per clip; a clip that it
does not apply to gets exactly zero. `labels` is -1 for a clip without a label in the label set (out of scope). The losses of
A-ME are in `anchor_embedding_amess.py`, those of semantic synchronization in `synchronization_amess.py`.
"""

import torch
from torch import distributed, nn


def restrict(scores: torch.Tensor, candidate_mask: torch.Tensor | None) -> torch.Tensor:
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
    log_probs = restrict(logits, candidate_mask).log_softmax(-1)
    present = labels >= 0
    own = -log_probs.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    if isinstance(label_smoothing, torch.Tensor) or label_smoothing:
        if candidate_mask is None:
            spread = -log_probs.mean(-1)
        else:
            spread = -log_probs.masked_fill(~candidate_mask, 0.0).sum(-1) / candidate_mask.sum(-1)
        own = (1 - label_smoothing) * own + label_smoothing * spread
    return own.where(present, 0.0)


def _log_probs(logits: torch.Tensor, candidate_mask: torch.Tensor | None):
    """Log-probabilities whose differences are finite: -1e9, not minus infinity, where a label is no candidate."""
    scores = logits.float()
    return (scores if candidate_mask is None else scores.masked_fill(~candidate_mask, -1e9)).log_softmax(-1)


def consistency_loss(
    logits: torch.Tensor, other_logits: torch.Tensor, candidate_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """R-Drop (Liang et al., arXiv 2106.14448, eq. 2): half the sum of both divergences between two dropout passes.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the first pass.
        other_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the second pass.
        candidate_mask (`torch.BoolTensor` of shape `(batch_size, num_labels)`, *optional*): Labels a clip may have.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    first, second = (_log_probs(scores, candidate_mask) for scores in (logits, other_logits))
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum(-1)


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, candidate_mask: torch.Tensor | None = None
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
    own, teacher = (_log_probs(scores.float() / temperature, candidate_mask) for scores in (logits, teacher_logits))
    return temperature**2 * (teacher.exp() * (teacher - own)).sum(-1)


def outlier_exposure_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Outlier Exposure (arXiv 1812.04606, section 3): cross-entropy to the uniform distribution where a label is -1.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Scores of the labels.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Labels.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`; zero for clips that have a label.
    """
    uniform = -nn.functional.log_softmax(logits.float(), dim=-1).mean(-1)
    return uniform.where(labels < 0, 0.0)


def num_processes() -> int:
    """Return the number of processes of the run (1 outside `torch.distributed`)."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average `values` where `mask`, over the clips of all processes (in training: every process must take the step).

    Averaging the gradients of the processes, as DistributedDataParallel does, then gives the gradient of one process that
    held all clips.

    Args:
        values (`torch.Tensor` of shape `(batch_size,)`): One value per clip of this process.
        mask (`torch.BoolTensor` of shape `(batch_size,)`): Clips that count.

    Returns:
        `torch.Tensor`, scalar: This process' sum over the processes' mean count; zero where nothing counts. The mean of
        this number over the processes is the mean over all clips.
    """
    count = mask.sum().to(values.dtype)
    world = num_processes()
    if world > 1:
        distributed.all_reduce(count)
    return values.where(mask, 0.0).sum() * world / count.clamp(min=1)
