"""Write small clips, so that the tests, the benchmark and the demo have real media files without shipping any."""

import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from amess_hf.clips_amess import import_av


# Sound codec and sample format for each kind of file; the picture is H.264 (VP9 in webm) by default.
SOUND_CODECS = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".flac": "flac", ".webm": "libopus"}


def write_clip(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray] | None = None,
    sound: np.ndarray | None = None,
    frame_rate: float = 25,
    sampling_rate: int = 16000,
    frame_times: Iterable[float] | None = None,
    rotation: int = 0,
    video_codec: str | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """
    Encodes frames and sound into a media file; the format follows the file extension.

    Args:
        path: Where to write.
        frames (iterable of `np.ndarray`, *optional*): `uint8`, shape `(height, width, 3)`.
        sound (`np.ndarray`, *optional*): `float` in [-1, 1], shape `(samples,)`, `(channels, samples)` with 2 or 6
            channels (stereo, 5.1).
        frame_rate (`float`): Frames a second.
        sampling_rate (`int`): Samples a second.
        frame_times (iterable of `float`, *optional*): Second at which each frame is shown, for a varying frame rate.
        rotation (`int`): Degrees, counter-clockwise, that a player has to turn the picture by.
        video_codec (`str`, *optional*): FFmpeg's name of an encoder, by default `libx264` or, in webm, `libvpx-vp9`.
        options (`dict`, *optional*): Options of the container, e.g. `{"movflags": "faststart"}`.
    """
    av = import_av()
    suffix = os.path.splitext(path)[1].lower()
    with av.open(os.fspath(path), "w", options=options or {}) as container:
        pictures = iter(frames) if frames is not None else iter(())
        first = next(pictures, None)
        video = audio = None
        if first is not None:
            codec = video_codec or ("libvpx-vp9" if suffix == ".webm" else "libx264")
            video = _add_picture(container, codec, first, frame_rate, rotation)
        if sound is not None:
            sound = np.atleast_2d(np.asarray(sound, dtype=np.float32))
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream(SOUND_CODECS.get(suffix, "aac"), rate=sampling_rate, layout=layout)
        if video is not None:
            times = iter(frame_times) if frame_times is not None else None
            _encode_picture(container, video, first, pictures, frame_rate, times)
        if audio is not None:
            _encode_sound(container, audio, sound, layout, sampling_rate)


def _add_picture(container: Any, codec: str, first: np.ndarray, frame_rate: float, rotation: int) -> Any:
    stream = container.add_stream(codec, rate=Fraction(frame_rate).limit_denominator(1001))
    stream.height, stream.width = first.shape[:2]
    odd = first.shape[0] % 2 or first.shape[1] % 2
    stream.pix_fmt = "yuv444p" if odd and codec == "libx264" else "yuv420p"  # chroma subsampling needs even sizes
    stream.codec_context.time_base = Fraction(1, 12800)
    if rotation:
        stream.set_display_rotation(rotation)
    return stream


def _encode_picture(container: Any, stream: Any, first: Any, rest: Any, frame_rate: float, times: Any) -> None:
    av = import_av()
    index, array = 0, first
    while array is not None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
        seconds = index / frame_rate if times is None else next(times)
        frame.time_base = Fraction(1, 12800)
        frame.pts = round(seconds * 12800)
        container.mux(stream.encode(frame))
        index, array = index + 1, next(rest, None)
    container.mux(stream.encode(None))


def _encode_sound(container: Any, stream: Any, sound: np.ndarray, layout: str, sampling_rate: int) -> None:
    av = import_av()
    # Codecs differ in the samples and rates they take (Opus only 48 kHz); the resampler knows what this one wants.
    encoder = stream.codec_context
    resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate, encoder.frame_size or None)
    for begin in range(0, sound.shape[1], sampling_rate):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound[:, begin : begin + sampling_rate]), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts, frame.time_base = sampling_rate, begin, Fraction(1, sampling_rate)
        for piece in resampler.resample(frame):
            container.mux(stream.encode(piece))
    for piece in resampler.resample(None):
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))
