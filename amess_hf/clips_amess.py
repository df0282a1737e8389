"""Reading clips: the video as frames at a chosen rate, the sound as mono samples at a chosen rate.

PyAV decodes: it is maintained, its wheels include the FFmpeg libraries (no `ffmpeg` program or system library is
needed), it reads file objects, and unlike torchcodec it works with any version of torch. It is imported when the
first clip is opened, so that a model can be used with ready features where PyAV is not installed.

Both readers are streams: frames are shrunk and sound is resampled while the file is being decoded. Memory therefore does
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


# A clip is one self-contained file. Formats that point at other files or addresses (play lists, concatenation scripts)
# are excluded on purpose: FFmpeg would open whatever an untrusted file names.
CLIP_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,wav,w64,mp3,flac,ogg,aac,mpegts,mpeg,flv,asf,aiff"
# Formats that state how long each stream is, so that a file that ends earlier is known to be truncated.
FORMATS_WITH_DURATION = ("mov", "matroska", "wav", "flac", "avi")
# Decoding starts this many seconds before the requested sound: audio codecs need a few packets to settle.
SOUND_PREROLL = 0.1


class ClipError(ValueError):
    """Raised for a clip that cannot be used; the message names the clip and says why."""


@dataclass
class ClipInfo:
    """What the header of a clip says.

    Attributes:
        duration (`float`): Seconds, 0 where the header does not say.
        has_sound (`bool`): Whether there is an audio stream.
        has_picture (`bool`): Whether there is a video stream (a cover picture does not count).
        sampling_rate (`int`): Samples of sound per second, 0 without sound.
        frame_rate (`float`): Mean frames per second, 0 without video.
        width, height (`int`): Size of the frames as stored, before rotation; 0 without video.
    """

    duration: float
    has_sound: bool
    has_picture: bool
    sampling_rate: int = 0
    frame_rate: float = 0.0
    width: int = 0
    height: int = 0


def import_av() -> Any:
    """Import PyAV, or raise an `ImportError` that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError('reading clips needs PyAV; pip install "amess_hf[video]" (or pip install av)') from error
    return av


def is_clip_source(value: Any) -> bool:
    """Tell whether `value` holds an encoded clip: a path, address, bytes, file object, or value of a data set column."""
    if isinstance(value, dict):
        return "array" not in value and (value.get("path") is not None or value.get("bytes") is not None)
    return isinstance(value, (str, os.PathLike, bytes, bytearray)) or hasattr(value, "read") or _has_encoded(value)


def clip_name(source: Any) -> str:
    """Give the name of a clip for messages: its path or address, or the kind of object that it is."""
    source = _unwrap(source)
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray)):
        return f"the clip given as {len(source)} bytes"
    return str(getattr(source, "name", None) or f"the clip given as {type(source).__name__}")


def clip_span(row: dict[str, Any]) -> dict[str, float | None]:
    """Give the span of a row's clip.

    Args:
        row (`dict`):
            A row of a data set. In one that names a `dialogue_id` (MIntRec2.0), `start` and `end` are times of the episode
            that the clip was cut from, and are not used.

    Returns:
        `dict`: `start` and `end` in seconds of the clip, `None` where the clip's own start or end is meant.
    """
    cut = row.get("dialogue_id") is not None
    return {name: None if cut else row.get(name) for name in ("start", "end")}


@contextmanager
def open_clip(source: Any) -> Iterator[tuple[Any, str]]:
    """Open a clip for reading.

    Args:
        source: A path, a URL that `fsspec` can open, `bytes`, a binary file object, a dictionary with `path` or `bytes`
            (as `datasets.Video(decode=False)` and `datasets.Audio(decode=False)` give), or their decoded objects.

    Yields:
        The PyAV container and the clip's name for messages.

    Raises:
        ClipError: The clip is missing, empty, not a media file, has neither sound nor video, or breaks while it is read.
        ImportError: PyAV is not installed.
    """
    av = import_av()
    name = clip_name(source)
    handle, owned = _open_handle(_unwrap(source), name)
    try:
        _check_riff(handle, name)
        with av.open(handle, buffer_size=1 << 17, container_options={"format_whitelist": CLIP_FORMATS}) as container:
            if _sound_stream(container) is None and _picture_stream(container) is None:
                raise ClipError(f"{name} holds neither sound nor video; give an audio or a video file")
            yield container, name
    except av.FFmpegError as error:
        raise ClipError(f"{name} cannot be decoded ({error.strerror}); give a whole media file") from error
    finally:
        if owned:
            handle.close()


