"""AMESSProcessor turns text, clips, arrays or ready features into a batch with masks.

Below it: tokenizing and padding; the official labels; and how this package writes its files, under a temporary name first.
"""

import json
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, BatchFeature, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import logging

from .clips_amess import Clip, ClipError
from .configuration_amess import FEATURE_MODALITIES, MAX_LENGTHS
from .encoders_amess import AudioEncoder, VideoEncoder, encoder_class, load_encoder


logger = logging.get_logger(__name__)


# Dimensions of one clip's array, by argument of the processor.
_ARRAY_DIMS = {"audio": 1, "video": 4, "clip": 4, "frames": 4, "audio_features": 2, "video_features": 2}
# Tokenizers keep the limit of a call until the next one, so threads must take turns.
_TOKENIZING = threading.Lock()


# Values in which processor and model must agree; otherwise the model would get features that it has never seen.
def _shared_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a model's configuration says too, by the processor's names."""
    fields = {"max_text_length": config.max_text_length, "text_prefix": config.text_prefix}
    for name in FEATURE_MODALITIES:
        features = config.feature_configs.get(name)
        fields[f"{name}_encoder"] = features and features.encoder
        fields[f"{name}_feature_size"] = features and features.feature_size
        fields[f"max_{name}_length"] = features.max_length if features else MAX_LENGTHS[name]
    return {**fields, "audio_encoder_layer": config.audio_config and config.audio_config.encoder_layer}


class AMESSProcessor(ProcessorMixin):
    r"""Joins a tokenizer with the audio and video encoders that a model was trained with, and makes its batches.

    A row (a `dict` with the utterance and its clip or features) becomes part of a batch in three steps, which `__call__`
    takes one after another: [`~AMESSProcessor.read`] decodes the clip, [`~AMESSProcessor.encode`] turns audio and frames
    into features, [`~AMESSProcessor.collate`] tokenizes and pads. Training and evaluation on ready features need only
    the last one ([`AMESSDataCollator`]); the pipeline reads in its workers and encodes on its device.

    The processor is saved and loaded with the model (`AutoProcessor.from_pretrained`). It remembers the encoders' names,
    rates and widths and the model's limits; [`~AMESSProcessor.check_model`] refuses a model that was trained
    differently. The encoders themselves are loaded when they are first needed.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model's text encoder.
        feature_extractor ([`~transformers.FeatureExtractionMixin`] or its `dict`, *optional*):
            Preprocessing of `audio_encoder` where that is a Hub model.
        image_processor ([`~transformers.ImageProcessingMixin`] or its `dict`, *optional*):
            Preprocessing of `video_encoder` where that is a Hub model.
        audio_encoder, video_encoder (`str`, *optional*):
            As in [`AMESSConfig`]: a Hub model, `"log-mel"` (audio), `"hog"` or `"hog-grid"` (video), or `None` where only
            ready features can be given.
        audio_encoder_layer (`int`, *optional*):
            As in [`AMESSConfig`]: the layer of `audio_encoder` that features come from, `None` for its output.
        audio_feature_size, video_feature_size (`int`, *optional*):
            Widths of the features, `None` for a modality that the model does not take.
        audio_sampling_rate (`int`, *optional*):
            Samples per second that `audio_encoder` takes.
        video_frame_rate (`float`, *optional*):
            Frames per second that `video_encoder` is given; defaults to the encoder's own.
        max_text_length (`int`, *optional*, defaults to 30):
            Maximum number of tokens; longer texts are cut.
        max_audio_length, max_video_length (`int`, *optional*, default to 480 and 230):
            Maximum number of feature frames; longer clips are cut.
        text_prefix (`str`, *optional*):
            What the text encoder expects before an utterance.

    Example:
    ```python
    >>> processor = AutoProcessor.from_pretrained("org/amess-mintrec2")
    >>> batch = processor(text="oh great, you again", clip="clip.mp4")
    >>> logits = model(**batch).logits
    ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        feature_extractor: Any = None,
        image_processor: Any = None,
        audio_encoder: str | None = None,
        video_encoder: str | None = None,
        audio_feature_size: int | None = None,
        video_feature_size: int | None = None,
        audio_sampling_rate: int | None = None,
        video_frame_rate: float | None = None,
        max_text_length: int = 30,
        max_audio_length: int = 480,
        max_video_length: int = 230,
        audio_encoder_layer: int | None = None,
        text_prefix: str | None = None,
    ):
        super().__init__(tokenizer)
        self.feature_extractor = _part(feature_extractor, "feature_extractor_type")
        self.image_processor = _part(image_processor, "image_processor_type")
        self.audio_encoder = audio_encoder
        self.audio_encoder_layer = audio_encoder_layer
        self.video_encoder = video_encoder
        self.audio_feature_size = audio_feature_size
        self.video_feature_size = video_feature_size
        self.audio_sampling_rate = audio_sampling_rate
        self.video_frame_rate = video_frame_rate
        self.max_text_length = max_text_length
        self.max_audio_length = max_audio_length
        self.max_video_length = max_video_length
        self.text_prefix = text_prefix
        self._encoders: dict[str, Any] = {}

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Name the parts that `ProcessorMixin` saves: the tokenizer alone.

        The mixin requires every part that it knows of; the other two are optional and stored in
        `processor_config.json`.
        """
        return ["tokenizer"]

    @classmethod
    def for_model(
        cls, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, video_frame_rate: float | None = None
    ) -> "AMESSProcessor":
        """Make the processor that belongs to a model.

        Args:
            config ([`AMESSConfig`]):
                Its encoders, widths and limits are used.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer of its text encoder.
            video_frame_rate (`float`, *optional*):
                Frames per second that the video features were made from; defaults to the encoder's own.
        """
        fields = _shared_fields(config)
        audio, video = fields["audio_encoder"], fields["video_encoder"]
        feature_extractor = _preprocessing("audio", audio)
        if video is not None and video_frame_rate is None:
            video_frame_rate = encoder_class("video", video).default_frame_rate
        audio_source = feature_extractor or encoder_class("audio", audio)
        processor = cls(
            tokenizer,
            feature_extractor=feature_extractor,
            image_processor=_preprocessing("video", video),
            audio_sampling_rate=audio_source.sampling_rate if audio else None,
            video_frame_rate=video_frame_rate,
            **fields,
        )
        processor._check_vocabulary(config)
        return processor

    def check_model(self, config: PreTrainedConfig) -> None:
        """Check that a model was trained with what this processor does.

        Raises:
            ValueError: They differ, or the tokenizer has tokens that the model lacks; the message names both values.
        """
        for name, models in _shared_fields(config).items():
            own = getattr(self, name)
            if own != models:
                raise ValueError(
                    f"`{name}` is {own!r} in the processor and {models!r} in the model; load both from the same place, "
                    "or make the processor with `AMESSProcessor.for_model(model.config, tokenizer)`"
                )

        self._check_vocabulary(config)

    def _check_vocabulary(self, config: PreTrainedConfig) -> None:
        known, own = len(self.tokenizer), getattr(config.text_config, "vocab_size", None)
        if own is not None and known > own:
            raise ValueError(
                f"the tokenizer has {known} tokens and the model {own}; after adding tokens, call "
                "`model.resize_token_embeddings(len(tokenizer))`"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: everything but the loaded encoders, which are models."""
        encoders, self._encoders = self._encoders, {}
        try:
            return super().to_dict()
        finally:
            self._encoders = encoders

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors in a batch."""
        names = [*self.tokenizer.model_input_names, "utterance_mask"]
        for modality in FEATURE_MODALITIES:
            if getattr(self, f"{modality}_feature_size") is not None:
                names += [f"{modality}_features", f"{modality}_attention_mask"]
        return names

    def load_encoder(self, modality: str, device: Any = "cpu") -> AudioEncoder | VideoEncoder | None:
        """Load the encoder of a modality at the first call, and return the same one afterwards.

        Args:
            modality (`str`):
                `"audio"` or `"video"`.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
                Where it runs.

        Returns:
            [`AudioEncoder`] or [`VideoEncoder`]: The encoder; `None` where the model does not take the modality, or takes
            ready features only.

        Raises:
            ValueError: The encoder cannot be loaded, or has another width or rate than this processor.
        """
        name, width = getattr(self, f"{modality}_encoder"), getattr(self, f"{modality}_feature_size")
        if name is None or width is None:
            return None
        key = f"{modality} {device}"
        if key not in self._encoders:
            if modality == "audio":
                options = {"preprocessor": self.feature_extractor, "layer": self.audio_encoder_layer}
            else:
                options = {"preprocessor": self.image_processor, "frame_rate": self.video_frame_rate}
            encoder = load_encoder(modality, name, device, **options)
            for field in ("feature_size", "sampling_rate") if modality == "audio" else ("feature_size",):
                own, real = getattr(self, f"{modality}_{field}"), getattr(encoder, field)
                if own not in (None, real):
                    raise ValueError(
                        f"`{modality}_{field}` is {own}, but that of `{modality}_encoder` {name!r} is {real}; give the "
                        "encoder that the model was trained with"
                    )
            self._encoders[key] = encoder
        return self._encoders[key]

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode what the encoders need of a row's clip: the first step to a batch.

        Args:
            row (`dict`):
                Values of one clip, named as the arguments of `__call__`, which mean the same; other keys are ignored. A
                [`~clips_amess.Clip`] as `clip` stands for all that says where audio and video come from.

        Returns:
            `dict`: `text`, `context`, `audio_features`, `video_features` as given; `audio` and `video`, decoded where
            there are no ready features, `None` where there is nothing to decode; and `clip`, the
            [`~clips_amess.Clip`].

        Raises:
            ClipError: The clip cannot be used.
            ValueError: `text` or `context` has the wrong type.
        """
        clip = Clip.from_row(row)
        example = {"clip": clip, "text": row.get("text"), "context": _turns(row.get("context"))}
        for name, value in (("text", example["text"] or ""), *(("context", turn) for turn in example["context"])):
            try:
                value.encode()
            except (AttributeError, UnicodeEncodeError) as error:
                raise ValueError(f"`{name}` holds {value!r}; give a string of whole characters") from error
        for modality in FEATURE_MODALITIES:
            features = example[f"{modality}_features"] = row.get(f"{modality}_features")
            source = getattr(clip, modality) if features is None else None
            encoder = None if source is None else self._encoder_of(clip, modality)
            example[modality] = None if encoder is None else self._decoded(clip, encoder, modality)
        return example

    def _encoder_of(self, clip: Clip, modality: str) -> Any:
        """Return the encoder that is to read a clip; `None` for a modality that the model does not take."""
        encoder = self.load_encoder(modality)
        if encoder is None and getattr(self, f"{modality}_feature_size") is not None:
            raise ClipError(
                f"{clip.name} cannot be used: the model was trained with ready {modality} features, and what made them is "
                f"not known; give `{modality}_features`, or set `{modality}_encoder` if you know it"
            )
        return encoder

    def _decoded(self, clip: Clip, encoder: Any, modality: str) -> np.ndarray:
        """Decode one feature more than the model takes, which says that there is more."""
        limit = getattr(self, f"max_{modality}_length") + 1
        if modality == "audio":
            return encoder.read(clip, limit)
        frames = list(encoder.read(clip, limit))
        return np.stack(frames) if frames else np.zeros((0, 1, 1, 3), dtype=np.uint8)

    def encode(self, rows: list[dict[str, Any]], device: Any = "cpu") -> list[dict[str, Any]]:
        """Turn the audio and video of rows into features: the second step to a batch.

        Args:
            rows (`list[dict]`):
                What [`~AMESSProcessor.read`] gives for each clip.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
                Where the encoders run.

        Returns:
            `list[dict]`: The rows with `audio_features` and `video_features` of shape `(frames, width)` in place of
            `audio` and `video`; a row without a modality has `None` for it.
        """
        rows = [dict(row) for row in rows]
        for modality in FEATURE_MODALITIES:
            decoded = [row.pop(modality, None) for row in rows]
            present = [index for index, value in enumerate(decoded) if value is not None]
            if present:
                features = self.load_encoder(modality, device)([decoded[index] for index in present])
                for index, feature in zip(present, features, strict=True):
                    rows[index][f"{modality}_features"] = feature
        return rows

    def collate(self, rows: list[dict[str, Any]]) -> BatchFeature:
        """Tokenize and pad rows of text and features: the last step to a batch, and all that a data set needs.

        Args:
            rows (`list[dict]`):
                Rows with `text`, `context`, `audio_features`, `video_features`, as far as they are known; other keys are
                ignored.

        Returns:
            [`~transformers.BatchFeature`]: As `__call__` gives it. Each modality is padded to the longest clip of the
            batch and cut at the model's limit. Its attribute `encodings` is that of [`encode_texts`].

        Raises:
            ValueError: Features have another width than the model takes.
        """
        texts = [row.get("text") or "" for row in rows]
        contexts = [_turns(row.get("context")) for row in rows]
        names = [str(row.get("id") or f"{number} of the batch") for number, row in enumerate(rows)]
        tokens = encode_texts(self.tokenizer, texts, contexts, self.max_text_length, self.text_prefix)
        batch = BatchFeature(dict(tokens))
        batch.encodings = tokens.encodings
        for modality in FEATURE_MODALITIES:
            width = getattr(self, f"{modality}_feature_size")
            if width is not None:
                name, limit = f"{modality}_features", getattr(self, f"max_{modality}_length")
                given = [row.get(name) for row in rows]
                self._warn_of_cuts(modality, given, limit)
                batch[name], batch[f"{modality}_attention_mask"] = pad_features(given, width, limit, name, names)
        return batch

    def _warn_of_cuts(self, modality: str, features: list[Any], limit: int) -> None:
        if any(clip is not None and len(clip) > limit for clip in features):
            rates = {encoder.frame_rate for key, encoder in self._encoders.items() if key.split()[0] == modality}
            seconds = "".join(f" ({limit / rate:.3g} s)" for rate in rates)
            logger.warning_once(
                f"`{modality}_features` of some clips are longer than the model takes: they are cut after {limit} "
                f"frames{seconds}, `max_{modality}_length`; give `start` and `end`; the pipeline reads clips whole"
            )

    def __call__(
        self,
        text: str | list[str] | None = None,
        context: str | list[str] | list[list[str]] | None = None,
        audio: Any = None,
        video: Any = None,
        clip: Any = None,
        frames: Any = None,
        audio_features: Any = None,
        video_features: Any = None,
        sampling_rate: int | None = None,
        start: float | list[float] | None = None,
        end: float | list[float] | None = None,
        device: Any = "cpu",
        return_tensors: str = "pt",
        videos: Any = None,
    ) -> BatchFeature:
        """Make one batch. Each argument is for one clip, or a list for several; in a list, `None` means absent.

        Args:
            text (`str` or `list[str]`, *optional*):
                Utterances; without them, the text is absent.
            context (`list[str]` or `list[list[str]]`, *optional*):
                Earlier turns of the dialogue for each utterance, oldest first.
            audio (*optional*):
                A path, address, bytes or file object, a `datasets.Audio` value, or an array of shape `(samples,)`.
            video (*optional*):
                A clip, the same kinds of sources, whose audio is used too unless `audio` is given; or an array of frames
                of shape `(frames, height, width, 3)` at `video_frame_rate`: integers to 255 or floating point to 1.
            clip (*optional*):
                The same as `video`, for clips of any kind.
            frames (*optional*):
                The video alone: an array of frames, or a clip whose audio is not used.
            audio_features (array or `list`, *optional*):
                Ready features of shape `(frames, width)`, instead of audio.
            video_features (array or `list`, *optional*):
                Ready features of shape `(frames, width)`, instead of frames.
            sampling_rate (`int`, *optional*):
                Samples per second of `audio` given as arrays; defaults to the encoder's.
            start (`float` or `list[float]`, *optional*):
                Second of the clips to begin at.
            end (`float` or `list[float]`, *optional*):
                Second of the clips to end at.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
                Where the encoders run.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                `"pt"`, the only kind of tensors that the model takes.
            videos (*optional*):
                The same as `video`, as other processors of transformers call it.

        Returns:
            [`~transformers.BatchFeature`]: The model's inputs: `input_ids`, `attention_mask` (and what else the
            tokenizer gives), `audio_features` of shape `(batch_size, audio_length, audio_feature_size)` with
            `audio_attention_mask`, and the same for video, as far as the model takes them.

        Raises:
            ValueError: Nothing is given, lists differ in length, features have another width, or a clip cannot be used.
        """
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` is {return_tensors!r}; the model takes PyTorch tensors, 'pt'")
        given = {"text": text, "context": context, "sampling_rate": sampling_rate, "start": start, "end": end}
        video = videos if video is None else video
        given |= {"audio": audio, "video": video, "clip": clip, "frames": frames}
        given |= {"audio_features": audio_features, "video_features": video_features}
        return self.collate(self.encode([self.read(row) for row in _rows(given)], device))


