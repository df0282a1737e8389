"""Clip files, and the only place where they are checked: frames at a chosen rate, mono samples at a chosen rate.

A row of a data set or an input of the pipeline becomes a [`Clip`] once; everything that can be wrong with it, and with the
files that it names, is a [`ClipError`] that names the clip and says what to do.

PyAV decodes: its wheels include the FFmpeg libraries (no `ffmpeg` program or system library is needed), it reads file
objects, and unlike torchcodec it works with any version of torch. It is imported when the first clip is opened, so that a
model can be used with ready features where it is not installed.

Both readers are streams: frames are shrunk and audio is resampled while the file is being decoded. Memory therefore does
not grow with the length of the clip or the size of its frames, and only the requested span is decoded.
"""

import functools
import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)

# A clip is one self-contained file. Formats that point at other files or addresses (play lists, concatenation scripts)
# are excluded on purpose: FFmpeg would open whatever an untrusted file names.
CLIP_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,wav,w64,mp3,flac,ogg,aac,mpegts,mpeg,flv,asf,aiff,"
    "amr,caf,au,ac3,eac3,wv,gif,h264,hevc"
)
# Formats that state how long each stream is, so that a file that ends earlier is known to be truncated.
FORMATS_WITH_DURATION = ("mov", "matroska", "flac", "avi")
# Limits on what is read of one clip: seconds, seconds of silence before its audio, pixels of a frame, samples per second,
# and the share of its packets that may be damaged.
MAX_SECONDS = 600.0
MAX_GAP_SECONDS = 60.0
MAX_PIXELS = 33_000_000
SAMPLING_RATES = range(1_000, 384_001)
MAX_DAMAGED_SHARE = 0.2
# A frame that is too large must not be decoded to learn so.
CODEC_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
# Decoding starts this many seconds before the requested audio: codecs need a few packets to settle.
AUDIO_PREROLL = 0.1


class ClipError(ValueError):
    """Raised for a clip that cannot be used; the message names the clip and says why."""


