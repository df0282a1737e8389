"""Frozen encoders: from the audio or the frames of a clip to one feature vector per time step.

Front ends (log-mel filterbanks, histograms of oriented gradients) need no download; any other name is a model on the Hub.
The features of a clip depend neither on the clips that are encoded with it nor on what follows after the current window:
training on whole clips and inference on the first seconds agree.

To add an encoder, derive a class from [`AudioEncoder`] or [`VideoEncoder`] and list it in `ENCODERS`. The class states its
`name` (a front end) or which models it `reads` (Hub models), the width and rate of its features, and in `config_fields`
the fields of [`AMESSFeatureConfig`] that suit them; loading, the processor, extraction and `from_text_pretrained` follow.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from .clips_amess import Clip


# Audio is encoded in windows of this many features (20 s at 50 a second): the memory of attention grows with the square.
WINDOW_FEATURES = 1000
# Frames, and seconds of audio, that go through a Hub model at once.
FRAMES_PER_BATCH = 32
SECONDS_PER_BATCH = 80.0


class _Encoder:
    """What both kinds of encoders state.

    Attributes:
        modality (`str`): `"audio"` or `"video"`.
        name (`str`): As in the config; `None` in the class of Hub models.
        feature_size (`int`): Width of a feature.
        config_fields (`dict`): Fields of [`AMESSFeatureConfig`] that suit the features.
        reads (`Callable`): Tells from the config of a Hub model whether the class runs it.
        preprocessor_class, preprocessor_options: Auto class of a Hub model's own preprocessing, and how to load it.
    """

    modality: str
    name: str | None = None
    feature_size: int
    config_fields: dict[str, Any] = {}
    reads: Callable[[Any], bool] = staticmethod(lambda config: False)
    preprocessor_class: Any = None
    preprocessor_options: dict[str, Any] = {}

    @classmethod
    def load_preprocessor(cls, name: str) -> Any:
        """Load the feature extractor or image processor of a Hub model; `None` for a front end."""
        return cls.preprocessor_class and _load(cls.modality, name, cls.preprocessor_class, **cls.preprocessor_options)


class AudioEncoder(_Encoder):
    """Base class of the audio encoders.

    Attributes:
        sampling_rate (`int`): Samples per second that the encoder takes.
        hop_length (`int`): Samples from the beginning of one feature to that of the next.
        receptive_length (`int`): Samples that a feature is made of; shorter audio is padded with silence.
    """

    modality = "audio"
    # Their states, averaged over time, tell a tone of voice.
    config_fields = {"pooling": "statistics"}
    sampling_rate: int | None = None
    hop_length: int
    receptive_length: int

    @property
    def frame_rate(self) -> float:
        """Features per second."""
        return self.sampling_rate / self.hop_length

    @property
    def _overlap(self) -> int:
        """Samples that a window reads beyond its last hop, so that windows join without a gap."""
        return max(self.receptive_length - self.hop_length, 0)

    def seconds_needed(self, length: int) -> float:
        """Return the seconds of audio that the first `length` features depend on: whole windows."""
        windows = math.ceil(length / WINDOW_FEATURES)
        return (windows * WINDOW_FEATURES * self.hop_length + self._overlap) / self.sampling_rate

    def read(self, clip: Clip, max_length: int | None = None) -> np.ndarray | None:
        """Decode the audio of a clip, no more than the first `max_length` features need."""
        return clip.read_audio(self.sampling_rate, None if max_length is None else self.seconds_needed(max_length))

    def __call__(self, sounds: list[np.ndarray]) -> list[np.ndarray]:
        """Encode the audio of several clips.

        Args:
            sounds (`list[np.ndarray]`): Mono samples of each clip, shape `(samples,)`; none where a clip has no audio.

        Returns:
            `list[np.ndarray]`: For each clip `float32` of shape `(frames, feature_size)`; no frames without audio.
        """
        windows = [(clip, window) for clip, sound in enumerate(sounds) for window in self._windows(sound)]
        features = self._encode([window for _, window in windows])
        pieces = [[np.zeros((0, self.feature_size), dtype=np.float32)] for _ in sounds]
        for (clip, _), piece in zip(windows, features, strict=True):
            pieces[clip].append(piece)
        return [np.concatenate(piece) for piece in pieces]

    def _windows(self, sound: np.ndarray) -> Iterator[np.ndarray]:
        sound = np.asarray(sound, dtype=np.float32)
        if 0 < len(sound) < self.receptive_length:
            sound = np.pad(sound, (0, self.receptive_length - len(sound)))
        stride = WINDOW_FEATURES * self.hop_length
        for begin in range(0, len(sound), stride):
            window = sound[begin : begin + stride + self._overlap]
            if len(window) >= self.receptive_length:
                yield window

    def _encode(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        """Encode each window."""
        raise NotImplementedError


class LogMelEncoder(AudioEncoder):
    """Log-mel filterbanks: 80 bands, 25 ms windows, 50 a second, as `transformers.audio_utils` computes them.

    The logarithms (base 10, of power; digital silence is -10) are shifted and scaled by constants to about [-1.5, 1.5].
    """

    name = "log-mel"
    # A filterbank keeps how loud a frame is, which says much about a tone of voice, and has no local pattern before a
    # convolution reads it.
    config_fields = {"norm": "clip", "max_shift": 3, "num_conv_layers": 2, "pooling": "statistics"}
    sampling_rate = 16000
    feature_size = 80
    hop_length = 320
    receptive_length = 400

    def __init__(self):
        self.window = window_function(self.receptive_length, "hann")
        self.mel_filters = mel_filter_bank(257, self.feature_size, 0.0, self.sampling_rate / 2, self.sampling_rate)

    def _encode(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        return [self._log_mel(window) for window in windows]

    def _log_mel(self, window: np.ndarray) -> np.ndarray:
        bands = spectrogram(
            window,
            self.window,
            frame_length=self.receptive_length,
            hop_length=self.hop_length,
            fft_length=512,
            power=2.0,
            center=False,
            mel_filters=self.mel_filters,
            log_mel="log10",
        )
        return np.ascontiguousarray((bands.T + 4) / 4, dtype=np.float32)


class _AudioModelEncoder(AudioEncoder):
    """Hidden states of a speech model from the Hub that reads raw samples (WavLM, wav2vec 2.0, HuBERT, ...).

    Args:
        name (`str`): Hub id or folder.
        device (`str` or `torch.device`): Where to run.
        preprocessor ([`~transformers.FeatureExtractionMixin`], *optional*): By default the one of `name`.
        layer (`int`, *optional*): Take the states after this layer, 1 for the first, in place of the model's output. The
            lower and middle layers tell best how something is said.

    Raises:
        ValueError: The model cannot be loaded, or has no such layer.
    """

    reads = staticmethod(lambda config: hasattr(config, "conv_stride"))
    preprocessor_class = AutoFeatureExtractor

    def __init__(self, name: str, device: Any = "cpu", preprocessor: Any = None, layer: int | None = None):
        self.name, self.layer = name, layer
        self.feature_extractor = preprocessor or self.load_preprocessor(name)
        self.model = self._prepared(_frozen("audio", name, device))
        self.sampling_rate = self.feature_extractor.sampling_rate

    def _prepared(self, model: Any) -> Any:
        """Note the model's sizes, and leave out the layers after the chosen one."""
        config = model.config
        self.feature_size = config.hidden_size
        self.hop_length = math.prod(config.conv_stride)
        self.receptive_length = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.receptive_length = (self.receptive_length - 1) * stride + kernel
        # Models with group normalization over time were trained without a mask, and padding would change their output.
        self.takes_padding = config.feat_extract_norm == "layer"
        if self.layer is not None:
            self._check_layer(len(model.encoder.layers))
            # One layer more: what goes into it is the state after the chosen one, without a final normalization.
            model.encoder.layers = model.encoder.layers[: self.layer + 1]
        return model

    def _check_layer(self, layers: int) -> None:
        if not 1 <= self.layer <= layers:
            raise ValueError(
                f"`audio_encoder_layer` is {self.layer}, but {self.name} has {layers} layers; give 1 to {layers}"
            )

    @torch.no_grad()
    def _encode(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        features: list[Any] = [None] * len(windows)
        for batch in self._batches(windows):
            hidden = self._states([windows[index] for index in batch]).float().cpu().numpy()
            for row, index in zip(hidden, batch, strict=True):
                length = (len(windows[index]) - self.receptive_length) // self.hop_length + 1
                features[index] = row[:length]
        return features

    def _batches(self, windows: list[np.ndarray]) -> Iterator[list[int]]:
        """Group the windows that go through the model together: of similar length, or equal where padding would count."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]))
        limit = SECONDS_PER_BATCH * self.sampling_rate
        batch: list[int] = []
        for index in order:
            full = len(windows[index]) * (len(batch) + 1) > limit
            if batch and (full or (not self.takes_padding and len(windows[index]) != len(windows[batch[0]]))):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _states(self, windows: list[np.ndarray]) -> torch.Tensor:
        """Return the states of windows that go through the model together, `(windows, features, feature_size)`."""
        inputs = self.feature_extractor(
            windows,
            sampling_rate=self.sampling_rate,
            padding=True,
            return_attention_mask=self.takes_padding,
            return_tensors="pt",
        ).to(self.model.device)
        inputs["input_values"] = inputs["input_values"].to(self.model.dtype)
        outputs = self.model(**inputs, output_hidden_states=self.layer is not None)
        return outputs.last_hidden_state if self.layer is None else outputs.hidden_states[self.layer]


class WhisperEncoder(_AudioModelEncoder):
    """Hidden states of Whisper's encoder, which gets a clip at its own length, not padded to 30 seconds.

    Positions are those of the clip's beginning. The arguments and errors are those of [`_AudioModelEncoder`].
    """

    reads = staticmethod(lambda config: config.model_type == "whisper")
    takes_padding = False

    def _prepared(self, model: Any) -> Any:
        encoder = model.get_encoder()
        self.feature_size = encoder.config.d_model
        # Two mel frames make a feature; both convolutions and the spectrogram are padded at the ends.
        self.hop_length = self.receptive_length = 2 * self.feature_extractor.hop_length
        if self.layer is not None:
            self._check_layer(len(encoder.layers))
            encoder.layers, encoder.layer_norm = encoder.layers[: self.layer], torch.nn.Identity()
        return encoder

    def _states(self, windows: list[np.ndarray]) -> torch.Tensor:
        mel = self.feature_extractor(
            windows, sampling_rate=self.sampling_rate, padding="longest", truncation=False, return_tensors="pt"
        )["input_features"]
        encoder = self.model
        # As in transformers' `WhisperEncoder.forward`, which only takes 30 seconds.
        states = torch.nn.functional.gelu(encoder.conv1(mel.to(encoder.device, encoder.dtype)))
        states = torch.nn.functional.gelu(encoder.conv2(states)).transpose(1, 2)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        for layer in encoder.layers:
            states = layer(states, None)
        return encoder.layer_norm(states)


class VideoEncoder(_Encoder):
    """Base class of the video encoders.

    Attributes:
        default_frame_rate (`float`): Frames per second if not chosen.
        clip_frame_rate (`float`): Frames per second that the encoder takes.
        frames_per_feature (`int`): Frames that make one feature.
        frame_size (`int` or `(height, width)`): Size to which frames are shrunk while they are decoded.
        gray (`bool`): Whether frames have one channel.
    """

    modality = "video"
    default_frame_rate: float
    clip_frame_rate: float
    frames_per_feature: int = 1
    frame_size: int | tuple[int, int]
    gray: bool = False

    @property
    def frame_rate(self) -> float:
        """Features per second."""
        return self.clip_frame_rate / self.frames_per_feature

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments with which `iter_frames` gives this encoder's frames."""
        return {"frame_rate": self.clip_frame_rate, "size": self.frame_size, "gray": self.gray}

    def frames_needed(self, length: int) -> int:
        """Return the number of frames that the first `length` features depend on."""
        return length * self.frames_per_feature

    def read(self, clip: Clip, max_length: int | None = None) -> Iterator[np.ndarray]:
        """Decode the frames of a clip, no more than the first `max_length` features need."""
        limit = None if max_length is None else self.frames_needed(max_length)
        return clip.iter_frames(max_frames=limit, **self.reading)

    def __call__(self, clips: list[Iterable[np.ndarray]]) -> list[np.ndarray]:
        """Encode the frames of several clips.

        Args:
            clips (`list[Iterable[np.ndarray]]`): Frames of each clip, `uint8` of shape `(height, width, 3)` (or `(height,
                width)` with `gray`), at `clip_frame_rate`. An iterator is consumed a batch at a time.

        Returns:
            `list[np.ndarray]`: For each clip `float32` of shape `(features, feature_size)`; none without frames.
        """
        raise NotImplementedError


class HOGEncoder(VideoEncoder):
    """Shape and motion of each frame: 580 numbers, 10 times a second.

    The shape is histograms of oriented gradients (Dalal and Triggs, 2005) of the gray frame at 64 x 64 pixels, by
    scikit-image: nine directions in cells of 16 x 16, normalized in blocks of 2 x 2 cells. The motion is the change of the
    gray frame at 16 x 16 pixels since the previous one.

    Args:
        frame_rate (`float`, *optional*): Frames per second, defaults to 10.

    Raises:
        ImportError: scikit-image is not installed.
    """

    name = "hog"
    default_frame_rate = 10.0
    side = 64
    motion_side = 16
    cell_side = 16
    feature_size = 3 * 3 * 2 * 2 * 9 + motion_side**2
    frame_size = (side, side)
    gray = True

    def __init__(self, frame_rate: float | None = None):
        self.clip_frame_rate = frame_rate or self.default_frame_rate
        try:
            from skimage.feature import hog
        except ImportError as error:
            raise ImportError(
                f'`video_encoder` {self.name!r} needs scikit-image; pip install "amess_hf[video]" (or pip install scikit-image)'
            ) from error
        cell = (self.cell_side, self.cell_side)
        self.hog = functools.partial(
            hog, orientations=9, pixels_per_cell=cell, cells_per_block=(2, 2), feature_vector=False
        )

    def __call__(self, clips: list[Iterable[np.ndarray]]) -> list[np.ndarray]:
        """Encode the frames of several clips; see [`VideoEncoder`]."""
        return [self._encode(frames) for frames in clips]

    def _encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        shapes, small, last = [], [], None
        for frame in frames:
            if frame is not last:  # a slow clip shows one picture several times
                last, gray = frame, _gray(frame, self.frame_size)
                shape, tiny = self.hog(gray), _shrink(gray, (self.motion_side, self.motion_side))
            shapes.append(shape)
            small.append(tiny)
        if not shapes:
            return np.zeros((0, self.feature_size), dtype=np.float32)
        motion = np.diff(np.stack(small), axis=0, prepend=small[0][None])
        joined = self._join(np.stack(shapes).astype(np.float32), motion)
        return joined.reshape(len(joined), self.feature_size)

    def _join(self, shapes: np.ndarray, motion: np.ndarray) -> np.ndarray:
        return np.concatenate([shapes.reshape(len(shapes), -1), motion.reshape(len(motion), -1)], axis=1)


class HOGGridEncoder(HOGEncoder):
    """The same as a grid of 15 x 15 places with 10 numbers each, in which a shape is found wherever it is.

    Nine directions in cells of 4 x 4 pixels, each normalized with its three neighbors to the right and below, and the
    change of the gray frame at 15 x 15 pixels. The numbers of a place lie next to each other, and the model reads the
    grid by a convolution. Arguments and errors are those of [`HOGEncoder`].
    """

    name = "hog-grid"
    cell_side = 4
    motion_side = grid_side = 15
    feature_size = grid_side**2 * (9 + 1)
    config_fields = {"grid_side": grid_side, "max_shift": 1}

    def _join(self, shapes: np.ndarray, motion: np.ndarray) -> np.ndarray:
        return np.concatenate([shapes[:, :, :, 0, 0], motion[..., None]], axis=-1)


class _VideoModelEncoder(VideoEncoder):
    """A vision model from the Hub (Swin, ViT, ResNet, ...) for each frame, or a video model (VideoMAE) for runs of frames.

    The feature of a frame is the class token where the model has one, else the mean over the frame; VideoMAE gives the
    mean over the frame for each of its time steps.

    Args:
        name (`str`): Hub id or folder.
        device (`str` or `torch.device`): Where to run.
        preprocessor ([`~transformers.ImageProcessingMixin`], *optional*): By default the one of `name`.
        frame_rate (`float`, *optional*): Frames per second, defaults to 8.

    Raises:
        ValueError: The model cannot be loaded.
    """

    reads = staticmethod(lambda config: True)
    preprocessor_class = AutoImageProcessor
    # Pillow's resizing everywhere: torchvision's differs a little, and a checkpoint may move between machines.
    preprocessor_options = {"backend": "pil"}
    default_frame_rate = 8.0

    def __init__(self, name: str, device: Any = "cpu", preprocessor: Any = None, frame_rate: float | None = None):
        self.name = name
        self.clip_frame_rate = frame_rate or self.default_frame_rate
        self.image_processor = preprocessor or self.load_preprocessor(name)
        self.model = _frozen("video", name, device)
        config = self.model.config
        sizes = getattr(config, "hidden_sizes", None)
        self.feature_size = sizes[-1] if sizes else config.hidden_size
        self.frames_per_feature = getattr(config, "tubelet_size", 1)
        self.frames_per_input = config.num_frames if self.frames_per_feature > 1 else 1
        self.frame_size = min(dict(self.image_processor.size).values())
        self.has_class_token = any(key.endswith("cls_token") for key, _ in self.model.named_parameters())

    def frames_needed(self, length: int) -> int:
        """Return the number of frames that the first `length` features depend on: whole inputs to the model."""
        inputs = math.ceil(length * self.frames_per_feature / self.frames_per_input)
        return inputs * self.frames_per_input

    def __call__(self, clips: list[Iterable[np.ndarray]]) -> list[np.ndarray]:
        """Encode the frames of several clips; see [`VideoEncoder`]."""
        pieces = [[np.zeros((0, self.feature_size), dtype=np.float32)] for _ in clips]
        for batch in _chunks(self._inputs(clips), FRAMES_PER_BATCH // self.frames_per_input or 1):
            features = self._encode([frames for _, frames, _ in batch])
            for (clip, _, length), feature in zip(batch, features, strict=True):
                pieces[clip].append(feature[:length])
        return [np.concatenate(piece) for piece in pieces]

    def _inputs(self, clips: list[Iterable[np.ndarray]]) -> Iterator[tuple[int, list[np.ndarray], int]]:
        """Yield (clip, frames of one input to the model, number of features that are not of padding)."""
        for clip, frames in enumerate(clips):
            for group in _chunks(iter(frames), self.frames_per_input):
                length = math.ceil(len(group) / self.frames_per_feature)
                yield clip, group + [group[-1]] * (self.frames_per_input - len(group)), length

    @torch.no_grad()
    def _encode(self, inputs: list[list[np.ndarray]]) -> np.ndarray:
        """Return features of shape `(inputs, features, feature_size)`."""
        frames = [frame for group in inputs for frame in group]
        pixels = self.image_processor(frames, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        if self.frames_per_input > 1:
            # VideoMAE's own preprocessing takes the list for one video: (1, frames, channels, height, width)
            pixels = pixels.reshape(len(inputs), self.frames_per_input, *pixels.shape[-3:])
        hidden = self.model(pixel_values=pixels).last_hidden_state
        if self.frames_per_input > 1:
            steps = self.frames_per_input // self.frames_per_feature
            hidden = hidden.reshape(len(inputs), steps, -1, self.feature_size).mean(dim=2)
        elif hidden.ndim == 4:
            hidden = hidden.mean(dim=(2, 3))[:, None]  # (frames, channels, height, width)
        else:
            hidden = hidden[:, :1] if self.has_class_token else hidden.mean(dim=1, keepdim=True)
        return hidden.float().cpu().numpy()


# All encoders. A front end is found by its name, a Hub model by the first class that reads it; the last class of a
# modality stands for Hub models of which nothing is loaded yet.
ENCODERS: dict[str, tuple[type[_Encoder], ...]] = {
    "audio": (LogMelEncoder, WhisperEncoder, _AudioModelEncoder),
    "video": (HOGEncoder, HOGGridEncoder, _VideoModelEncoder),
}


def encoder_class(modality: str, name: str) -> type[_Encoder]:
    """Return the class of a front end, or the general one of Hub models; nothing is loaded."""
    return next((kind for kind in ENCODERS[modality] if kind.name == name), ENCODERS[modality][-1])


def load_encoder(
    modality: str,
    name: str,
    device: Any = "cpu",
    preprocessor: Any = None,
    layer: int | None = None,
    frame_rate: float | None = None,
) -> Any:
    """Load an encoder.

    Args:
        modality (`str`): `"audio"` or `"video"`.
        name (`str`): `"log-mel"`, `"hog"`, `"hog-grid"`, or the Hub id or folder of a WavLM, wav2vec 2.0, HuBERT or Whisper
            model (audio), of a Swin, ViT, ResNet or VideoMAE model (video).
        device (`str` or `torch.device`): Where it runs.
        preprocessor (*optional*): Feature extractor or image processor of a Hub model, by default its own.
        layer (`int`, *optional*): As in [`_AudioModelEncoder`].
        frame_rate (`float`, *optional*): Frames of video per second, by default the encoder's own.

    Returns:
        [`AudioEncoder`] or [`VideoEncoder`]

    Raises:
        ValueError: The model cannot be loaded, is of another kind, or has no such layer.
        ImportError: What a front end needs is not installed.
    """
    kind = encoder_class(modality, name)
    if kind.name is not None:
        if layer is not None:
            raise ValueError(f"`audio_encoder_layer` is {layer}, but {name!r} has no layers; leave it out")
        return kind() if modality == "audio" else kind(frame_rate)
    config = _load(modality, name, AutoConfig)
    kind = next((kind for kind in ENCODERS[modality] if kind.reads(config)), None)
    if kind is None:
        raise ValueError(
            f"`{modality}_encoder` is {name!r}, a {config.model_type} model, which does not read {modality}; "
            f"give a WavLM, wav2vec 2.0, HuBERT or Whisper model, or {ENCODERS[modality][0].name!r}"
        )
    return kind(name, device, preprocessor, layer if modality == "audio" else frame_rate)


def _load(modality: str, name: str, auto_class: Any, **kwargs: Any) -> Any:
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`{modality}_encoder` is {name!r}, which cannot be loaded ({reason}); give a model on the Hub, a folder, or "
            f"{ENCODERS[modality][0].name!r}"
        ) from error


def _frozen(modality: str, name: str, device: Any) -> torch.nn.Module:
    """Load a model in eval mode, without gradients; on a GPU in half precision."""
    dtype = torch.float32
    if torch.device(device).type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return _load(modality, name, AutoModel, dtype=dtype).eval().requires_grad_(False).to(device)


def _gray(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the brightness of a frame with values from 0 to 255 as `float32` from 0 to 1, shrunk to `size`."""
    if frame.ndim == 3:
        frame = frame @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as the decoder does
    return _shrink(np.ascontiguousarray(frame, dtype=np.float32) / np.float32(255), size)


def _shrink(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape == size:
        return picture
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(picture)[None], size)[0].numpy()


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