def clip_info(source: Any) -> ClipInfo:
    """Read the header of a clip; the source and the errors are those of [`open_clip`]."""
    with open_clip(source) as (container, _):
        sound, picture = _sound_stream(container), _picture_stream(container)
        durations = [_stated_duration(stream) for stream in (sound, picture) if stream is not None]
        duration = max(durations) or (container.duration or 0) / 1e6
        info = ClipInfo(duration, sound is not None, picture is not None)
        if sound is not None:
            info.sampling_rate = sound.codec_context.sample_rate
        if picture is not None:
            info.frame_rate = float(picture.average_rate or 0)
            info.width, info.height = picture.codec_context.width, picture.codec_context.height
        return info


def clip_durations(source: Any) -> tuple[float, float]:
    """Give the seconds of sound and of picture of a clip, counted where the header does not say; 0 for what it lacks."""
    with open_clip(source) as (container, _):
        sound = _sound_stream(container)
        seconds = 0.0 if sound is None else _stated_duration(sound)
    if sound is not None and not seconds:
        seconds = sum(map(len, iter_sound(source, 8000))) / 8000
    return seconds, _measured_duration(source)


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
        source: As in [`open_clip`].
        frame_rate (`float`, *optional*): Frames per second.
        num_frames (`int`, *optional*): Number of frames, instead of a rate.
        start (`float`, *optional*): Second of the clip to begin at; defaults to its beginning.
        end (`float`, *optional*): Second of the clip to end at; defaults to its end.
        size (`int` or `(height, width)`, *optional*): An `int` shrinks the shorter side to it (never enlarges) and keeps
            the proportions; a pair is the exact size.
        max_frames (`int`, *optional*): Stop after that many.
        gray (`bool`, *optional*, defaults to `False`): One channel of brightness instead of three of colour.

    Yields:
        `np.ndarray` of `uint8`, shape `(height, width, 3)`, or `(height, width)` with `gray`. Nothing for a clip without
        video.

    Raises:
        ClipError: As in [`open_clip`], or the span is empty or lies after the end.
        ValueError: `frame_rate` and `num_frames` are both given, or a value is out of range.
    """
    _check_request(frame_rate, num_frames, start, end)
    begin, targets = start or 0.0, None
    if num_frames is not None:
        length = (_measured_duration(source) if end is None else end) - begin
        targets = (begin + (index + 0.5) * length / num_frames for index in range(num_frames))
    elif frame_rate is not None:
        targets = (begin + index / frame_rate for index in itertools.count())
    with open_clip(source) as (container, name):
        stream = _picture_stream(container)
        if stream is None:
            return
        pictures = _sampled_pictures(container, stream, name, begin, end, targets, fill=num_frames is not None)
        last, array = None, None
        for picture in itertools.islice(pictures, max_frames):
            if picture is not last:  # a slow clip shows one picture at several of the requested times
                last, array = picture, _to_array(picture, size, gray)
            yield array


def read_frames(source: Any, **kwargs: Any) -> np.ndarray:
    """Decode the frames of a clip into one array.

    Args:
        source: As in [`open_clip`].
        kwargs: As in [`iter_frames`].

    Returns:
        `np.ndarray` of `uint8`, shape `(frames, height, width, 3)`, or `(frames, height, width)` with `gray`; no frames
        for a clip without video.
    """
    frames = list(iter_frames(source, **kwargs))
    if frames:
        return np.stack(frames)
    return np.zeros((0, 1, 1) if kwargs.get("gray") else (0, 1, 1, 3), dtype=np.uint8)


def iter_sound(
    source: Any, sampling_rate: int, start: float | None = None, end: float | None = None
) -> Iterator[np.ndarray]:
    """Decode the sound of a clip in pieces, with all channels mixed to one and resampled.

    The first sample is the one at `start`: where the audio stream begins later than the clip, silence fills the gap, so
    that sound and video share one time axis.

    Args:
        source: As in [`open_clip`].
        sampling_rate (`int`): Samples per second to give.
        start (`float`, *optional*): Second of the clip to begin at; defaults to its beginning.
        end (`float`, *optional*): Second of the clip to end at; defaults to its end.

    Yields:
        `np.ndarray` of `float32` in about [-1, 1], shape `(samples,)`. Nothing for a clip without sound.

    Raises:
        ClipError: As in [`open_clip`].
    """
    _check_request(None, None, start, end)
    begin = start or 0.0
    wanted = None if end is None else round((end - begin) * sampling_rate)
    with open_clip(source) as (container, name):
        stream = _sound_stream(container)
        if stream is None:
            return
        position = None  # sample of the output that the next piece begins with; negative before the span
        for seconds, piece in _resampled(container, stream, sampling_rate, begin):
            if position is None:
                gap = 0.0 if seconds is None else seconds - begin
                longest = (container.duration or 0) / 1e6
                position = round(min(gap, longest) * sampling_rate)
                if position > 0:
                    yield np.zeros(position if wanted is None else min(position, wanted), dtype=np.float32)
            first, position = position, position + len(piece)
            piece = piece[max(-first, 0) : None if wanted is None else max(wanted - first, 0)]
            if len(piece):
                yield piece
            if wanted is not None and position >= wanted:
                return
        if position is None and 0 < _stated_duration(stream) <= begin:
            raise ClipError(f"{name} ends before {begin:g} seconds; check `start`")
        read = 0.0 if position is None else begin + position / sampling_rate
        _check_whole(container, stream, name, read)


def read_sound(source: Any, sampling_rate: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Decode the sound of a clip into one `float32` array of shape `(samples,)`; arguments as in [`iter_sound`]."""
    pieces = list(iter_sound(source, sampling_rate, start, end))
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def resample(samples: np.ndarray, original_rate: int, sampling_rate: int) -> np.ndarray:
    """Mix sound given as an array to mono, and bring it to another rate.

    Args:
        samples (`np.ndarray`): `(samples,)`, or `(channels, samples)` or `(samples, channels)`; integers are scaled to
            [-1, 1].
        original_rate (`int`): Samples per second of `samples`.
        sampling_rate (`int`): Samples per second to give.

    Returns:
        `np.ndarray` of `float32`, shape `(samples,)`.

    Raises:
        ValueError: The array has another shape.
    """
    samples = np.asarray(samples)
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))  # there are fewer channels than samples
    if samples.ndim != 1:
        raise ValueError(f"`audio` has shape {samples.shape}; give (samples,), (channels, samples) or a path")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if original_rate == sampling_rate or len(samples) == 0:
        return samples
    av = import_av()
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = original_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate)
    pieces = [piece.to_ndarray()[0] for given in (frame, None) for piece in resampler.resample(given)]
    return np.concatenate(pieces)