@dataclass
class Clip:
    """What a row says about its clip: where audio and video come from, and which seconds are meant.

    A source is an encoded clip, as in [`read_audio`], or an array.

    Attributes:
        audio (*optional*): A source, or mono `float32` samples of shape `(samples,)`.
        video (*optional*): A source, or `uint8` frames of shape `(frames, height, width, 3)`.
        sampling_rate (`int`, *optional*): Samples per second of an array; the encoder's if not given.
        start (`float`): Second at which the clip begins.
        end (`float`, *optional*): Second at which it ends, `None` for the end of the source.

    Raises:
        ClipError: `start` or `end` is no number of seconds, or the span is empty.
    """

    audio: Any = None
    video: Any = None
    sampling_rate: int | None = None
    start: float | None = 0.0
    end: float | None = None

    def __post_init__(self):
        for name, least in (("start", -1), ("end", self.start or 0.0)):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < np.inf and value > least):
                raise ClipError(f"`{name}` is {value!r}; give seconds from 0 on, and an `end` greater than `start`")
        self.start = self.start or 0.0

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Clip":
        """Resolve a row.

        Args:
            row (`dict`):
                Values named as the arguments of [`AMESSProcessor.__call__`]; other keys are ignored. A `clip` that is
                resolved already is returned. In a row with a `dialogue_id` (MIntRec2.0), `start` and `end` are times of the
                episode that the clip was cut from, and are not used. Samples may have channels, first or last; integers are
                scaled to [-1, 1].

        Raises:
            ClipError: The span, an array or a sampling rate is invalid. Files are not opened yet.
        """
        # By its method: of code loaded from the Hub, pipeline and processor may have a copy of this class each.
        if hasattr(row.get("clip"), "iter_frames"):
            return row["clip"]
        whole = row.get("clip") if row.get("video") is None else row["video"]
        audio, rate = row.get("audio"), row.get("sampling_rate")
        if audio is not None and not _is_encoded(audio):
            audio, rate = _as_samples(audio, rate)
        video = whole if row.get("frames") is None else row["frames"]
        if whole is not None and _is_encoded(whole):
            audio = whole if audio is None else audio
        if video is not None and not (video is audio or _is_encoded(video)):
            video = _as_frames(video)
        span = {} if row.get("dialogue_id") is not None else {"start": row.get("start"), "end": row.get("end")}
        return cls(audio, video, rate, **span)

    @property
    def name(self) -> str:
        """What messages call the clip: its path or address, or the kind of object that it is."""
        return _name(self.audio if self.video is None else self.video)

    def read_audio(self, sampling_rate: int, max_seconds: float | None = None) -> np.ndarray | None:
        """Decode or convert the audio of the span, at most `max_seconds` of it.

        Returns:
            `np.ndarray` of `float32` and of shape `(samples,)`, `None` without a source.

        Raises:
            ClipError: As for [`read_audio`].
        """
        end = self.end
        if max_seconds is not None:
            end = self.start + max_seconds if end is None else min(end, self.start + max_seconds)
        if isinstance(self.audio, np.ndarray):
            samples = resample(self.audio, self.sampling_rate or sampling_rate, sampling_rate)
            return self._cut(samples, sampling_rate, end, "audio")
        return None if self.audio is None else read_audio(self.audio, sampling_rate, self.start, end)

    def iter_frames(self, frame_rate: float, max_frames: int | None = None, **reading: Any) -> Iterator[np.ndarray]:
        """Decode the frames of the span one by one; an array is taken to have `frame_rate` frames per second.

        Args and errors as for [`iter_frames`].
        """
        if isinstance(self.video, np.ndarray):
            yield from self._cut(self.video, frame_rate, self.end, "video")[:max_frames]
        elif self.video is not None:
            span = {"start": self.start, "end": self.end}
            yield from iter_frames(self.video, frame_rate, max_frames=max_frames, **span, **reading)

    def durations(self, rates: dict[str, float]) -> dict[str, float]:
        """Measure the sources of some modalities, as [`clip_durations`] does; their rates are those of arrays."""
        found, files = {}, {}
        for name, rate in rates.items():
            source = getattr(self, name)
            if isinstance(source, np.ndarray):
                found[name] = len(source) / ((name == "audio" and self.sampling_rate) or rate)
            elif source is not None:
                if id(source) not in files:
                    files[id(source)] = clip_durations(source)
                found[name] = files[id(source)].get(name, 0.0)
        return found

    def _cut(self, values: np.ndarray, rate: float, end: float | None, name: str) -> np.ndarray:
        if self.start and self.start * rate >= len(values):
            raise ClipError(f"`{name}` ends before {self.start:g} seconds; check `start`")
        return values[round(self.start * rate) : None if end is None else round(end * rate)]


