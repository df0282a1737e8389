"""Parameter groups: the text encoder, layer by layer, and the rest."""

import re
from collections import defaultdict
from typing import Any

from torch import nn
from transformers import Trainer

from ..modeling_amess import AMESSForIntentClassification
from .arguments import AMESSTrainingArguments


TEXT_ENCODER = re.compile(r"(^|\.)text_encoder\.")
_NAMED_EMBEDDING = re.compile(r"(^|\.)\w*embed\w*\.")


def freeze_word_embeddings(model: AMESSForIntentClassification) -> None:
    """Freeze the text encoder's word embeddings."""
    model.get_input_embeddings().requires_grad_(False)


def layer_depths(text_encoder: nn.Module, num_layers: int) -> dict[str, int]:
    """Count for each parameter of a text encoder the layers between it and the output.

    That is 0 for the last layer and what comes after it, and `num_layers` for the embeddings. A shared layer, such as
    ALBERT's, counts as the last one.

    Args:
        text_encoder (`nn.Module`): The encoder.
        num_layers (`int`): Its layers.
    """
    # The outermost list of that length; anything outside it is embeddings, shared by all layers, or after the last
    # one.
    stacks = (name for name, module in text_encoder.named_modules() if _is_stack(module, num_layers))
    stack = f"{next(stacks, None)}."
    embeddings = [f"{name}." for name, module in text_encoder.named_modules() if isinstance(module, nn.Embedding)]
    depths = {}
    for name, _ in text_encoder.named_parameters():
        if name.startswith(stack):
            depths[name] = num_layers - 1 - int(name.removeprefix(stack).split(".")[0])
        else:
            is_embedding = _NAMED_EMBEDDING.search(name) or name.startswith(tuple(embeddings))
            depths[name] = num_layers if is_embedding else 0
    return depths


def _is_stack(module: nn.Module, num_layers: int):
    return isinstance(module, nn.ModuleList) and len(module) == num_layers


def parameter_groups(model: AMESSForIntentClassification, args: AMESSTrainingArguments) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer.

    A text encoder's layer d layers below the last has learning rate `learning_rate * layer_decay**d`; the rest has
    `head_learning_rate`. Biases and layer normalisations have no weight decay, as in transformers' Trainer.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): Learning rates, weight decays and the layer decay.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: If the model has no module `text_encoder`, so that nothing would get `learning_rate`.
    """
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    prefix, encoder = next(
        ((name, module) for name, module in model.named_modules() if TEXT_ENCODER.search(f"{name}.")), (None, None)
    )
    if encoder is None:
        raise ValueError("no module is called `text_encoder`: `learning_rate` would apply to nothing")
    depths = layer_depths(encoder, getattr(model.config.text_config, "num_hidden_layers", 0))
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(f"{prefix}."):
            depth = depths[name.removeprefix(f"{prefix}.")]
            rate, decay = args.learning_rate * args.layer_decay**depth, args.weight_decay
        else:
            rate, decay = args.head_learning_rate, args.head_weight_decay
        groups[rate, decay if name in decayed else 0.0].append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
