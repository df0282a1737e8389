"""Small media files as recorders, editors and accidents make them, by PyAV and edits of their bytes."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from clip_writer import write_clip


RATE = 16000


def frames(count, height=48, width=64):
    """Frames whose brightness rises by 4 from one to the next."""
    return (np.full((height, width, 3), 8 + index % 60 * 4, dtype=np.uint8) for index in range(count))


def tone(seconds=1.0, hertz=440.0, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def edit(path, *pairs):
    """Replace bytes, each with as many others."""
    content = path.read_bytes()
    for old, new in pairs:
        assert old in content and len(old) == len(new)
        content = content.replace(old, new)
    path.write_bytes(content)
    return path


def patch(path, offset, value, form="<I"):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)
    return path


def with_tags(path, title=b"caf\xe9 \x82\xb1\xff"):
    """A clip whose title is in latin-1, or in no encoding at all."""
    has_video = path.suffix in (".mp4", ".mkv", ".avi")
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Q" * len(title)
        codec = {".mp3": "libmp3lame", ".flac": "flac", ".wav": "pcm_s16le"}.get(path.suffix, "aac")
        video = container.add_stream("mpeg4", rate=10) if has_video else None
        audio = container.add_stream(codec, rate=RATE, layout="mono")
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for array in frames(10):
                container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(video.encode(None))
        sound(container, audio, tone())
    return edit(path, (b"Q" * len(title), title))


def sound(container, stream, samples, begin=0):
    """Encode mono samples that begin at a second of the clip."""
    encoder = stream.codec_context
    resampler = av.AudioResampler(encoder.format, encoder.layout, encoder.sample_rate, encoder.frame_size or None)
    frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, begin * RATE, Fraction(1, RATE)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def encode(path, codec, arrays=(), samples=None, rate=25, pix_fmt="yuv420p"):
    """A clip by any codec, with mono sound where `samples` are given (then `codec` may be that of the sound)."""
    arrays = list(arrays)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate) if arrays else None
        audio = None
        if samples is not None:
            audio = container.add_stream("mp2" if arrays else codec, rate=RATE, layout="mono")
        if video is not None:
            video.height, video.width, video.pix_fmt = *arrays[0].shape[:2], pix_fmt
            for array in arrays:
                container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(video.encode(None))
        if audio is not None:
            sound(container, audio, samples)
    return path


def two_tracks(path, begins=(0, 0), default=1, hertz=(440, 880)):
    """Audio tracks of which one is the default."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("aac", rate=RATE, layout="mono") for _ in hertz]
        for number, stream in enumerate(streams):
            kind = type(stream.disposition)
            stream.disposition = kind.default if number == default else kind(0)
        for stream, begin, height in zip(streams, begins, hertz, strict=True):
            sound(container, stream, tone(hertz=height), begin)
    return path


def late_audio(path, seconds=100_000):
    """A second of video, and audio that begins much later."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for array in frames(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(video.encode(None))
        sound(container, audio, tone(), seconds)
    return path


def joined(path, first, second):
    """Two recordings one after another, as joined by their bytes."""
    parts = []
    for number, options in enumerate((first, second)):
        part = path.with_name(f"part{number}-{path.name}")
        write_clip(part, **options)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def wav(path, samples=None, riff=None, data=None, offset=None, value=None, form="<I"):
    """A wav with other sizes in its header (differences from the true ones are negative or small), or another value."""
    write_clip(path, sound=tone() if samples is None else samples)
    content = path.read_bytes()
    place = content.index(b"data") + 4
    for where, size in ((4, riff), (place, data)):
        if size is not None:
            patch(path, where, size)
    return path if offset is None else patch(path, offset, value, form)


def damaged(path, share, count=100):
    """A clip in which a share of the video packets is overwritten."""
    write_clip(
        path, frames(count), tone(count / 25), options={"movflags": "faststart"} if path.suffix == ".mp4" else None
    )
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[10 : 10 + round(share * count)]:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def huge_png(path, side):
    """A video of one PNG picture that says it has `side` x `side` pixels."""
    header = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
    encode(path, "png", frames(3), pix_fmt="rgb24")
    small = struct.pack(">II5B", 64, 48, 8, 2, 0, 0, 0)
    checksums = [struct.pack(">I", zlib.crc32(b"IHDR" + one)) for one in (small, header)]
    return edit(path, (small + checksums[0], header + checksums[1]))