def _has_encoded(value: Any) -> bool:
    return isinstance(getattr(value, "_hf_encoded", None), dict)


def _unwrap(source: Any) -> Any:
    """Take the path or the bytes out of a value of `datasets.Video` or `datasets.Audio`, decoded or not."""
    if _has_encoded(source):
        source = source._hf_encoded
    if isinstance(source, dict):
        encoded = source.get("bytes")
        source = encoded if encoded is not None else source.get("path")
    return source


def _open_handle(source: Any, name: str) -> tuple[Any, bool]:
    """Open the source as a binary file object; also tell whether the caller must close it."""
    if isinstance(source, (bytes, bytearray)):
        if not source:
            raise ClipError(f"{name} is empty; give a whole media file")
        return io.BytesIO(source), True
    if isinstance(source, (str, os.PathLike)):
        return (_open_address(name) if "://" in name else _open_path(name)), True
    if hasattr(source, "read"):
        if source.seekable():
            source.seek(0)
        return source, False
    raise ClipError(f"a clip is a path, an address, bytes or a file object, not {type(source).__name__}")


def _open_path(path: str) -> Any:
    if not os.path.exists(path):
        raise ClipError(f"{path} does not exist; check the path of the clip")
    if os.path.isdir(path):
        raise ClipError(f"{path} is a folder, not a clip; give the path of a file")
    if os.path.getsize(path) == 0:
        raise ClipError(f"{path} is an empty file; copy or download the clip again")
    try:
        return open(path, "rb")
    except OSError as error:
        raise ClipError(f"{path} cannot be opened ({error.strerror})") from error