def import_av() -> Any:
    """Import PyAV, or raise an `ImportError` that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError('reading clips needs PyAV; pip install "amess_hf[video]" (or pip install av)') from error
    return av


def clip_durations(source: Any) -> dict[str, float]:
    """Return the seconds of `audio` and `video` of a clip, as far as it has them.

    They come from the header, or else from the packets, which are read but not decoded.

    Args:
        source: As in [`read_audio`].

    Raises:
        ClipError: As for [`read_audio`].
    """
    with _opened(source) as (container, streams, _):
        found = {name: _stated_duration(stream) for name, stream in streams.items()}
        unstated = {stream.index: name for name, stream in streams.items() if not found[name]}
        if unstated:
            for packet in container.demux([streams[name] for name in unstated.values()]):
                if packet.pts is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - _zero(container)
                    name = unstated[packet.stream.index]
                    found[name] = max(found[name], end)
        return found


def iter_frames(
    source: Any,
    frame_rate: float | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    size: int | tuple[int, int] | None = None,
    max_frames: int | None = None,
    gray: bool = False,
) -> Iterator[np.ndarray]:
    """Decode the frames of a clip one by one.

    With `frame_rate`, frame k is the one on screen at `start + k / frame_rate` seconds, whatever the clip's own rate is,
    even if it varies. With `num_frames`, the span is cut into that many equal parts and the frame in the middle of each
    is taken. With neither, every frame is given. Rotated clips are turned upright.

    Args:
        source: As in [`read_audio`].
        frame_rate (`float`, *optional*): Frames per second.
        num_frames (`int`, *optional*): Number of frames, instead of a rate.
        start (`float`, *optional*): Second of the clip to begin at; defaults to its beginning.
        end (`float`, *optional*): Second of the clip to end at; defaults to its end.
        size (`int` or `(height, width)`, *optional*): An `int` shrinks the shorter side to it (never enlarges) and keeps
            the proportions; a pair is the exact size.
        max_frames (`int`, *optional*): Stop after that many.
        gray (`bool`, *optional*, defaults to `False`): One channel of brightness instead of three of color.

    Yields:
        `np.ndarray` of `uint8`, shape `(height, width, 3)`, or `(height, width)` with `gray`. Nothing for a clip without
        video.

    Raises:
        ClipError: As for [`read_audio`].
    """
    begin, targets = start or 0.0, None
    if num_frames is not None:
        length = (clip_durations(source).get("video", 0.0) if end is None else end) - begin
        targets = (begin + (index + 0.5) * length / num_frames for index in range(num_frames))
    elif frame_rate is not None:
        targets = (begin + index / frame_rate for index in itertools.count())
    with _opened(source) as (container, streams, name):
        if "video" not in streams:
            return
        context = streams["video"].codec_context
        context.options = CODEC_OPTIONS
        if not 0 < context.width * context.height <= MAX_PIXELS:
            raise ClipError(
                f"the frames of {name} have no size, or more than {MAX_PIXELS:,} pixels; make them smaller"
            )
        frames = _sampled(container, streams["video"], name, begin, end, targets, fill=num_frames is not None)
        last, array = None, None
        for frame in itertools.islice(frames, max_frames):
            if frame is not last:  # a slow clip shows one frame at several of the requested times
                last, array = frame, _to_array(frame, size, gray)
                size = array.shape[:2]  # the others have the size of the first, whatever the file says
            yield array


def read_frames(source: Any, **kwargs: Any) -> np.ndarray:
    """Decode the frames of a clip into one array.

    Args:
        source: As in [`read_audio`].
        kwargs: As in [`iter_frames`].

    Returns:
        `np.ndarray` of `uint8`, shape `(frames, height, width, 3)`, or `(frames, height, width)` with `gray`; no frames
        for a clip without video.
    """
    frames = list(iter_frames(source, **kwargs))
    if frames:
        return np.stack(frames)
    return np.zeros((0, 1, 1) if kwargs.get("gray") else (0, 1, 1, 3), dtype=np.uint8)


def read_audio(source: Any, sampling_rate: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Decode the audio of a clip, with all channels mixed to one and resampled.

    The first sample is the one at `start`: where the audio stream begins later than the clip, silence fills the gap, so
    that audio and video share one time axis.

    Args:
        source: A path, a URL that `fsspec` can open, `bytes`, a binary file object, a dictionary with `path` or `bytes`
            (as `datasets.Video(decode=False)` and `datasets.Audio(decode=False)` give), or their decoded objects.
        sampling_rate (`int`): Samples per second to give.
        start (`float`, *optional*): Second of the clip to begin at; defaults to its beginning.
        end (`float`, *optional*): Second of the clip to end at; defaults to its end.

    Returns:
        `np.ndarray` of `float32` in about [-1, 1], shape `(samples,)`; no samples for a clip without audio.

    Raises:
        ClipError: The clip is missing, empty, not a media file, cut short, has neither audio nor video, breaks while it is
            read, or ends before `start`.
        ImportError: PyAV is not installed.
    """
    pieces = list(_iter_audio(source, sampling_rate, start or 0.0, end))
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def resample(samples: np.ndarray, original_rate: int, sampling_rate: int) -> np.ndarray:
    """Bring mono `samples`, `float32` of shape `(samples,)`, from one rate to another."""
    if original_rate == sampling_rate or len(samples) == 0:
        return samples
    av = import_av()
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = original_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate)
    pieces = [piece.to_ndarray()[0] for given in (frame, None) for piece in resampler.resample(given)]
    return np.concatenate(pieces)


