"""Low-rank adapters: train a small addition to the text encoder instead of all its weights."""

import os

from ..adapters_amess import FINGERPRINT, fingerprint, inject_adapter, merge_adapter
from ..modeling_amess import AMESSForIntentClassification


def add_lora(
    model: AMESSForIntentClassification,
    rank: int = 16,
    target_modules: str | list[str] | None = None,
    dropout: float = 0.1,
    base_model_name_or_path: str | os.PathLike | None = None,
) -> AMESSForIntentClassification:
    """Put a LoRA adapter into a model's text encoder, in place: its own weights are frozen, all else is trained in full.

    The model saves and loads as before, with its label embeddings; `model.save_pretrained(folder, merge_adapter=True)`
    saves one that needs no peft.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        rank (`int`, *optional*, defaults to 16): Rank of the adapter; what it adds is scaled by 2.
        target_modules (`str` or `list[str]`, *optional*):
            Names of the layers that are adapted; all linear layers if not given.
        dropout (`float`, *optional*, defaults to 0.1): Dropout before the adapter.
        base_model_name_or_path (`str` or `os.PathLike`, *optional*):
            Where the text encoder was loaded from. If given, checkpoints leave its frozen weights out, and loading takes
            them from there.

    Returns:
        The same model.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the model has an adapter already, or an argument does not fit its encoder.

    Example:
        ```python
        >>> model = AMESSForIntentClassification.from_text_pretrained("Qwen/Qwen3-Embedding-0.6B", dataset=dataset["train"])
        >>> add_lora(model, rank=16, base_model_name_or_path="Qwen/Qwen3-Embedding-0.6B")
        ```
    """
    if model.config.text_adapter is not None:
        raise ValueError("the model has an adapter already; merge it first: `merge_lora(model)`")
    if rank < 1:
        raise ValueError(f"`rank` is {rank}; it must be at least 1")
    encoder = model.amess.text_encoder
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": dropout,
        "target_modules": target_modules or "all-linear",
    }
    if base_model_name_or_path is not None:
        settings |= {"base_model_name_or_path": os.fspath(base_model_name_or_path), FINGERPRINT: fingerprint(encoder)}
    inject_adapter(encoder, settings)
    encoder.train(encoder.training)  # the new layers too
    model.config.text_adapter = settings
    model._leave_frozen_weights_out()
    return model


def merge_lora(model: AMESSForIntentClassification) -> AMESSForIntentClassification:
    """Add a model's adapter to the weights that it adapts, in place; the model is then one without.

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