def _open_address(address: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"opening {address} needs fsspec; pip install fsspec") from error
    try:
        return fsspec.open(address, "rb").open()
    except Exception as error:  # every file system of fsspec raises its own errors
        raise ClipError(f"{address} cannot be opened ({type(error).__name__}: {error})") from error


def _check_request(frame_rate: float | None, num_frames: int | None, start: float | None, end: float | None) -> None:
    if frame_rate is not None and num_frames is not None:
        raise ValueError("give `frame_rate` or `num_frames`, not both")
    for field, value in (("frame_rate", frame_rate), ("num_frames", num_frames)):
        if value is not None and value <= 0:
            raise ValueError(f"`{field}` is {value}; it must be positive")
    check_span(start, end)


def check_span(start: Any, end: Any) -> None:
    """Check the seconds at which a span begins and ends, either of which may be `None`.

    Raises:
        ValueError: One is not a number of seconds, is negative, or the end is not after the start.
    """
    for field, value in (("start", start), ("end", end)):
        if value is not None and (not isinstance(value, (int, float, np.number)) or not np.isfinite(value)):
            raise ValueError(f"`{field}` is {value!r}; it must be a number of seconds")
    if start is not None and start < 0:
        raise ValueError(f"`start` is {start}; it must be 0 or more seconds")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"`end` is {end}; it must be greater than `start` ({start or 0.0})")


def _sound_stream(container: Any) -> Any:
    return container.streams.audio[0] if container.streams.audio else None


def _picture_stream(container: Any) -> Any:
    """Give the first video stream that is not the cover picture of a sound file."""
    for stream in container.streams.video:
        if not any(flag.name == "attached_pic" and flag in stream.disposition for flag in type(stream.disposition)):
            return stream
    return None