def _turns(context: Any) -> list[str]:
    """Return the earlier turns of a dialogue as a list; one string is one turn."""
    return [] if context is None else [context] if isinstance(context, str) else list(context)


def _rows(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn arguments, each a value or a list, into one dictionary per clip."""
    columns = {name: _per_clip(name, value) for name, value in given.items() if value is not None}
    shared = {"sampling_rate", "start", "end"}  # one value may stand for all clips
    if not set(columns) - shared - {"context"}:
        raise ValueError("nothing to process; give `text`, `clip`, `audio`, `video` or features")
    size = max(map(len, columns.values()))
    columns = {n: values * size if n in shared and len(values) == 1 else values for n, values in columns.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if set(lengths.values()) != {size}:
        raise ValueError(f"the lists differ in length: {lengths}; give one entry per clip, None where it is absent")
    return [{name: values[index] for name, values in columns.items()} for index in range(size)]


def _per_clip(name: str, value: Any) -> list[Any]:
    """Return an argument as a list with one entry per clip."""
    if name == "context":
        turns = _turns(value)
        return turns if turns and not isinstance(turns[0], str) else [turns]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, (list, tuple, np.ndarray)):
        return [value]
    dims = _ARRAY_DIMS.get(name, 0)
    if isinstance(value, np.ndarray):
        is_one = value.ndim <= dims or (dims == 1 and value.ndim == 2)  # audio may have channels
    else:
        first = next((item for item in value if item is not None), None)
        is_one = dims > 0 and isinstance(first, (int, float, list, tuple, np.ndarray)) and np.ndim(first) < dims
    return [value] if is_one else list(value)


def _part(part: Any, type_key: str) -> Any:
    """Make a feature extractor or image processor from its entry in `processor_config.json`."""
    if not isinstance(part, dict):
        return part
    import transformers

    name = part[type_key]
    if type_key == "image_processor_type":
        # Encoders use Pillow's backend; older transformers have one class for both and no such suffix.
        name = f"{name.removesuffix('Fast').removesuffix('Pil')}Pil"
        name = name if hasattr(transformers, name) else name.removesuffix("Pil")
    if not hasattr(transformers, name):
        raise ValueError(f"`{type_key}` is {name!r}, which this transformers does not have; install a newer one")
    return getattr(transformers, name).from_dict(part)


def _preprocessing(modality: str, name: str | None) -> Any:
    """Load a Hub encoder's own preprocessing; `None` for a front end, and (with a warning) if it cannot be loaded."""
    try:
        return None if name is None else encoder_class(modality, name).load_preprocessor(name)
    except ValueError as error:
        logger.warning(f"The preprocessing of {name} cannot be loaded, so the processor is saved without it: {error}")
        return None


def pad_features(
    features: Sequence[Any],
    feature_size: int,
    max_length: int,
    name: str = "features",
    clips: Sequence[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad frame features to the longest clip of the batch.

    Args:
        features (`list` of arrays of shape `(frames, feature_size)`, or `None`):
            One entry per clip; `None` or zero frames where the clip lacks the modality.
        feature_size (`int`):
            Width of a frame.
        max_length (`int`):
            Frames beyond this are cut off at the end.
        name (`str`, *optional*, defaults to `"features"`):
            What an error calls the features.
        clips (`list[str]`, *optional*):
            What an error calls the clips; by default their places in the batch.

    Returns:
        `tuple[torch.FloatTensor, torch.LongTensor]`: Features of shape `(batch_size, length, feature_size)` and their
        mask of shape `(batch_size, length)`; `length` is that of the longest clip, and at least 1.

    Raises:
        ValueError: The features of a clip are not two-dimensional, have another width, or are not finite.
    """
    frames = [np.asarray(() if clip is None else clip, dtype=np.float32) for clip in features]
    lengths = [min(len(clip), max_length) for clip in frames]
    batch = np.zeros((len(frames), max(1, *lengths), feature_size), dtype=np.float32)
    mask = np.zeros(batch.shape[:2], dtype=np.int64)
    for row, (clip, length) in enumerate(zip(frames, lengths, strict=True)):
        if length == 0:
            continue
        wrong = None
        if clip.shape[1:] != (feature_size,):
            wrong = f"has shape {clip.shape}; it must be (frames, {feature_size})"
        elif not np.isfinite(clip[:length]).all():
            wrong = "holds NaN or infinite values; make the features of this clip again"
        if wrong:
            clip_name = clips[row] if clips else f"{row} of the batch"
            raise ValueError(f"`{name}` of clip {clip_name} {wrong}")
        batch[row, :length] = clip[:length]
        mask[row, :length] = 1
    return torch.from_numpy(batch), torch.from_numpy(mask)


def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: Sequence[str] = (),
    max_length: int | None = None,
    prefix: str | None = None,
    **kwargs: Any,
) -> BatchEncoding:
    """Tokenize one utterance, preceded by as many of the latest whole turns as fit.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder.
        text (`str`):
            The utterance.
        context (`list[str]`, *optional*):
            Earlier turns, oldest first. They are joined by the tokenizer's separator, or by new lines if it has none, and
            are the first text of a pair.
        max_length (`int`, *optional*):
            Maximum number of tokens. The oldest turns are left out first, whole; only an utterance that is too long by
            itself is cut, at its end.
        prefix (`str`, *optional*):
            Text in front of all this; it does not count towards `max_length`.
        kwargs:
            For the tokenizer.

    Returns:
        [`~transformers.BatchEncoding`]: The tokens, not padded. The utterance is the last sequence.
    """
    prefix = prefix or ""
    # Without its own separator, the last turn would run into the utterance.
    separator, end = (f" {tokenizer.sep_token} ", "") if tokenizer.sep_token else ("\n", "\n")
    with _TOKENIZING:
        if prefix and max_length is not None:
            max_length += len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
        for first in range(len(context)):
            row = tokenizer(prefix + separator.join(context[first:]) + end, text, verbose=False, **kwargs)
            if max_length is None or len(row["input_ids"]) <= max_length:
                return row
        limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
        return tokenizer(prefix + text, **limit, **kwargs)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    contexts: Sequence[Sequence[str]] | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
) -> BatchEncoding:
    """Tokenize utterances, each with the turns before it, and pad them to the longest of the batch.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the text encoder. One without a padding token gets one of its existing tokens.
        texts (`list[str]`):
            Utterances; the mask of an empty one is all zeros.
        contexts (`list[list[str]]`, *optional*):
            Earlier turns of each utterance; see [`encode_text`].
        max_length (`int`, *optional*):
            Maximum number of tokens of each.
        prefix (`str`, *optional*):
            Text in front of each; see [`encode_text`].

    Returns:
        [`~transformers.BatchEncoding`]: `input_ids`, `attention_mask` (and `token_type_ids` if the tokenizer makes
        them), each a `torch.LongTensor` of shape `(batch_size, text_length)`; where a clip has earlier turns or a prefix,
        also `utterance_mask` of that shape, 1 for the tokens of the utterance itself. Its `encodings` say which
        characters a token stands for (`None` unless the tokenizer is a fast one).
    """
    if tokenizer.pad_token_id is None:  # which one does not matter, since masks hide it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    rows, encodings, context_lengths = [], [], []
    for text, context in zip(texts, contexts if contexts is not None else [()] * len(texts), strict=True):
        row = encode_text(tokenizer, text, context, max_length, prefix)
        encodings += row.encodings or []
        # The utterance is last, and the separator before it takes the place of a start token.
        alone = encode_text(tokenizer, text, max_length=max_length) if len(context) or prefix else row
        context_lengths.append(len(row["input_ids"]) - len(alone["input_ids"]))
        if not text.strip():
            # Some tokenizers produce no token for it, but a row has at least one.
            row = {name: list(values) or [0] for name, values in row.items()}
            row["attention_mask"] = [0] * len(row["input_ids"])
        rows.append(row)
    if not any(row["input_ids"] for row in rows):  # a tokenizer without special tokens gives none for no text
        rows[0] = BatchEncoding({name: [tokenizer.pad_token_id * (name == "input_ids")] for name in rows[0]})
    # On the right, whichever side the tokenizer pads on: positions then do not depend on the batch.
    batch = pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt", padding_side="right")
    if any(context_lengths):
        mask = batch["attention_mask"]
        batch["utterance_mask"] = mask * (mask.cumsum(1) > torch.tensor(context_lengths)[:, None])
    return BatchEncoding(batch.data, encoding=encodings or None)


def give_usual_mode(path: str | os.PathLike) -> None:
    """Give a file the mode that the umask asks for; safetensors writes files that their owner alone can read."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path in the folder of `path`; what is written there becomes `path` when the block ends.

    An error inside the block removes the temporary file and leaves what `path` held before.

    Args:
        path: The file to write.

    Yields:
        The path to write to.
    """
    folder, name = os.path.split(os.fspath(path))
    partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        give_usual_mode(partial)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def plain_cell(value: Any) -> Any:
    """Return what a spreadsheet shows as text: a string that it would take for a formula gets an apostrophe before it."""
    is_formula = isinstance(value, str) and re.match(r"\s*([=+@]|-(?!\s|[\d.]+$))", value)
    return f"'{value}" if is_formula else value


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to the file `path` as UTF-8, through a temporary file."""
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> None:
    """Write `content` as indented JSON to the file `path`, through a temporary file; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **{"indent": 2, "ensure_ascii": False, **options}) + "\n")


# A saved processor includes this file and names it for `AutoProcessor`, for use without the package installed.
AMESSProcessor.register_for_auto_class()
