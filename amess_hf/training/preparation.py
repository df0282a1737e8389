"""From script arguments and clips to tokenizer, model and collator: what the training scripts share."""

from dataclasses import dataclass

from transformers import AutoTokenizer
from transformers.utils import logging

from ..data.collator import AMESSDataCollator
from ..modeling_amess import AMESSForIntentClassification
from .saved_model import check_features, config_of_saved_model, loading


logger = logging.get_logger(__name__)


# Tokens and frames that the published experiments on each data set keep.
USUAL_LIMITS = {
    "mintrec": {"max_text_length": 30, "max_audio_length": 480, "max_video_length": 230},
    "mintrec2.0": {"max_text_length": 50, "max_audio_length": 400, "max_video_length": 180},
}


def load_tokenizer(model_args):
    """The tokenizer that goes with the model or the text encoder."""
    name = model_args.model_name_or_path or model_args.text_model_name_or_path
    if name is None:
        raise ValueError("give `--text_model_name_or_path` to train, or `--model_name_or_path` for a saved model")
    with loading(name):
        return AutoTokenizer.from_pretrained(name)


def build_model(model_args, data_args, task, tokenizer):
    """
    The model that the arguments ask for: a saved one, or a new one around a pretrained text encoder.

    Raises:
        `ValueError`: if a saved model takes other features than the data has, or was built otherwise than asked for.
    """
    if model_args.model_name_or_path is not None:
        model = AMESSForIntentClassification.from_pretrained(
            model_args.model_name_or_path, config=config_of_saved_model(model_args)
        )
        check_features(model.config, data_args, task)
    else:
        model = AMESSForIntentClassification.from_text_pretrained(
            model_args.text_model_name_or_path,
            labels=task.labels,
            label_descriptions=task.label_descriptions,
            tokenizer=tokenizer,
            audio_encoder=data_args.audio_encoder,
            video_encoder=data_args.video_encoder,
            context_turns=data_args.context_turns or 0,
            **{**_usual_limits(data_args), **task_fields(task), **model_args.config_fields()},
        )
    model.get_input_embeddings().requires_grad_(not model_args.freeze_word_embeddings)
    return model


def task_fields(task):
    """Configuration fields that follow from the data: the features' widths; no fusion where there are words alone."""
    sizes = task.feature_sizes()
    if sizes:
        return sizes
    logger.warning("words alone: there is nothing to fuse, so `fusion_type` is text (`--fusion_type anchor` for A-ME)")
    return {"fusion_type": "text"}


def _usual_limits(data_args):
    """The largest usual limits among the data sets; each turn of context has as much room as the utterance."""
    known = [USUAL_LIMITS[name] for name in map(str.strip, data_args.dataset_name.split(",")) if name in USUAL_LIMITS]
    limits = {name: max(limit[name] for limit in known) for name in (known[0] if known else ())}
    if limits and data_args.context_turns:
        limits["max_text_length"] *= 1 + data_args.context_turns
    return limits


def build_collator(tokenizer, model, task):
    """The collator for `task` and `model`."""
    collator = AMESSDataCollator(tokenizer, model.config)
    if task.candidates is None:
        return collator
    labels = range(model.config.num_labels)
    masks = {name: [label in known for label in labels] for name, known in task.candidates.items()}
    return _CandidateCollator(collator.processor, candidate_masks=masks)


@dataclass
class _CandidateCollator(AMESSDataCollator):
    """Adds `candidate_mask` to rows by the data set that they are from."""

    candidate_masks: dict[str, list[bool]] | None = None

    def __call__(self, rows):
        return super().__call__([{**row, "candidate_mask": self.candidate_masks[row["dataset"]]} for row in rows])


__all__ = ["build_collator", "build_model", "load_tokenizer"]
