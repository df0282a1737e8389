"""Low-rank adapters (LoRA, arXiv 2106.09685) in the text encoder, by `peft`; the rest of the model is unchanged.

`config.text_adapter` holds the fields of a [`peft.LoraConfig`]. Its `base_model_name_or_path` names the encoder that the
frozen weights came from: they are then not saved but loaded from there again. Without it, a checkpoint contains them
too.
"""

import hashlib
import os
import re
from typing import Any

import torch
from torch import nn

from .text_encoders_amess import is_quantized


# What peft calls the weights of an adapter, and the layer that it wraps.
_ADAPTER_WEIGHT = re.compile(r"\.lora_[A-Za-z_]+\.")
_WRAPPED = ".base_layer."
_NAME = "default"
FINGERPRINT = "base_fingerprint"


def _import_peft():
    try:
        import peft
    except ImportError as error:
        raise ImportError('adapters need peft; pip install "amess_hf[peft]" (or pip install peft)') from error
    return peft


def inject_adapter(text_encoder: nn.Module, settings: dict[str, Any]) -> None:
    """Put an adapter into a text encoder, in place; the encoder's own weights are frozen.

    Args:
        text_encoder (`nn.Module`): The encoder.
        settings (`dict`): Fields of [`peft.LoraConfig`].

    Raises:
        `ImportError`: If peft is not installed.
        `ValueError`: If no module of the encoder has one of the target names.
    """
    peft = _import_peft()
    fields = {name: value for name, value in settings.items() if name not in ("peft_type", FINGERPRINT)}
    try:
        peft.inject_adapter_in_model(peft.LoraConfig(**fields), text_encoder, _NAME)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`text_adapter` does not fit a {type(text_encoder).__name__}: {' '.join(str(error).split())}"
        ) from error
    for name, module in text_encoder.named_modules():
        if _ADAPTER_WEIGHT.search(f".{name}."):
            module._is_hf_initialized = True  # peft has; transformers would randomise the zeros


def frozen_names(text_encoder: nn.Module) -> list[str]:
    """Return the names of all weights that are not the adapter's."""
    return [name for name in text_encoder.state_dict() if not _ADAPTER_WEIGHT.search(name)]


def fingerprint(text_encoder: nn.Module) -> str:
    """Return a hash of the frozen weights: their names, shapes and a few numbers of each."""
    digest = hashlib.sha256()
    state = text_encoder.state_dict()
    for name in sorted(frozen_names(text_encoder)):
        values = state[name].detach().flatten()
        some = values[:: max(1, values.numel() // 16)][:16].float().cpu()
        digest.update(f"{name.replace(_WRAPPED, '.')} {tuple(state[name].shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def load_frozen_weights(text_encoder: nn.Module, base: nn.Module, settings: dict[str, Any]) -> None:
    """Copy the weights of the encoder that an adapter was trained on into the frozen ones.

    Args:
        text_encoder (`nn.Module`): The encoder, with its adapter.
        base (`nn.Module`): The encoder that the adapter was trained on.
        settings (`dict`): The adapter's; its fingerprint is compared.

    Raises:
        `ValueError`: If `base` has other weights than the adapter was trained on.
    """
    weights, own = base.state_dict(), text_encoder.state_dict()
    missing = [name for name in frozen_names(text_encoder) if name.replace(_WRAPPED, ".") not in weights]
    if not missing:
        for name in frozen_names(text_encoder):
            own[name].copy_(weights[name.replace(_WRAPPED, ".")])
    if missing or fingerprint(text_encoder) != settings.get(FINGERPRINT, fingerprint(text_encoder)):
        raise ValueError(
            f"{settings['base_model_name_or_path']} has other weights than the adapter was trained on; give the folder or "
            "the revision that it was trained on, as `base_model_name_or_path` in `text_adapter` of config.json"
        )


@torch.no_grad()
def merged_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return a model's state with its adapter merged into the weights, by the names of a model without adapter.

    Args:
        model (`nn.Module`): A model that contains a text encoder with an adapter.
        state_dict (`dict[str, torch.Tensor]`, *optional*): Its state, by default the current one.

    Raises:
        `ValueError`: If the text encoder is quantized.
    """
    _check_mergeable(model)
    from_peft = _import_peft().tuners.tuners_utils.BaseTunerLayer
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, module in model.named_modules():
        if isinstance(module, from_peft):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + module.get_delta_weight(_NAME).to(state[weight])
    return {
        name.replace(_WRAPPED, "."): value for name, value in state.items() if not _ADAPTER_WEIGHT.search(f".{name}")
    }


def _check_mergeable(model: nn.Module):
    if any(is_quantized(module) for module in model.modules()):
        raise ValueError(
            "the text encoder is quantized, and an adapter is not merged into rounded weights; save the model with its "
            "adapter and load it again, which takes the encoder's own weights"
        )


def merge_adapter(text_encoder: nn.Module) -> None:
    """Merge an adapter into the weights, in place; the encoder then has no adapter."""
    _check_mergeable(text_encoder)
    from_peft = _import_peft().tuners.tuners_utils.BaseTunerLayer
    for name, module in list(text_encoder.named_modules()):
        if isinstance(module, from_peft):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(text_encoder.get_submodule(parent), attribute, module.get_base_layer())
    text_encoder.requires_grad_(True)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(text_encoder):
            delattr(text_encoder, attribute)


def base_of(settings: dict[str, Any] | None) -> str | os.PathLike | None:
    """Return where the frozen weights are loaded from; `None` where the checkpoint contains them."""
    return None if settings is None else settings.get("base_model_name_or_path")
