"""Text encoders: how each is built and called, how its tokens are pooled, and low-rank adapters in it (LoRA, arXiv 2106.09685).

A quirk of a kind of encoder belongs here, in one of the sets below: `ENCODER_ONLY` and `_OFFSET_POSITIONS` of
`configuration_amess.py` (encoder-decoders; encoders whose positions count from the padding token's id on), `_DECODERS`
(decoders that are used as encoders).

`config.text_adapter` holds the fields of a [`peft.LoraConfig`]. Its `base_model_name_or_path` names the encoder that the
frozen weights came from: they are then not saved but loaded from there again. Without it, a checkpoint contains them too.
"""

import copy
import hashlib
import inspect
import json
import os
import re
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedConfig
from transformers.utils import cached_file

from .configuration_amess import ENCODER_ONLY, check_text_config
from .layers_amess import masked_mean


# Decoders that are used as encoders: only their last token has seen all words.
_DECODERS = {
    "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "granite", "llama", "mistral", "olmo",
    "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
}  # fmt: skip


def _auto_class(config: PreTrainedConfig):
    return AutoModelForTextEncoding if config.model_type in ENCODER_ONLY else AutoModel


def build_text_encoder(config: PreTrainedConfig) -> nn.Module:
    """Make a text encoder with new weights from its configuration, without its unused pooler.

    Args:
        config (`PreTrainedConfig`): Its configuration.
    """
    return _without_pooler(_auto_class(config).from_config(config))


