"""Averages of weights: over the steps of training, and with the pretrained text encoder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase

from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import written_aside


AVERAGED_WEIGHTS_NAME = "averaged_weights.safetensors"


class WeightAverage:
    """Exponential moving average of a model's trainable parameters.

    The decay grows to its value as min(decay, (1 + t) / (10 + t)) at update t, so that the initial weights are soon
    forgotten.

    Args:
        model (`torch.nn.Module`): The model whose parameters are averaged.
        decay (`float`): Share of the average that a step keeps, at least 0 and below 1.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.updates = torch.zeros((), dtype=torch.long)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the parameters' current values."""
        self.updates += 1
        updates = int(self.updates)
        average = get_ema_multi_avg_fn(min(self.decay, (1 + updates) / (10 + updates)))
        average(list(self.averages.values()), [p.detach() for p in self.parameters.values()], updates)

    @torch.no_grad()
    def _exchange(self):
        for name, parameter in self.parameters.items():
            present = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(present)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the model's weights to the average permanently."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])

    def save(self, directory: str | os.PathLike) -> None:
        """Write the average to `directory`."""
        path = os.path.join(directory, AVERAGED_WEIGHTS_NAME)
        tensors = {name: average.contiguous() for name, average in self.averages.items()}
        with written_aside(path) as partial:
            save_file({**tensors, "updates": self.updates}, partial, metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, directory: str | os.PathLike) -> None:
        """Read the average that `save` wrote.

        Raises:
            ValueError: If the file is missing or was written for another model.
        """
        path = os.path.join(directory, AVERAGED_WEIGHTS_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"{path} is missing: the checkpoint was written with `weight_averaging` 0; resume it with the same value"
            )
        tensors = load_file(path)
        updates = tensors.pop("updates")
        if set(tensors) != set(self.averages):
            raise ValueError(f"{path} holds other weights than this model has; resume with the model that wrote it")
        self.updates = updates
        for name, average in self.averages.items():
            average.copy_(tensors[name])


@contextmanager
def averaged_weights(
    model: AMESSForIntentClassification, average: WeightAverage | None, tokenizer: PreTrainedTokenizerBase
) -> Iterator[None]:
    """Context in which the model has the averaged weights, and label embeddings made with them.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        average ([`WeightAverage`] or `None`): The average of its weights; `None` leaves the model as it is.
        tokenizer: Encodes the label descriptions.
    """
    if average is None:
        yield
        return
    memory = model.label_embeds.clone()
    with average.applied():
        if model.config.label_descriptions is not None:
            model.update_label_embeds(tokenizer)
        yield
    model.label_embeds.copy_(memory)


def encoder_weights(model: AMESSForIntentClassification) -> dict[str, torch.Tensor]:
    """Return a copy of the text encoder's weights."""
    return {name: weight.detach().clone() for name, weight in model.amess.text_encoder.named_parameters()}


@torch.no_grad()
def mix_encoder_weights(
    model: AMESSForIntentClassification, pretrained: dict[str, torch.Tensor], share: float
) -> None:
    """Interpolate the text encoder's weights with those before training (WiSE-FT; Wortsman et al., CVPR 2022).

    This recovers part of what fine-tuning made the encoder forget about intents that it was not trained on. The stored
    label embeddings are not updated: see [`AMESSForIntentClassification.update_label_embeds`].

    Args:
        model ([`AMESSForIntentClassification`]): The trained model.
        pretrained (`dict[str, torch.Tensor]`): What `encoder_weights` gave before training.
        share (`float`): Share of `pretrained`, from 0 (the trained weights) to 1.
    """
    for name, weight in model.amess.text_encoder.named_parameters():
        weight.lerp_(pretrained[name].to(weight), share)
