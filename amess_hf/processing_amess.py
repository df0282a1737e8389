"""AMESSProcessor: words, clips, arrays or ready features in, one batch with masks out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.utils import logging

from .clips_amess import clip_name, is_clip_source, resample
from .constants_amess import FEATURE_MODALITIES
from .encoders_amess import (
    FRAME_DIFFERENCE,
    LOG_MEL,
    AudioEncoder,
    FrameDifferenceEncoder,
    LogMelEncoder,
    VideoEncoder,
    VideoModelEncoder,
    frames_for,
    load_audio_encoder,
    load_video_encoder,
    sound_for,
)
from .padding_amess import encode_texts, pad_features


logger = logging.get_logger(__name__)

# What processor and model have to agree on: otherwise the model would be given features that it has never seen.
SHARED_WITH_CONFIG = (
    "audio_encoder",
    "video_encoder",
    "audio_feature_size",
    "video_feature_size",
    "max_text_length",
    "max_audio_length",
    "max_video_length",
)


class AMESSProcessor(ProcessorMixin):
    r"""
    Joins a tokenizer with the encoders of sound and picture that a model was trained with.

    It is saved and loaded beside the model (`AutoProcessor.from_pretrained`) and remembers the encoders' names, rates and
    widths and the model's limits; [`~AMESSProcessor.check_model`] refuses a model that was trained otherwise. The
    encoders themselves are loaded when the first clip comes.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model's text encoder.
        feature_extractor (`FeatureExtractionMixin` or its `dict`, *optional*):
            Preprocessing of `audio_encoder` where that is a Hub model.
        image_processor (`ImageProcessingMixin` or its `dict`, *optional*):
            Preprocessing of `video_encoder` where that is a Hub model.
        audio_encoder, video_encoder (`str`, *optional*):
            As in [`AMESSConfig`]: a Hub model, `"log-mel"`, `"frame-difference"`, or `None` where only ready features
            can be given.
        audio_feature_size, video_feature_size (`int`, *optional*):
            Widths of the features, `None` for a modality that the model does not take.
        audio_sampling_rate (`int`, *optional*):
            Samples a second that `audio_encoder` takes.
        video_frame_rate (`float`, *optional*):
            Frames a second that `video_encoder` is given, by default the encoder's own.
        max_text_length, max_audio_length, max_video_length (`int`, *optional*):
            As in [`AMESSConfig`]; what is longer is cut.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained("org/amess-mintrec2")
    >>> batch = processor(text="oh great, you again", clip="clip.mp4")
    >>> logits = model(**batch).logits
    ```
    """

    def __init__(
        self,
        tokenizer,
        feature_extractor=None,
        image_processor=None,
        audio_encoder=None,
        video_encoder=None,
        audio_feature_size=None,
        video_feature_size=None,
        audio_sampling_rate=None,
        video_frame_rate=None,
        max_text_length=30,
        max_audio_length=480,
        max_video_length=230,
    ):
        super().__init__(tokenizer)
        self.feature_extractor = _part(feature_extractor, "feature_extractor_type")
        self.image_processor = _part(image_processor, "image_processor_type")
        self.audio_encoder = audio_encoder
        self.video_encoder = video_encoder
        self.audio_feature_size = audio_feature_size
        self.video_feature_size = video_feature_size
        self.audio_sampling_rate = audio_sampling_rate
        self.video_frame_rate = video_frame_rate
        self.max_text_length = max_text_length
        self.max_audio_length = max_audio_length
        self.max_video_length = max_video_length
        self._encoders: dict[str, Any] = {}

    @classmethod
    def get_attributes(cls):
        # The tokenizer alone is a part in the mixin's sense, which demands every part it knows of. The other two are
        # optional and travel inside `processor_config.json`.
        return ["tokenizer"]

    @classmethod
    def for_model(cls, config, tokenizer, video_frame_rate: float | None = None) -> "AMESSProcessor":
        """
        The processor that belongs to a model.

        Args:
            config ([`AMESSConfig`]): The model's configuration; its encoders, widths and limits are taken over.
            tokenizer: Tokenizer of its text encoder.
            video_frame_rate (`float`, *optional*): Frames a second that the video features were made from.
        """
        fields = {name: getattr(config, name) for name in SHARED_WITH_CONFIG}
        audio, video = fields["audio_encoder"], fields["video_encoder"]
        feature_extractor = _preprocessing(audio, LOG_MEL, AutoFeatureExtractor)
        if video is not None and video_frame_rate is None:
            default = FrameDifferenceEncoder if video == FRAME_DIFFERENCE else VideoModelEncoder
            video_frame_rate = default.default_frame_rate
        return cls(
            tokenizer,
            feature_extractor=feature_extractor,
            image_processor=_preprocessing(video, FRAME_DIFFERENCE, AutoImageProcessor, backend="pil"),
            audio_sampling_rate=(
                LogMelEncoder.sampling_rate if audio == LOG_MEL else getattr(feature_extractor, "sampling_rate", None)
            ),
            video_frame_rate=video_frame_rate,
            **fields,
        )

    def check_model(self, config) -> None:
        """
        Checks that a model was trained with what this processor does.

        Raises:
            ValueError: Naming the field and both values.
        """
        for name in SHARED_WITH_CONFIG:
            mine, models = getattr(self, name), getattr(config, name)
            if mine != models:
                raise ValueError(
                    f"`{name}` is {mine!r} in the processor and {models!r} in the model. Load both from the same place, "
                    "or make the processor with `AMESSProcessor.for_model(model.config, tokenizer)`."
                )

    def to_dict(self) -> dict[str, Any]:
        # Loaded encoders are models: not to be copied, and not to be written.
        encoders, self._encoders = self._encoders, {}
        try:
            return super().to_dict()
        finally:
            self._encoders = encoders

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, "utterance_mask"]
        for modality in FEATURE_MODALITIES:
            if getattr(self, f"{modality}_feature_size") is not None:
                names += [f"{modality}_features", f"{modality}_attention_mask"]
        return names

    def load_audio_encoder(self, device: Any = "cpu") -> AudioEncoder | None:
        """The sound encoder, loaded at the first call; `None` where the model takes no sound or no clip."""
        if self.audio_encoder is None or self.audio_feature_size is None:
            return None
        return self._encoder(
            "audio", device, lambda: load_audio_encoder(self.audio_encoder, device, None, self.feature_extractor)
        )

    def load_video_encoder(self, device: Any = "cpu") -> VideoEncoder | None:
        """The picture encoder, loaded at the first call; `None` where the model takes no picture or no clip."""
        if self.video_encoder is None or self.video_feature_size is None:
            return None
        return self._encoder(
            "video",
            device,
            lambda: load_video_encoder(self.video_encoder, self.video_frame_rate, device, None, self.image_processor),
        )

    def _encoder(self, modality: str, device: Any, load: Any) -> Any:
        key = f"{modality} {device}"
        if key not in self._encoders:
            encoder = load()
            width = getattr(self, f"{modality}_feature_size")
            if encoder.feature_size != width:
                raise ValueError(
                    f"`{modality}_encoder` {encoder.name!r} gives features {encoder.feature_size} wide, but "
                    f"`{modality}_feature_size` is {width}. Give the encoder that the model was trained with."
                )
            if modality == "audio" and self.audio_sampling_rate not in (None, encoder.sampling_rate):
                raise ValueError(
                    f"`audio_encoder` {encoder.name!r} takes {encoder.sampling_rate} samples a second, but "
                    f"`audio_sampling_rate` is {self.audio_sampling_rate}. Give the encoder of the training."
                )
            self._encoders[key] = encoder
        return self._encoders[key]

    def read_clip(
        self, clip: Any, start: float | None = None, end: float | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """
        Decodes what the encoders need of a clip, and no more of it than the model's limits let through.

        Returns:
            Sound `(samples,)` and frames `(frames, height, width[, 3])`; `None` for a modality that is not encoded.

        Raises:
            ClipError: The clip cannot be used.
            ValueError: This processor knows no encoder.
        """
        return self.read_sound(clip, start=start, end=end), self.read_frames(clip, start=start, end=end)

    def read_sound(
        self, audio: Any, sampling_rate: int | None = None, start: float | None = None, end: float | None = None
    ) -> np.ndarray | None:
        """The sound of a clip, or of an array, as the encoder takes it; `None` where no sound is encoded."""
        encoder = self.load_audio_encoder()
        if audio is None or encoder is None:
            return None if audio is None else self._no_encoder(audio, "audio")
        if is_clip_source(audio):
            return sound_for(audio, encoder, self.max_audio_length, start, end)
        if isinstance(audio, dict):
            audio, sampling_rate = audio["array"], audio["sampling_rate"]
        sound = resample(np.asarray(audio), sampling_rate or encoder.sampling_rate, encoder.sampling_rate)
        return sound[: round(encoder.seconds_needed(self.max_audio_length) * encoder.sampling_rate)]

    def read_frames(self, video: Any, start: float | None = None, end: float | None = None) -> np.ndarray | None:
        """The frames of a clip, or an array of frames, as the encoder takes them; `None` where none are encoded."""
        encoder = self.load_video_encoder()
        if video is None or encoder is None:
            return None if video is None else self._no_encoder(video, "video")
        if is_clip_source(video):
            frames = list(frames_for(video, encoder, self.max_video_length, start, end))
            return np.stack(frames) if frames else np.zeros((0, 1, 1, 3), dtype=np.uint8)
        frames = np.asarray(video)
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"`video` has shape {frames.shape}. Give (frames, height, width, 3) or a path.")
        if np.issubdtype(frames.dtype, np.floating):
            frames = np.clip(np.rint(frames * 255), 0, 255).astype(np.uint8)
        return frames[: encoder.frames_needed(self.max_video_length)]

    def _no_encoder(self, source: Any, modality: str) -> None:
        """A modality that the model does not take is left out; one without a known encoder cannot be guessed."""
        if getattr(self, f"{modality}_feature_size") is not None:
            name = clip_name(source) if is_clip_source(source) else f"`{modality}`"
            raise ValueError(
                f"{name} cannot be used: the model was trained with ready {modality} features, and what made them is not "
                f"known. Give `{modality}_features`, or set `{modality}_encoder` if you know it."
            )

    def encode(
        self, sounds: Sequence[np.ndarray | None], clips: Sequence[Iterable[np.ndarray] | None], device: Any = "cpu"
    ) -> tuple[list[np.ndarray] | None, list[np.ndarray] | None]:
        """
        Features of sounds and frames as `read_sound` and `read_frames` give them, `None` where a clip has none.

        Returns:
            Audio features and video features, for each clip `(frames, width)`; `None` for a modality not encoded.
        """
        audio = video = None
        if any(sound is not None for sound in sounds):
            empty = np.zeros(0, dtype=np.float32)
            audio = self.load_audio_encoder(device)([empty if sound is None else sound for sound in sounds])
        if any(frames is not None for frames in clips):
            video = self.load_video_encoder(device)([() if frames is None else frames for frames in clips])
        return audio, video

    def __call__(
        self,
        text: str | list[str] | None = None,
        context: list[str] | list[list[str]] | None = None,
        audio: Any = None,
        video: Any = None,
        clip: Any = None,
        audio_features: Any = None,
        video_features: Any = None,
        sampling_rate: int | None = None,
        start: float | list[float] | None = None,
        end: float | list[float] | None = None,
        device: Any = "cpu",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Makes one batch. Each argument is for one clip, or a list for several; in a list, `None` means absent.

        Args:
            text: Utterances; without, the words are absent.
            context: Earlier turns of the dialogue for each utterance, oldest first.
            audio: Sound: a path, address, bytes or file object, a `datasets.Audio` value, or an array `(samples,)`.
            video: Picture: the same kinds of sources, or an array `(frames, height, width, 3)` at `video_frame_rate`.
            clip: Sound and picture from one source.
            audio_features, video_features: Ready features `(frames, width)`, instead.
            sampling_rate (`int`, *optional*): Of `audio` given as arrays, by default the encoder's.
            start, end: Span of the clips in seconds.
            device: Where the encoders run.
            return_tensors (`str`): `"pt"`.

        Returns:
            `BatchFeature` with the model's inputs: `input_ids`, `attention_mask` (and what else the tokenizer gives),
            `audio_features` `(batch_size, audio_length, audio_feature_size)` with `audio_attention_mask`, and the same
            for video, as far as the model takes them.

        Raises:
            ValueError: Nothing is given, lists differ in length, features have another width, or a clip cannot be used.
        """
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` is {return_tensors!r}; the model takes PyTorch tensors, 'pt'.")
        given = {
            "text": _as_list(text, str),
            "context": [context] if context and isinstance(context[0], str) else context,
            "audio": _as_list(audio, dims=1),
            "video": _as_list(video, dims=4),
            "clip": _as_list(clip),
            "audio_features": _as_list(audio_features, dims=2),
            "video_features": _as_list(video_features, dims=2),
            "start": _as_list(start),
            "end": _as_list(end),
        }
        return self.collate(_rows(given), sampling_rate=sampling_rate, device=device)

    def collate(
        self, rows: list[dict[str, Any]], sampling_rate: int | None = None, device: Any = "cpu"
    ) -> BatchFeature:
        """The batch of rows whose keys are the arguments of `__call__`."""
        sounds, clips = [], []
        for row in rows:
            span = {"start": row.get("start"), "end": row.get("end")}
            audio, video = row.get("audio"), row.get("video")
            if row.get("audio_features") is None:
                sounds.append(self.read_sound(row.get("clip") if audio is None else audio, sampling_rate, **span))
            else:
                sounds.append(None)
            ready = row.get("video_features") is not None
            clips.append(None if ready else self.read_frames(row.get("clip") if video is None else video, **span))
        encoded_audio, encoded_video = self.encode(sounds, clips, device)
        return self.pad(
            [row.get("text") for row in rows],
            [row.get("context") for row in rows],
            _merge([row.get("audio_features") for row in rows], encoded_audio),
            _merge([row.get("video_features") for row in rows], encoded_video),
        )

    def pad(
        self,
        texts: list[str | None],
        contexts: list[list[str] | None],
        audio_features: list[np.ndarray | None],
        video_features: list[np.ndarray | None],
    ) -> BatchFeature:
        """The batch of words and features, one entry per clip; the last step of `__call__`."""
        turns = [context or [] for context in contexts] if any(contexts) else None
        batch = dict(encode_texts(self.tokenizer, [text or "" for text in texts], turns, self.max_text_length))
        for modality, features in (("audio", audio_features), ("video", video_features)):
            width = getattr(self, f"{modality}_feature_size")
            if width is None:
                continue
            names = f"{modality}_features", f"{modality}_attention_mask"
            limit = getattr(self, f"max_{modality}_length")
            batch |= dict(zip(names, pad_features(features, width, limit, names[0]), strict=True))
        return BatchFeature(batch)