def _is_encoded(value: Any) -> bool:
    """Tell whether `value` is a source of an encoded clip rather than an array."""
    if isinstance(value, dict):
        return "array" not in value and (value.get("path") is not None or value.get("bytes") is not None)
    return isinstance(value, (str, os.PathLike, bytes, bytearray)) or hasattr(value, "read") or _is_decoder(value)


def _is_decoder(value: Any) -> bool:
    """Tell whether `value` is what `datasets` makes of a clip where it decodes: an object that remembers its source."""
    return isinstance(getattr(value, "_hf_encoded", None), dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _as_samples(audio: Any, rate: Any) -> tuple[np.ndarray, int | None]:
    """Mix audio that is not an encoded clip to mono: an array, or a dictionary with `array` and `sampling_rate`."""
    if isinstance(audio, dict):
        audio, rate = audio.get("array"), audio.get("sampling_rate") or 0
    samples = np.asarray(audio)
    is_sound = samples.dtype.kind in "iuf" and samples.ndim in (1, 2) and np.isfinite(samples).all()
    if not is_sound or not (rate is None or (isinstance(rate, (int, np.integer)) and rate > 0)):
        raise ClipError(
            f"`audio` has shape {samples.shape} and `sampling_rate` {rate!r}; give finite samples of shape (samples,) or "
            "(channels, samples) and a whole number of samples per second, or a clip"
        )
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))  # there are fewer channels than samples
    return np.ascontiguousarray(samples, dtype=np.float32), rate


def _as_frames(video: Any) -> np.ndarray:
    """Check frames that are not an encoded clip, and return them as `uint8`."""
    frames = np.asarray(video)
    top = 1 if frames.dtype.kind == "f" else 255
    is_video = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype.kind in "iuf"
    if not is_video or (frames.size and not (frames.min() >= 0 and frames.max() <= top)):  # NaN fails both
        raise ClipError(
            f"`video` is a {type(video).__name__} of shape {frames.shape}; give (frames, height, width, 3), integers from "
            "0 to 255 or floating point from 0 to 1, or a clip"
        )
    return (np.rint(frames * 255) if top == 1 else frames).astype(np.uint8)


def _unwrapped(source: Any) -> Any:
    """Take the path or the bytes out of a value of `datasets.Video` or `datasets.Audio`, decoded or not."""
    source = source._hf_encoded if _is_decoder(source) else source
    if isinstance(source, dict):
        return source.get("path") if source.get("bytes") is None else source["bytes"]
    return source


def _name(source: Any) -> str:
    source = _unwrapped(source)
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    kind = f"{len(source)} bytes" if isinstance(source, (bytes, bytearray)) else type(source).__name__
    return str(getattr(source, "name", None) or f"the clip given as {kind}")


@contextmanager
def _opened(source: Any) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Yield the PyAV container, its streams by modality, and the clip's name for messages; see [`read_audio`]."""
    av = import_av()
    name, source = _name(source), _unwrapped(source)
    handle = _handle(source, name)
    options = {"options": CODEC_OPTIONS, "container_options": {"format_whitelist": CLIP_FORMATS}}
    try:
        _check_length(handle, name)
        with av.open(handle, buffer_size=1 << 17, metadata_errors="replace", **options) as container:
            streams = {"audio": _stream(container.streams.audio), "video": _stream(container.streams.video)}
            streams = {modality: stream for modality, stream in streams.items() if stream is not None}
            if not streams:
                raise ClipError(
                    f"{name} holds neither audio nor video that can be decoded; give an audio or a video file"
                )
            yield container, streams, name
    except (ClipError, ImportError):
        raise
    except (
        Exception
    ) as error:  # FFmpeg's errors, and what PyAV makes of tags, layouts and values that it does not know
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ClipError(
            f"{name} cannot be decoded ({reason}); give a whole media file, in a common format such as mp4, mkv or wav"
        ) from error
    finally:
        if handle is not source:
            handle.close()