def load_text_encoder(name: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """Load a pretrained text encoder, without its unused pooler.

    Args:
        name (`str` or `os.PathLike`): A folder, or a repository on the Hub.
        kwargs: For `from_pretrained`.

    Raises:
        `ValueError`: As for [`check_text_config`].
    """
    config = AutoConfig.from_pretrained(name)
    check_text_config(config, os.fspath(name))
    return _without_pooler(_auto_class(config).from_pretrained(name, **kwargs))


def unquantized_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return an encoder's configuration as it is without quantization, which concerns only the weights in memory."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def is_quantized(text_encoder: nn.Module) -> bool:
    """Whether the weights are quantized, by bitsandbytes for example."""
    return getattr(text_encoder, "hf_quantizer", None) is not None


def _without_pooler(text_encoder: nn.Module) -> nn.Module:
    """Remove the pooler that BERT and similar encoders have: weights without a gradient would stop DDP."""
    if getattr(text_encoder, "pooler", None) is not None:
        text_encoder.pooler = None
    return text_encoder


@cache
def _arguments(encoder_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(encoder_class.forward).parameters)


def encode_tokens(
    text_encoder: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Call a text encoder with the arguments that it takes.

    Args:
        text_encoder (`nn.Module`): The encoder.
        input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`): Tokens, padded on the right.
        mask (`torch.BoolTensor` of shape `(batch_size, text_length)`): `True` for tokens.
        token_type_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*): Passed on if it takes them.

    Returns:
        `torch.Tensor` of shape `(batch_size, text_length, width)`: The states of the tokens.
    """
    # Some encoders return NaN where every token is masked; so the first one is left unmasked, and its state is not
    # used.
    first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
    inputs = {"input_ids": input_ids, "attention_mask": (mask | (first & ~mask.any(1, keepdim=True))).long()}
    takes = _arguments(type(text_encoder))
    if token_type_ids is not None and "token_type_ids" in takes:
        inputs["token_type_ids"] = token_type_ids
    if "use_cache" in takes:
        inputs["use_cache"] = False  # nothing is generated
    return text_encoder(**inputs, return_dict=True).last_hidden_state


def left_padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Count the padding before the first token of each text.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*): 1 for tokens, 0 for padding.

    Returns:
        `torch.LongTensor` of shape `(batch_size, 1)`, 0 where there are no tokens; `None` without a mask.
    """
    return None if attention_mask is None else attention_mask.bool().long().argmax(1, keepdim=True)


def shifted(tensor: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor | None:
    """Move each row of `(batch_size, text_length)` to the left by `shift`; what is shifted out wraps around to the right."""
    if tensor is None or shift is None:
        return tensor
    length = tensor.shape[1]
    places = torch.arange(length, device=tensor.device) + shift
    # Not `%`, which the export to ONNX does not support for a length that is not fixed.
    return tensor.gather(1, places.where(places < length, places - length))


def pool(states: torch.Tensor, utterance: torch.Tensor, pooling: str) -> torch.Tensor:
    """Summarize the tokens of each utterance.

    Args:
        states (`torch.Tensor` of shape `(batch_size, text_length, width)`): States of all tokens, padded on the right.
        utterance (`torch.BoolTensor` of shape `(batch_size, text_length)`): `True` for the utterance's own tokens.
        pooling (`str`): One of `TEXT_POOLINGS`; `"cls"` is the first token of all, the others look at the utterance.

    Returns:
        `torch.Tensor` of shape `(batch_size, width)`: Zero where there are no words.
    """
    if pooling == "mean":
        return masked_mean(states, utterance)
    places = torch.arange(utterance.shape[1], device=utterance.device)
    place = 0 if pooling == "cls" else (utterance * places).amax(1, keepdim=True)
    return masked_mean(states, (places == place) & utterance.any(1, keepdim=True))


def _read_json(name: str | os.PathLike, file: str) -> Any:
    """Read a JSON file of a folder or a repository; `None` if it has none."""
    path = cached_file(
        os.fspath(name),
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as content:
            return json.load(content)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {' '.join(str(error).split())}; fix it or remove it") from None


def text_encoder_fields(name: str | os.PathLike, config: PreTrainedConfig) -> dict[str, str]:
    """Return how a checkpoint is meant to be used, as fields of [`AMESSConfig`].

    What `sentence-transformers` stores next to the weights decides: its pooling module, and its prompts, of which
    utterances get the one for queries and descriptions the one for documents. Without these, a decoder is summarized
    by its last token, and any other encoder by the mean.

    Args:
        name (`str` or `os.PathLike`): The text encoder: a folder, or a repository on the Hub.
        config (`PreTrainedConfig`): Its configuration.

    Raises:
        `ValueError`: If one of the files is not valid JSON.
    """
    fields = {"text_pooling": "last" if config.model_type in _DECODERS else "mean"}
    modules = _read_json(name, "modules.json") or []
    for module in modules:
        if str(module.get("type", "")).endswith(".Pooling"):
            fields |= _pooling_of(_read_json(name, f"{module.get('path', '')}/config.json") or {})
    settings = _read_json(name, "config_sentence_transformers.json") or {}
    prompts = {key: text for key, text in (settings.get("prompts") or {}).items() if isinstance(text, str)}
    query = prompts.get("query") or prompts.get(settings.get("default_prompt_name") or "")
    document = prompts.get("document") or prompts.get("passage")
    return fields | ({"text_prefix": query} if query else {}) | ({"description_prefix": document} if document else {})


def _pooling_of(settings: dict[str, Any]) -> dict[str, str]:
    """Translate the pooling module of sentence-transformers; what A-MESS does not support falls back to the default."""
    name = settings.get("pooling_mode")
    by_flag = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
    found = [pooling for flag, pooling in by_flag.items() if settings.get(flag)]
    pooling = {"cls": "cls", "lasttoken": "last", "mean": "mean"}.get(name) if isinstance(name, str) else None
    pooling = pooling or (found[0] if found else None)
    return {"text_pooling": pooling} if pooling else {}


# What peft calls the weights of an adapter, and the layer that it wraps.
_ADAPTER_WEIGHT = re.compile(r"\.lora_[A-Za-z_]+\.")
_WRAPPED = ".base_layer."
_NAME = "default"
MAX_RANK = 4096
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
        if not 1 <= fields.get("r", 8) <= MAX_RANK:
            raise ValueError(f"`r` is {fields['r']}; it must be from 1 to {MAX_RANK}")
        peft.inject_adapter_in_model(peft.LoraConfig(**fields), text_encoder, _NAME)
    except Exception as error:  # whatever peft makes of fields that came with a checkpoint
        raise ValueError(
            f"`text_adapter` does not fit a {type(text_encoder).__name__}: {' '.join(str(error).split())}"
        ) from error
    for name, module in text_encoder.named_modules():
        if _ADAPTER_WEIGHT.search(f".{name}."):
            module._is_hf_initialized = True  # peft has; transformers would randomize the zeros


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