def _part(part: Any, type_key: str) -> Any:
    """A feature extractor or image processor from what `processor_config.json` holds of it."""
    if not isinstance(part, dict):
        return part
    import transformers

    name = part[type_key]
    if type_key == "image_processor_type":
        # Encoders use Pillow's backend; older transformers have one class for both and no such suffix.
        name = f"{name.removesuffix('Fast').removesuffix('Pil')}Pil"
        name = name if hasattr(transformers, name) else name.removesuffix("Pil")
    part_class = getattr(transformers, name, None)
    if part_class is None:
        raise ValueError(f"`{type_key}` is {part[type_key]!r}, which this version of transformers does not have.")
    return part_class.from_dict(part)


def _preprocessing(name: str | None, front_end: str, auto_class: Any, **kwargs) -> Any:
    """A Hub encoder's own preprocessing, `None` for a front end, and with a warning where it cannot be loaded."""
    if name is None or name == front_end:
        return None
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(f"The preprocessing of {name} is not saved with the processor, it cannot be loaded ({reason}).")
        return None


def _as_list(value: Any, single: Any = (), dims: int = 0) -> list[Any] | None:
    """A list with one entry per clip; `dims` is the number of dimensions of one clip's array."""
    if value is None:
        return None
    if isinstance(value, single) or not isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
        return [value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    first = next((item for item in value if item is not None), None)
    if isinstance(value, np.ndarray):
        is_one = value.ndim <= dims or (dims == 1 and value.ndim == 2)  # sound may have channels
    else:
        is_one = dims > 0 and isinstance(first, (int, float, list, tuple, np.ndarray)) and np.ndim(first) < dims
    return [value] if is_one else list(value)


def _rows(given: dict[str, list[Any] | None]) -> list[dict[str, Any]]:
    """From lists by argument to one dictionary per clip."""
    given = {name: values for name, values in given.items() if values is not None}
    if not any(name not in ("context", "start", "end") for name in given):
        raise ValueError("Nothing to process. Give `text`, `clip`, `audio`, `video` or features.")
    lengths = {name: len(values) for name, values in given.items()}
    size = max(lengths.values())
    for name in ("start", "end"):  # one span may stand for all clips
        if lengths.get(name) == 1:
            given[name], lengths[name] = given[name] * size, size
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The lists differ in length: {lengths}. Give one entry per clip, None where it is absent.")
    return [{name: values[index] for name, values in given.items()} for index in range(size)]


def _merge(ready: list[Any], encoded: list[np.ndarray] | None) -> list[Any]:
    """Ready features where there are some, encoded ones elsewhere."""
    if encoded is None:
        return ready
    return [mine if mine is not None else other for mine, other in zip(ready, encoded, strict=True)]


# A saved processor carries this file along, and says so to `AutoProcessor` where the package is not installed.
AMESSProcessor.register_for_auto_class()
