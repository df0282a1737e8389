"""Which weights are trained, how fast, and which are kept: parameter groups, LoRA, averages over the steps and with the pretrained."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase, Trainer

from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import written_aside
from ..text_encoders_amess import FINGERPRINT, fingerprint, inject_adapter, is_quantized, merge_adapter
from .arguments import AMESSTrainingArguments


TEXT_ENCODER = re.compile(r"(^|\.)text_encoder\.")
AVERAGED_WEIGHTS_NAME = "averaged_weights.safetensors"
_NAMED_EMBEDDING = re.compile(r"(^|\.)\w*embed\w*\.")


def _layer_depths(text_encoder: nn.Module, num_layers: int):
    """For each parameter of a text encoder, the layers between it and the output.

    That is 0 for the last layer and what comes after it, and `num_layers` for the embeddings. A shared layer, such as
    ALBERT's, counts as the last one.
    """
    # The outermost list of that length; anything outside it is embeddings, shared by all layers, or after the last
    # one.
    modules = dict(text_encoder.named_modules())
    stacks = (
        name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) == num_layers
    )
    stack = f"{next(stacks, None)}."
    embeddings = tuple(f"{name}." for name, module in modules.items() if isinstance(module, nn.Embedding))
    depths = {}
    for name, _ in text_encoder.named_parameters():
        if name.startswith(stack):
            depths[name] = num_layers - 1 - int(name.removeprefix(stack).split(".")[0])
        else:
            depths[name] = num_layers if _NAMED_EMBEDDING.search(name) or name.startswith(embeddings) else 0
    return depths


def parameter_groups(model: AMESSForIntentClassification, args: AMESSTrainingArguments) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer.

    A text encoder's layer d layers below the last has learning rate `learning_rate * layer_decay**d`; the rest has
    `head_learning_rate`. Biases and layer normalizations have no weight decay, as in transformers' Trainer.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): Learning rates, weight decays and the layer decay.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`.
    """
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    prefix = next(f"{name}." for name, _ in model.named_modules() if TEXT_ENCODER.search(f"{name}."))
    encoder = model.get_submodule(prefix.removesuffix("."))
    depths = _layer_depths(encoder, getattr(model.config.text_config, "num_hidden_layers", 0))
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(prefix):
            depth = depths[name.removeprefix(prefix)]
            rate, decay = args.learning_rate * args.layer_decay**depth, args.weight_decay
        else:
            rate, decay = args.head_learning_rate, args.head_weight_decay
        groups[rate, decay if name in decayed else 0.0].append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def add_lora(
    model: AMESSForIntentClassification,
    rank: int = 16,
    target_modules: str | list[str] | None = None,
    dropout: float = 0.1,
    base_model_name_or_path: str | os.PathLike | None = None,
) -> AMESSForIntentClassification:
    """Add a LoRA adapter to a model's text encoder, in place, and freeze the encoder's own weights.

    The model saves and loads as before, with its label embeddings; `model.save_pretrained(folder, merge_adapter=True)`
    saves one that needs no peft.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        rank (`int`, *optional*, defaults to 16): Rank of the adapter; what it adds is scaled by 2.
        target_modules (`str` or `list[str]`, *optional*):
            Names of the layers that are adapted; all linear layers if not given.
        dropout (`float`, *optional*, defaults to 0.1): Dropout before the adapter.
        base_model_name_or_path (`str` or `os.PathLike`, *optional*):
            Where the text encoder was loaded from. If given, checkpoints omit its frozen weights, and loading takes
            them from there, not quantized. A quantized encoder needs it.

    Returns:
        The same model.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the model already has an adapter, an argument does not fit its encoder, or a quantized encoder
            has no `base_model_name_or_path`.

    Example:
        ```python
        >>> model = AMESSForIntentClassification.from_text_pretrained("Qwen/Qwen3-Embedding-0.6B", dataset=dataset["train"])
        >>> add_lora(model, rank=16, base_model_name_or_path="Qwen/Qwen3-Embedding-0.6B")
        ```
    """
    if model.config.text_adapter is not None:
        raise ValueError("the model already has an adapter; merge it first: `merge_lora(model)`")
    encoder = model.amess.text_encoder
    if is_quantized(encoder) and base_model_name_or_path is None:
        raise ValueError("the text encoder is quantized and its weights are not saved; give `base_model_name_or_path`")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": dropout,
        "target_modules": target_modules or "all-linear",
    }
    if base_model_name_or_path is not None:
        settings["base_model_name_or_path"] = os.fspath(base_model_name_or_path)
        if not is_quantized(encoder):
            settings[FINGERPRINT] = fingerprint(encoder)
    inject_adapter(encoder, settings)
    encoder.train(encoder.training)  # the new layers too
    model.config.text_adapter = settings
    model._leave_frozen_weights_out()
    return model


def merge_lora(model: AMESSForIntentClassification) -> AMESSForIntentClassification:
    """Merge a model's adapter, if it has one, into the weights, in place, and return the model."""
    if model.config.text_adapter is not None:
        merge_adapter(model.amess.text_encoder)
        model.config.text_adapter = None
        model._leave_frozen_weights_out()
    return model


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
        tensors = {name: average.contiguous() for name, average in self.averages.items()}
        with written_aside(os.path.join(directory, AVERAGED_WEIGHTS_NAME)) as partial:
            save_file({**tensors, "updates": self.updates}, partial, metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, directory: str | os.PathLike) -> None:
        """Read the average that `save` wrote for a model with the same parameters."""
        tensors = load_file(os.path.join(directory, AVERAGED_WEIGHTS_NAME))
        self.updates = tensors.pop("updates")
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
