"""Described intents beside trained ones: a constant that balances them (calibrated stacking; Chao et al., ECCV 2016).

A model is surer of intents that it was trained on than of those it was only told about, and would hardly ever answer one
of the latter. How much surer is seen from the sentences that describe the trained intents; no clip is needed.
"""

import torch


# Sentences of a trained intent beyond those that training draws from, with which the balance is found.
PROBES = 24


def kept_share(trained: int, described: int) -> float:
    """Return the share of the trained intents' sentences that must keep their answer when intents are added.

    The added intents may take half as large a share as they are of all intents: next to one that means the same, a trained
    intent keeps half of its own.

    Args:
        trained (`int`): Number of trained intents.
        described (`int`): Number of added intents.
    """
    return 1 - 0.5 * described / (trained + described)


def balancing_offset(
    trained_scores: torch.Tensor, described_scores: torch.Tensor, targets: torch.Tensor, keep: float
) -> float:
    """Find the greatest constant, added to the scores of described intents, that leaves trained ones enough answers.

    Args:
        trained_scores (`torch.Tensor` of shape `(sentences, trained)`): Scores of sentences that describe trained intents.
        described_scores (`torch.Tensor` of shape `(sentences, described)`): Their scores for the described intents.
        targets (`torch.LongTensor` of shape `(sentences,)`): The intent of each sentence, a column of `trained_scores`.
        keep (`float`): Share of the sentences answered right without described intents that must stay so.

    Returns:
        `float`: The constant; 0 where no sentence is answered right.
    """
    best, answers = trained_scores.double().max(-1)
    margins = (best - described_scores.double().amax(-1))[answers == targets]
    return torch.quantile(margins, 1 - keep, interpolation="lower").item() if len(margins) else 0.0


__all__ = ["PROBES", "balancing_offset", "kept_share"]