def _stream(streams: Any) -> Any:
    """Return the default one of the streams that can be decoded, else the first; a cover picture is not a video."""
    usable = [stream for stream in streams if stream.codec_context is not None and not _has(stream, "attached_pic")]
    return max(usable, key=lambda stream: _has(stream, "default"), default=None)


def _has(stream: Any, flag: str) -> bool:
    return any(one.name == flag and one in stream.disposition for one in type(stream.disposition))


def _handle(source: Any, name: str) -> Any:
    """Open the source as a binary file object, or rewind it."""
    if hasattr(source, "read"):
        if source.seekable():
            source.seek(0)
        return source
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ClipError(f"a clip is a path, an address, bytes or a file object, not {type(source).__name__}")
    try:
        if "://" not in name:
            return open(name, "rb")
        import fsspec

        return fsspec.open(name, "rb").open()
    except Exception as error:  # every file system of fsspec raises its own errors
        known = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder, not a clip"}
        reason = known.get(type(error), f"cannot be opened ({type(error).__name__}: {error})")
        raise ClipError(f"{name} {reason}; check the path of the clip") from error


def _check_length(handle: Any, name: str) -> None:
    """Raise for an empty file, and for a RIFF file (wav, avi) that is shorter than its header says.

    FFmpeg reads what there is of it without a warning. The data chunk of a wav decides, where it says something: recorders
    write 0 or a size beyond 2 GB while they do not know it, and some get a few bytes or the top byte wrong.
    """
    if not handle.seekable():
        return
    head = handle.read(1 << 16)
    length = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    stated, there = int.from_bytes(head[4:8], "little"), length - 8
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" and b"data" in head:
        data = head.index(b"data", 12) + 4
        stated, there = int.from_bytes(head[data : data + 4], "little"), length - data - 4
    is_right = there + 64 >= stated or stated >= 0x7FFF0000 or abs((stated & 0xFFFFFF) - there) <= 64
    if length == 0 or (head[:4] == b"RIFF" and not is_right):
        reason = f"is cut short: {there} of its {stated} bytes are there" if length else "is empty"
        raise ClipError(f"{name} {reason}; copy or download it again")


def _stated_duration(stream: Any) -> float:
    """Give the seconds that the header states for a stream, 0 where it states none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska: 00:00:04.000000000
    minutes, _, seconds = rest.partition(":")
    try:
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return end - _zero(stream.container)
    except ValueError:
        return 0.0


def _zero(container: Any) -> float:
    """Give the second on the container's clock at which the clip begins (MPEG transport streams do not begin at 0)."""
    return (container.start_time or 0) / 1e6