def _stated_duration(stream: Any) -> float:
    """Give the seconds that the header states for a stream, 0 where it states none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska: 00:00:04.000000000
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _measured_duration(source: Any) -> float:
    """Give the seconds of video, from the header or else from the packets, which are read but not decoded."""
    with open_clip(source) as (container, _):
        stream = _picture_stream(container)
        stated = 0.0 if stream is None else _stated_duration(stream)
        if stated or stream is None:
            return stated
        zero = _zero(container)
        ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux(stream) if p.pts is not None]
        return max(ends, default=zero) - zero


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


def _check_riff(handle: Any, name: str) -> None:
    """Raise where a RIFF file (wav, avi) is shorter than its header says; FFmpeg reads what there is without a warning."""
    if not handle.seekable():
        return
    head = handle.read(8)
    stated = int.from_bytes(head[4:8], "little") + 8
    length = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    if head[:4] == b"RIFF" and length < stated < 0xFFFFFFFF:  # recorders that do not know the length write the maximum
        raise ClipError(f"{name} is cut short: {length} of its {stated} bytes are there; copy or download it again")


def _seek(container: Any, stream: Any, seconds: float) -> None:
    """Go to the key frame at or before the given second of the clip; a format that cannot seek is read through."""
    if seconds <= 0:
        return
    av = import_av()
    try:
        container.seek(int((seconds + _zero(container)) / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:
        container.seek(0)


def _sampled_pictures(
    container: Any,
    stream: Any,
    name: str,
    begin: float,
    end: float | None,
    targets: Iterator[float] | None,
    fill: bool,
) -> Iterator[Any]:
    """Decode the pictures on screen at the target seconds (rising), or all of the span where there are no targets."""
    stream.thread_type = "AUTO"
    _seek(container, stream, begin)
    zero, step = _zero(container), 1.0 / float(stream.average_rate or 25)
    shown, seconds = None, begin - step
    target = None if targets is None else next(targets)
    for picture in container.decode(stream):
        previous, seconds = shown, seconds + step if picture.time is None else picture.time - zero
        shown = picture
        if end is not None and seconds >= end:
            shown = previous if previous is not None else picture
            break
        if targets is None:
            if seconds > begin - 1e-6:
                yield picture
            continue
        while target is not None and target < seconds - 1e-6:
            yield picture if previous is None else previous
            target = next(targets, None)
        if target is None:
            return
    else:
        _check_whole(container, stream, name, 0.0 if shown is None else seconds + step)
    if shown is None or (begin > 0 and seconds + step <= begin):
        if begin > 0:
            raise ClipError(f"{name} ends before {begin:g} seconds; check `start`")
        return
    # After the last picture: it stays on screen for its own duration.
    last = seconds + (float(shown.duration * shown.time_base) if shown.duration else step)
    last = last if end is None else min(last, end)
    while target is not None and (fill or target < last - 1e-6):
        yield shown
        target = next(targets, None)


def _to_array(picture: Any, size: int | tuple[int, int] | None, gray: bool) -> np.ndarray:
    """Shrink, convert and rotate one decoded picture."""
    turns = round(getattr(picture, "rotation", 0) / 90) % 4
    height, width = picture.height, picture.width
    if isinstance(size, tuple):
        height, width = size if turns % 2 == 0 else size[::-1]
    elif size is not None and min(height, width) > size:
        scale = size / min(height, width)
        height, width = max(round(height * scale), size), max(round(width * scale), size)
    array = picture.to_ndarray(format="gray" if gray else "rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def _resampled(
    container: Any, stream: Any, sampling_rate: int, begin: float
) -> Iterator[tuple[float | None, np.ndarray]]:
    """Give (second of the clip at which the first piece begins, mono samples) for all sound from about `begin` on."""
    av = import_av()
    stream.thread_type = "AUTO"
    _seek(container, stream, begin - SOUND_PREROLL)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate)
    zero, first, gain = _zero(container), None, _mix_gain(stream.codec_context.layout.name)
    for frame in container.decode(stream):
        if first is None:
            first = begin if frame.time is None else frame.time - zero
        frame.pts = None  # pieces are counted here, so the resampler need not look at gaps between the stamps
        for piece in resampler.resample(frame):
            yield first, piece.to_ndarray()[0] * gain
    for piece in resampler.resample(None) if first is not None else ():
        yield first, piece.to_ndarray()[0] * gain


@functools.lru_cache
def _mix_gain(layout: str) -> np.float32:
    """Give the factor that brings a mix of all channels back to the loudness of one.

    FFmpeg's own mix (ITU-R BS.775: the centre, where films have their speech, counts more than the sides) keeps the
    power of independent channels in floating point, so that equal channels add up to more than 1.
    """
    av = import_av()
    channels = av.AudioLayout(layout).nb_channels
    ones = av.AudioFrame.from_ndarray(np.ones((1, 64 * channels), dtype=np.float32), format="flt", layout=layout)
    ones.sample_rate = 16000
    mixed = av.AudioResampler(format="flt", layout="mono", rate=16000).resample(ones)
    return np.float32(1) / mixed[0].to_ndarray()[0, 0]
