"""Parameter groups: the text encoder, layer by layer, and the rest."""

import re
from collections import defaultdict
from typing import Any

from transformers import Trainer

from ..modeling_amess import AMESSForIntentClassification
from .arguments import AMESSTrainingArguments


TEXT_ENCODER = re.compile(r"(^|\.)text_encoder\.")


def freeze_word_embeddings(model: AMESSForIntentClassification) -> None:
    """Keep the text encoder's word embeddings as they are: they get no gradient."""
    model.get_input_embeddings().requires_grad_(False)


def _depth(name: str, num_layers: int):
    """Layers between a text encoder's parameter and its output: 0 for the last layer, `num_layers` for embeddings."""
    layer = re.search(r"\.(\d+)\.", name.split("text_encoder", 1)[1])
    if layer is not None:
        return num_layers - 1 - int(layer.group(1))
    return num_layers if "embed" in name else 0


def parameter_groups(model: AMESSForIntentClassification, args: AMESSTrainingArguments) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer.

    A text encoder's layer d layers below the last has learning rate `learning_rate * layer_decay**d`; all else has
    `head_learning_rate`. Biases and layer normalisations have no weight decay, as in transformers' Trainer.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): Learning rates, weight decays and the layer decay.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: If the model has no text encoder by that name, so that nothing would get `learning_rate`.
    """
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if TEXT_ENCODER.search(name):
            num_layers = getattr(model.config.text_config, "num_hidden_layers", 0)
            rate, decay = args.learning_rate * args.layer_decay ** _depth(name, num_layers), args.weight_decay
        else:
            rate, decay = args.head_learning_rate, args.head_weight_decay
        groups[rate, decay if name in decayed else 0.0].append(parameter)
    if not any(TEXT_ENCODER.search(name) for name, _ in model.named_parameters()):
        raise ValueError("no parameter's name contains `text_encoder.`: `learning_rate` would apply to nothing")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
