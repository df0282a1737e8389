"""Whatever comes out of a decoder is a clip, or a `ClipError` that names it: odd recordings, limits, mutated files."""

import resource
import time

import numpy as np
import pytest


av = pytest.importorskip("av")

from clip_writer import write_clip
from odd_clips import (
    RATE,
    damaged,
    edit,
    encode,
    frames,
    huge_png,
    joined,
    late_audio,
    tone,
    two_tracks,
    wav,
    with_tags,
)

from amess_hf.clips_amess import ClipError, clip_durations, read_audio, read_frames


STEREO = {"sound": np.stack([tone(rate=44100)] * 2), "sampling_rate": 44100}


def read(path, **span):
    return len(read_frames(path, frame_rate=10, **span)), len(read_audio(path, RATE, **span)) / RATE


class TestWhatIsRead:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".wav", ".mp3", ".flac"])
    def test_tags_in_any_bytes(self, tmp_path, suffix):
        count, seconds = read(with_tags(tmp_path / f"clip{suffix}"))
        assert count >= 10 * (suffix in (".mp4", ".mkv", ".avi")) and seconds == pytest.approx(1, abs=0.1)

    def test_a_codec_that_is_not_known_beside_a_good_one(self, tmp_path):
        write_clip(tmp_path / "clip.mkv", frames(20), tone())
        assert read(edit(tmp_path / "clip.mkv", (b"A_AAC", b"A_AAX"))) == (8, 0)

    @pytest.mark.parametrize("suffix", [".mp3", ".aac"])
    def test_rate_and_layout_change(self, tmp_path, suffix):
        path = joined(tmp_path / f"clip{suffix}", {"sound": tone()}, STEREO)
        assert read(path)[1] == pytest.approx(2, abs=0.2)
        assert np.abs(read_audio(path, RATE)[RATE // 2 :]).max() == pytest.approx(0.5, abs=0.1)

    def test_the_picture_size_changes(self, tmp_path):
        path = joined(tmp_path / "clip.h264", {"frames": frames(20)}, {"frames": frames(20, 96, 128)})
        assert read_frames(path, frame_rate=10).shape == (16, 48, 64, 3)
        assert read_frames(path, frame_rate=10, size=24).shape == (16, 24, 32, 3)

    @pytest.mark.parametrize(
        "sizes",
        [
            {"riff": 32044}, {"data": 32008}, {"riff": 0, "data": 0}, {"riff": 0xFFFFFFFF, "data": 0xFFFFFFFF},
            {"riff": 0x7FFFF024, "data": 0x7FFFF000}, {"riff": 32036 + (200 << 24), "data": 32000 + (200 << 24)},
        ],
    )  # fmt: skip
    def test_sizes_in_a_wav(self, tmp_path, sizes):
        assert read(wav(tmp_path / "clip.wav", **sizes)) == (0, 1)

    @pytest.mark.parametrize(("name", "codec"), [("a.mpg", "mpeg1video"), ("a.vob", "mpeg2video")])
    def test_a_program_stream_from_the_middle(self, tmp_path, name, codec, caplog):
        path = encode(tmp_path / name, codec, frames(50), tone(2.0))
        assert read(path, start=1.0) == (11, pytest.approx(1, abs=0.1)) and not caplog.text

    def test_flac_in_ogg_from_the_middle(self, tmp_path):
        sweep = np.sin(2 * np.pi * np.cumsum(np.linspace(200, 2000, 4 * RATE)) / RATE) / 2
        path = encode(tmp_path / "a.oga", "flac", samples=sweep)
        np.testing.assert_allclose(read_audio(path, RATE, start=1.0), sweep[RATE:], atol=1e-3)

    @pytest.mark.parametrize("suffix", [".mp4", ".ts"])
    def test_some_packets_are_damaged(self, tmp_path, suffix, caplog):
        path = damaged(tmp_path / f"clip{suffix}", 0.05)
        assert read(path)[0] in (40, 41)
        assert caplog.text.count(f"{path} is damaged: 5.") == 1 and "% of its video cannot be decoded" in caplog.text
        with pytest.raises(ClipError, match=r"is damaged: \d\d.\d% of its video cannot be decoded"):
            read(damaged(path, 0.3))

    @pytest.mark.parametrize("default", [0, 1])
    def test_the_default_track(self, tmp_path, default):
        samples = read_audio(two_tracks(tmp_path / "clip.mkv", default=default), RATE)
        assert np.abs(np.fft.rfft(samples[:RATE])).argmax() == (440, 880)[default]

    @pytest.mark.parametrize(
        ("suffix", "codec"), [(".au", "pcm_s16be"), (".caf", "pcm_s16le"), (".wv", "wavpack"), (".w64", "pcm_s16le")]
    )
    def test_formats_of_audio(self, tmp_path, suffix, codec):
        assert read(encode(tmp_path / f"clip{suffix}", codec, samples=tone())) == (0, 1)

    def test_more_formats(self, tmp_path):
        assert read(encode(tmp_path / "clip.gif", "gif", frames(20), pix_fmt="rgb8")) == (8, 0)
        (tmp_path / "clip.amr").write_bytes(b"#!AMR\n" + bytes([0x3C] + [0] * 31) * 50)
        assert read(tmp_path / "clip.amr") == (0, 1)

    def test_a_clock_that_does_not_begin_at_zero(self, tmp_path):
        assert read(two_tracks(tmp_path / "clip.mkv", (100_000, 100_000)))[1] == pytest.approx(1, abs=0.1)
        assert read(late_audio(tmp_path / "late.mkv"), start=0.0, end=0.5) == (5, 0.5)


def one_late_frame(path):
    write_clip(path, frames(3), frame_times=[0, 0.04, 2e6])
    return path


NO_NUMBERS = np.where(np.arange(RATE) == 100, np.nan, tone())
REFUSED = {
    "an unknown codec": (lambda path: wav(path, offset=20, value=0x1234, form="<H"), ".wav", "that can be decoded"),
    "65,535 channels": (lambda path: wav(path, offset=22, value=65535, form="<H"), ".wav", "cannot be decoded"),
    "one sample per second": (lambda path: wav(path, offset=24, value=1), ".wav", "has 1 samples per second"),
    "a wav that is cut": (lambda path: wav(path, data=64000), ".wav", "is cut short: 32000 of its 64000 bytes"),
    "NaN": (lambda path: encode(path, "pcm_f32le", samples=NO_NUMBERS), ".wav", "samples that are no numbers"),
    "late audio": (lambda path: late_audio(path), ".mkv", "begins 100000 seconds late"),
    "a late frame": (one_late_frame, ".mkv", "is longer than 600 seconds"),
    "large frames": (lambda path: huge_png(path, 16_000), ".avi", "more than 33,000,000 pixels"),
    "no media": (lambda path: path.write_bytes(b"abc" * 999) and path, ".mp4", "cannot be decoded"),
    "nothing": (lambda path: path.write_bytes(b"") or path, ".mp4", "is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    make, suffix, message = REFUSED[name]
    path = make(tmp_path / f"clip{suffix}")
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClipError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert time.monotonic() - begin < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


CASES, SEED = 300, 0


def mutated(content, generator):
    """A file with some bytes changed, a part left out, moved or doubled, or numbers set to extremes."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        at, size = int(generator.integers(len(content))), int(generator.integers(1, 400))
        kind = generator.integers(6)
        if kind == 0:
            content[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            content[at : at + 4] = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1")[
                generator.integers(4)
            ]
        elif kind == 2:
            content[at : at + size] = generator.bytes(size)
        elif kind == 3 and len(content) > 1000:
            del content[at : at + size]
        elif kind == 4:
            content[at:at] = content[at : at + size]
        else:  # the header, where it hurts most
            content[int(generator.integers(min(200, len(content))))] = int(generator.integers(256))
    return bytes(content)


def test_mutated_clips(tmp_path):
    """Nothing but `ClipError`, at most 200 MB above the baseline and 5 s."""
    makers = [
        lambda path: write_clip(path.with_suffix(".mp4"), frames(12), tone(0.5)) or path.with_suffix(".mp4"),
        lambda path: write_clip(path.with_suffix(".mkv"), frames(12), tone(0.5)) or path.with_suffix(".mkv"),
        lambda path: write_clip(path.with_suffix(".ts"), frames(12), tone(0.5)) or path.with_suffix(".ts"),
        lambda path: write_clip(path.with_suffix(".webm"), frames(12), tone(0.5)) or path.with_suffix(".webm"),
        lambda path: with_tags(path.with_suffix(".avi")),
        lambda path: with_tags(path.with_suffix(".flac")),
        lambda path: wav(path.with_suffix(".wav"), samples=tone(0.2)),
        lambda path: encode(path.with_suffix(".mpg"), "mpeg1video", frames(12), tone(0.5)),
    ]
    originals = [make(tmp_path / "clip").read_bytes() for make in makers]
    for content in originals:
        read_all(content)
    baseline, generator = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, np.random.default_rng(SEED)
    slowest = refused = 0.0
    for case in range(CASES):
        content = mutated(originals[case % len(originals)], generator)
        begin = time.process_time()
        try:
            read_all(content)
        except ClipError:
            refused += 1
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 5 and 0.1 * CASES < refused < 0.95 * CASES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline < 200 * 1024


def read_all(content):
    clip_durations(content)
    for array in (read_frames(content, frame_rate=10, size=32), read_audio(content, RATE)):
        assert np.isfinite(array).all()