def _check_whole(container: Any, stream: Any, name: str, read: float) -> None:
    """Raise where a stream ended well before its header says; a tenth is tolerated, as headers are rounded."""
    stated = _stated_duration(stream)
    if container.format.name.split(",")[0] in FORMATS_WITH_DURATION and read < 0.9 * stated - 0.25:
        raise ClipError(
            f"{name} is cut short: {read:.1f} of its {stated:.1f} seconds of {stream.type} can be read; "
            "copy or download it again"
        )


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the key frame at or before the given second of the clip; a format that cannot seek is read through."""
    # The times of FLAC in ogg are wrong after a seek.
    if seconds <= 0 or (container.format.name, stream.codec_context.name) == ("ogg", "flac"):
        return
    av = import_av()
    try:
        container.seek(int((seconds + _zero(container)) / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:
        container.seek(0)


def _decoded(container: Any, stream: Any, name: str, is_seeking: bool) -> Iterator[Any]:
    """Decode a stream; what is damaged is left out, with a warning, as far as `MAX_DAMAGED_SHARE` allows.

    Before the first frame after a seek there may be the rest of another. MPEG streams drop what is damaged: once anything
    was, seconds without a frame count too.
    """
    av = import_av()
    stream.thread_type = "AUTO"
    # A generator may be closed after its container, and must not touch it then.
    modality, is_mpeg = stream.type, container.format.name in ("mpegts", "mpeg")
    packets = bad = 0
    lost, first, last, usual = 0.0, None, None, None
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                frames, is_bad = packet.decode(), packet.is_corrupt
            except av.InvalidDataError:
                frames, is_bad = [], True
            bad += is_bad and not (is_seeking and first is None)
            for frame in frames:
                if first is not None and frame.time is not None:
                    step = frame.time - last
                    usual = step if usual is None or not bad else usual
                    lost += step - usual if is_mpeg and bad and step > 1.5 * usual else 0.0
                last = frame.time or 0.0
                first = last if first is None else first
                yield frame
    finally:
        share = max(bad / packets, lost / (last - first) if lost else 0.0) if packets else 0.0
        problem = f"{name} is damaged: {share:.1%} of its {modality} cannot be decoded"
        if 0 < share <= MAX_DAMAGED_SHARE:
            logger.warning(problem)
    if share > MAX_DAMAGED_SHARE:
        raise ClipError(f"{problem}; copy or download it again")


def _check_seconds(seconds: float, name: str) -> None:
    """Raise for a span that is longer than `MAX_SECONDS`."""
    if seconds > MAX_SECONDS + 1:
        raise ClipError(f"{name} is longer than {MAX_SECONDS:g} seconds; give `start` and `end`")


def _sampled(
    container: Any,
    stream: Any,
    name: str,
    begin: float,
    end: float | None,
    targets: Iterator[float] | None,
    fill: bool,
) -> Iterator[Any]:
    """Decode the frames on screen at the target seconds (rising), or all of the span where there are no targets."""
    _seek(container, stream, begin)
    zero, step = _zero(container), 1.0 / float(stream.average_rate or 25)
    shown, seconds = None, begin - step
    target = None if targets is None else next(targets)
    for frame in _decoded(container, stream, name, begin > 0):
        previous, seconds = shown, seconds + step if frame.time is None else frame.time - zero
        shown = frame
        if end is not None and seconds >= end:
            shown = previous if previous is not None else frame
            break
        if targets is None:
            _check_seconds(seconds - begin, name)
            if seconds > begin - 1e-6:
                yield frame
            continue
        while target is not None and target < seconds - 1e-6:
            _check_seconds(target - begin, name)
            yield frame if previous is None else previous
            target = next(targets, None)
        if target is None:
            return
    else:
        _check_whole(container, stream, name, 0.0 if shown is None else seconds + step)
    if begin > 0 and (shown is None or seconds + step <= begin):
        raise ClipError(f"{name} ends before {begin:g} seconds; check `start`")
    if shown is None:
        return
    # After the last frame: it stays on screen for its own duration.
    last = seconds + (float(shown.duration * shown.time_base) if shown.duration else step)
    last = last if end is None else min(last, end)
    while target is not None and (fill or target < last - 1e-6):
        _check_seconds(target - begin, name)
        yield shown
        target = next(targets, None)


def _to_array(frame: Any, size: int | tuple[int, int] | None, gray: bool) -> np.ndarray:
    """Shrink, convert and rotate one decoded frame."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    height, width = frame.height, frame.width
    if isinstance(size, tuple):
        height, width = size if turns % 2 == 0 else size[::-1]
    elif size is not None and min(height, width) > size:
        scale = size / min(height, width)
        height, width = max(round(height * scale), size), max(round(width * scale), size)
    array = frame.to_ndarray(format="gray" if gray else "rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def _iter_audio(source: Any, sampling_rate: int, begin: float, end: float | None) -> Iterator[np.ndarray]:
    """Decode in pieces, cut to the span; see [`read_audio`]."""
    wanted = None if end is None else round((end - begin) * sampling_rate)
    with _opened(source) as (container, streams, name):
        if "audio" not in streams:
            return
        stream, position = streams["audio"], None  # sample that the next piece begins with, negative before the span
        for seconds, piece in _resampled(container, stream, name, sampling_rate, begin):
            if position is None:
                gap = min(seconds - begin, (container.duration or 0) / 1e6)
                if gap > MAX_GAP_SECONDS and wanted is None:
                    raise ClipError(f"the audio of {name} begins {gap:.0f} seconds late; give `start` and `end`")
                position = round(gap * sampling_rate)
                if position > 0:
                    silence = position if wanted is None else min(position, wanted)
                    _check_seconds(silence / sampling_rate, name)
                    yield np.zeros(silence, dtype=np.float32)
            _check_seconds((position if wanted is None else min(position, wanted)) / sampling_rate, name)
            first, position = position, position + len(piece)
            piece = piece[max(-first, 0) : None if wanted is None else max(wanted - first, 0)]
            if len(piece):
                yield piece
            if wanted is not None and position >= wanted:
                return
        if position is None and 0 < _stated_duration(stream) <= begin:
            raise ClipError(f"{name} ends before {begin:g} seconds; check `start`")
        _check_whole(container, stream, name, 0.0 if position is None else begin + position / sampling_rate)


def _resampled(
    container: Any, stream: Any, name: str, sampling_rate: int, begin: float
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (second of the clip at which the first piece begins, mono samples) for all audio from about `begin` on."""
    _seek(container, stream, begin - AUDIO_PREROLL)
    zero, first, setup, resampler, gain = _zero(container), None, None, None, None
    for frame in itertools.chain(_decoded(container, stream, name, begin > AUDIO_PREROLL), [None]):
        if first is None and frame is not None:
            first = begin if frame.time is None else frame.time - zero
        found = frame and (frame.format.name, frame.layout.name, frame.sample_rate)
        pieces = []
        if found != setup:  # another rate or layout, or the end
            pieces += resampler.resample(None) if resampler else []
            pieces = [piece.to_ndarray()[0] * gain for piece in pieces]
            resampler, gain, setup = *_resampler(found, sampling_rate, name), found
        if frame is not None:
            frame.pts = None  # pieces are counted here, so the resampler need not look at gaps between the stamps
            pieces += [piece.to_ndarray()[0] * gain for piece in resampler.resample(frame)]
        for piece in pieces:
            if not np.isfinite(piece).all():
                raise ClipError(f"{name} holds samples that are no numbers; export its audio again")
            yield first, piece


def _resampler(setup: tuple[str, str, int] | None, sampling_rate: int, name: str) -> tuple[Any, Any]:
    """Return the resampler for frames of a format, layout and rate, and the gain of its mix; none at the end."""
    if setup is None:
        return None, None
    if setup[2] not in SAMPLING_RATES:
        raise ClipError(f"{name} has {setup[2]} samples per second; give a clip with 1,000 to 384,000")
    return import_av().AudioResampler(format="flt", layout="mono", rate=sampling_rate), _mix_gain(setup[1])


@functools.lru_cache
def _mix_gain(layout: str) -> np.float32:
    """Give the factor that brings a mix of all channels back to the loudness of one.

    FFmpeg's own mix (ITU-R BS.775: the center, where films have their speech, counts more than the sides) keeps the
    power of independent channels in floating point, so that equal channels add up to more than 1.
    """
    av = import_av()
    channels = av.AudioLayout(layout).nb_channels
    ones = av.AudioFrame.from_ndarray(np.ones((1, 64 * channels), dtype=np.float32), format="flt", layout=layout)
    ones.sample_rate = 16000
    mixed = av.AudioResampler(format="flt", layout="mono", rate=16000).resample(ones)
    return np.float32(1) / (mixed[0].to_ndarray()[0, 0] or np.float32(1))
