"""Low-rank adapters: train a small addition to the text encoder instead of all its weights."""

import os

from ..adapters_amess import FINGERPRINT, fingerprint, inject_adapter, merge_adapter
from ..modeling_amess import AMESSForIntentClassification
from ..text_encoders_amess import is_quantized


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
    if rank < 1:
        raise ValueError(f"`rank` is {rank}; it must be at least 1")
    encoder = model.amess.text_encoder
    if is_quantized(encoder) and base_model_name_or_path is None:
        raise ValueError(
            "the text encoder is quantized and its weights are not saved; give `base_model_name_or_path`, where they come from"
        )
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
    """Merge a model's adapter into the weights, in place; the model then has no adapter.

    Args:
        model ([`AMESSForIntentClassification`]): The model.

    Returns:
        The same model.
    """
    if model.config.text_adapter is not None:
        merge_adapter(model.amess.text_encoder)
        model.config.text_adapter = None
        model._leave_frozen_weights_out()
    return model
