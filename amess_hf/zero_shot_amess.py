"""Described intents next to trained ones: a constant that balances them (calibrated stacking; Chao et al., ECCV 2016).

A model is more confident about intents that it was trained on than about those it only has descriptions of, and would
hardly ever answer one of the latter. How much more confident is measured on the sentences that describe the trained
intents; no clip is needed.
"""

import torch


# Sentences of a trained intent, beyond those that training draws from, that are used to find the balance.
PROBES = 24


def kept_share(trained: int, described: int) -> float:
    """Return the share of the trained intents' sentences that must keep their answer when intents are added.

    The added intents may take at most half of the share that they have of all intents: next to an added intent with
    the same meaning, a trained intent keeps half of its sentences.

    Args:
        trained (`int`): Number of trained intents.
        described (`int`): Number of added intents.
    """
    return 1 - 0.5 * described / (trained + described)


def balancing_offset(
    trained_scores: torch.Tensor, described_scores: torch.Tensor, targets: torch.Tensor, keep: float
) -> float:
    """Find the largest constant to add to the scores of described intents that leaves trained ones enough answers.

    Args:
        trained_scores (`torch.Tensor` of shape `(sentences, trained)`): Scores of sentences that describe trained intents.
        described_scores (`torch.Tensor` of shape `(sentences, described)`): Their scores for the described intents.
        targets (`torch.LongTensor` of shape `(sentences,)`): The intent of each sentence, a column of `trained_scores`.
        keep (`float`): Share of the sentences answered correctly without described intents that must stay correct.

    Returns:
        `float`: The constant; 0 where no sentence is answered correctly.
    """
    best, answers = trained_scores.double().max(-1)
    margins = (best - described_scores.double().amax(-1))[answers == targets]
    return torch.quantile(margins, 1 - keep, interpolation="lower").item() if len(margins) else 0.0


__all__ = ["PROBES", "balancing_offset", "kept_share"]
