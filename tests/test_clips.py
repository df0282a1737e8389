"""Reading clips from every kind of source, with one clear error for anything that is not a clip."""

import io
import math
import re
import subprocess
import sys

import numpy as np
import pytest


av = pytest.importorskip("av")

from clip_writer import write_clip

from amess_hf.clips_amess import Clip, ClipError, clip_durations, iter_frames, read_audio, read_frames


def brightening(count, height=48, width=64):
    """Frames whose brightness rises in steps of 4, so that a frame's index (modulo 60) can be read off it."""
    for index in range(count):
        yield np.full((height, width, 3), index % 60 * 4 + 8, dtype=np.uint8)


def frame_indices(frames):
    return np.round((frames.mean(axis=(1, 2, 3)) - 8) / 4).astype(int).tolist()


def tone(seconds, hertz=440.0, sampling_rate=16000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * sampling_rate)) / sampling_rate)


def loudest_hertz(samples, sampling_rate):
    return np.fft.rfftfreq(len(samples), 1 / sampling_rate)[np.abs(np.fft.rfft(samples)).argmax()]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds, 25 frames a second, 440 Hz."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, brightening(50), tone(2.0))
    return path


class TestKindsOfFiles:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov"])
    def test_picture_and_sound(self, tmp_path, suffix):
        path = tmp_path / f"clip{suffix}"
        write_clip(path, brightening(50), tone(2.0, sampling_rate=48000), sampling_rate=48000)
        assert frame_indices(read_frames(path, frame_rate=5)) == list(range(0, 50, 5))
        samples = read_audio(path, 16000)
        assert len(samples) == pytest.approx(32000, abs=1200)  # codecs pad the last packet
        assert loudest_hertz(samples, 16000) == pytest.approx(440, abs=2)
        assert clip_durations(path) == pytest.approx({"audio": 2.0, "video": 2.0}, abs=0.1)

    @pytest.mark.parametrize("suffix", [".mp3", ".flac"])
    def test_audio_files(self, tmp_path, suffix):
        path = tmp_path / f"sound{suffix}"
        write_clip(path, sound=tone(1.0))
        samples = read_audio(path, 16000)
        assert samples.dtype == np.float32 and len(samples) == pytest.approx(16000, abs=1200)
        assert loudest_hertz(samples, 16000) == pytest.approx(440, abs=2)
        assert read_frames(path, frame_rate=5).shape == (0, 1, 1, 3)

    def test_sound_is_lossless_from_wav(self, tmp_path):
        given = np.random.default_rng(0).uniform(-0.9, 0.9, 4000)
        write_clip(tmp_path / "noise.wav", sound=given)
        np.testing.assert_allclose(read_audio(tmp_path / "noise.wav", 16000), given, atol=1 / 32768)


class TestSources:
    def test_bytes_file_objects_addresses_and_dataset_values(self, clip):
        class Decoded:  # what `datasets.Video()` gives: a decoder object that remembers where it came from
            _hf_encoded = {"path": str(clip), "bytes": None}

        expected = read_frames(clip, frame_rate=5)
        encoded = clip.read_bytes()
        with open(clip, "rb") as file:
            sources = [str(clip), encoded, io.BytesIO(encoded), file, f"file://{clip}", Decoded()]
            sources += [{"path": str(clip), "bytes": None}, {"path": None, "bytes": encoded}]
            for source in sources:
                np.testing.assert_array_equal(read_frames(source, frame_rate=5), expected)
                assert len(read_audio(source, 16000)) > 30000
            assert not file.closed
        import fsspec

        with fsspec.open("memory://clips/clip.mp4", "wb") as memory:
            memory.write(encoded)
        np.testing.assert_array_equal(read_frames("memory://clips/clip.mp4", frame_rate=5), expected)

    def test_number_of_frames(self, clip):
        # 2 s in 4 parts: the middles are 0.25, 0.75, 1.25, 1.75 s, hence frames 6, 18, 31, 43 (of 0.04 s each)
        assert frame_indices(read_frames(clip, num_frames=4)) == [6, 18, 31, 43]
        assert frame_indices(read_frames(clip.read_bytes(), num_frames=4)) == [6, 18, 31, 43]
        assert len(read_frames(clip, num_frames=77)) == 77

    def test_all_frames(self, clip):
        assert frame_indices(read_frames(clip)) == list(range(50))
        assert frame_indices(read_frames(clip, max_frames=3)) == [0, 1, 2]

    def test_size_and_gray(self, clip):
        assert read_frames(clip, num_frames=1, size=24).shape == (1, 24, 32, 3)
        assert read_frames(clip, num_frames=1, size=480).shape == (1, 48, 64, 3)
        assert read_frames(clip, num_frames=2, size=(16, 8), gray=True).shape == (2, 16, 8)


class TestSpans:
    def test_only_the_span(self, clip):
        assert frame_indices(read_frames(clip, frame_rate=5, start=0.8, end=1.4)) == [20, 25, 30]
        assert frame_indices(read_frames(clip, start=0.8, end=0.92)) == [20, 21, 22]
        assert len(read_audio(clip, 16000, start=0.5, end=1.25)) == 12000

    def test_sound_span_is_the_same_sound(self, tmp_path):
        given = np.random.default_rng(1).uniform(-0.9, 0.9, 16000 * 3)
        write_clip(tmp_path / "noise.wav", sound=given)
        span = read_audio(tmp_path / "noise.wav", 16000, start=1.5, end=2.0)
        np.testing.assert_allclose(span, given[24000:32000], atol=1 / 32768)
        np.testing.assert_allclose(read_audio(tmp_path / "noise.wav", 16000, start=2.5), given[40000:], atol=1 / 32768)

    @pytest.mark.slow
    def test_a_far_span_is_sought_and_not_decoded_through(self, tmp_path):
        path = tmp_path / "long.mp4"
        write_clip(path, brightening(50), tone(100), frame_rate=0.5, options={"g": "1"})
        assert frame_indices(read_frames(path, frame_rate=0.5, start=80, end=84)) == [40, 41]
        assert loudest_hertz(read_audio(path, 16000, start=80, end=81), 16000) == pytest.approx(440, abs=2)

    def test_bad_spans(self, clip):
        with pytest.raises(ClipError, match="`end` is 1.0"):
            Clip(clip, start=1.0, end=1.0)
        with pytest.raises(ClipError, match="`start` is -1"):
            Clip(clip, start=-1)
        with pytest.raises(ClipError, match=f"{re.escape(str(clip))} ends before 9 seconds"):
            read_frames(clip, frame_rate=5, start=9.0)


class TestUnusualClips:
    @pytest.mark.parametrize("frame_rate", [5, 23.976, 29.97, 60])
    def test_frame_rates(self, tmp_path, frame_rate):
        write_clip(tmp_path / "clip.mp4", brightening(round(frame_rate), 32, 32), frame_rate=frame_rate)
        indices = frame_indices(read_frames(tmp_path / "clip.mp4", frame_rate=10))
        seconds = round(frame_rate) / frame_rate  # a little more than 1 at the rates of broadcasting
        assert indices == [int(k / 10 * frame_rate + 1e-3) for k in range(math.ceil(seconds * 10 - 1e-6))]

    def test_variable_frame_rate(self, tmp_path):
        times = [0.0, 0.1, 0.5, 0.55, 0.6, 1.3, 1.35, 1.9]
        write_clip(tmp_path / "clip.mp4", brightening(len(times)), frame_times=times)
        indices = frame_indices(read_frames(tmp_path / "clip.mp4", frame_rate=5))
        on_screen = [max(i for i, t in enumerate(times) if t <= k / 5 + 1e-6) for k in range(len(indices))]
        assert indices == on_screen and len(indices) == 10

    @pytest.mark.parametrize(
        "rotation, row, column, shape", [(90, -1, 0, (64, 48)), (-90, 0, -1, (64, 48)), (180, -1, -1, (48, 64))]
    )
    def test_rotated(self, tmp_path, rotation, row, column, shape):
        picture = np.zeros((48, 64, 3), dtype=np.uint8)
        picture[:16, :16] = 255  # a white square in the upper left corner as stored
        write_clip(tmp_path / "clip.mp4", [picture] * 5, rotation=rotation)
        upright = read_frames(tmp_path / "clip.mp4", num_frames=1)[0]
        assert upright.shape == (*shape, 3)
        corners = {(r, c): upright[r, c].mean() for r in (0, -1) for c in (0, -1)}
        assert max(corners, key=corners.get) == (row, column)
        assert read_frames(tmp_path / "clip.mp4", num_frames=1, size=(20, 30)).shape == (1, 20, 30, 3)

    def test_a_phone_held_upright(self, tmp_path):
        """Phones write the matrix (0, 1, -1, 0): turned clockwise by a quarter, upper left becomes upper right."""
        picture = np.zeros((48, 64, 3), dtype=np.uint8)
        picture[:16, :16] = 255
        path = tmp_path / "clip.mp4"
        write_clip(path, [picture] * 5)
        data = path.read_bytes()
        one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
        identity = one + zero * 3 + one + zero * 3 + (1 << 30).to_bytes(4, "big")
        turned = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero * 4 + identity[-4:]
        head, track = data.split(b"tkhd", 1)
        path.write_bytes(head + b"tkhd" + track.replace(identity, turned, 1))
        upright = read_frames(path, num_frames=1)[0]
        assert upright.shape == (64, 48, 3) and upright[2, -3].mean() > 200 > 50 > upright[2, 2].mean()

    @pytest.mark.parametrize("height, width", [(35, 51), (33, 64), (48, 17)])
    def test_odd_sizes(self, tmp_path, height, width):
        write_clip(tmp_path / "clip.mp4", brightening(10, height, width))
        frames = read_frames(tmp_path / "clip.mp4")
        assert frames.shape == (10, height, width, 3) and frame_indices(frames) == list(range(10))

    @pytest.mark.parametrize("sampling_rate", [8000, 11025, 22050, 44100, 48000])
    def test_sampling_rates(self, tmp_path, sampling_rate):
        write_clip(tmp_path / "sound.wav", sound=tone(1.0, 440, sampling_rate), sampling_rate=sampling_rate)
        samples = read_audio(tmp_path / "sound.wav", 16000)
        assert len(samples) == pytest.approx(16000, abs=40)
        assert loudest_hertz(samples, 16000) == pytest.approx(440, abs=2)

    @pytest.mark.parametrize("channels", [1, 2, 6])
    @pytest.mark.parametrize("suffix", [".wav", ".mp4"])
    def test_channels_are_mixed(self, tmp_path, channels, suffix):
        sound = np.stack([tone(1.0, 440)] * channels)
        write_clip(tmp_path / f"sound{suffix}", sound=sound)
        samples = read_audio(tmp_path / f"sound{suffix}", 16000)
        assert samples.ndim == 1 and loudest_hertz(samples, 16000) == pytest.approx(440, abs=2)
        assert np.abs(samples[2000:14000]).max() == pytest.approx(0.5, rel=0.05)

    def test_one_ear(self, tmp_path):
        write_clip(tmp_path / "sound.wav", sound=np.stack([tone(1.0, 440), np.zeros(16000)]))
        assert np.abs(read_audio(tmp_path / "sound.wav", 16000)).max() == pytest.approx(0.25, rel=0.02)

    def test_audio_alone_and_video_alone(self, tmp_path):
        write_clip(tmp_path / "voice.mp4", sound=tone(1.0))
        write_clip(tmp_path / "mute.mp4", brightening(10))
        assert len(read_audio(tmp_path / "voice.mp4", 16000)) > 15000
        assert len(read_frames(tmp_path / "voice.mp4", frame_rate=5)) == 0
        assert len(read_frames(tmp_path / "voice.mp4", num_frames=5)) == 0
        assert read_audio(tmp_path / "mute.mp4", 16000).shape == (0,)
        assert [list(clip_durations(tmp_path / name)) for name in ("voice.mp4", "mute.mp4")] == [["audio"], ["video"]]

    def test_sound_that_begins_late_is_preceded_by_silence(self, tmp_path):
        path = tmp_path / "clip.mkv"
        with av.open(str(path), "w") as container:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
            for _ in range(20):
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
            container.mux(video.encode(None))
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 16384, dtype=np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 16000  # begins at 1 s
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
        samples = read_audio(path, 16000)
        assert len(samples) == pytest.approx(24000, abs=40)
        assert np.abs(samples[:15900]).max() == 0 and samples[16100:23900].min() == pytest.approx(0.5, abs=1e-3)
        np.testing.assert_allclose(read_audio(path, 16000, start=0.75), samples[12000:], atol=1e-6)

    def test_cover_picture_is_no_video(self, tmp_path):
        path = tmp_path / "song.mp3"
        with av.open(str(path), "w") as container:
            audio = container.add_stream("libmp3lame", rate=16000, layout="mono")
            cover = container.add_stream("mjpeg")
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24").reformat(format="yuvj420p")
            container.mux(cover.encode(picture))
            container.mux(cover.encode(None))
            frame = av.AudioFrame.from_ndarray(tone(1.0)[None].astype(np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            for piece in av.AudioResampler("s16p", "mono", 16000, audio.codec_context.frame_size).resample(frame):
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
        assert "video" not in clip_durations(path)
        assert len(read_frames(path, frame_rate=5)) == 0
        assert len(read_audio(path, 16000)) > 10000


LONG_CLIP = """
import resource, sys
import numpy as np
from amess_hf.clips_amess import iter_frames, read_audio
from amess_hf.encoders_amess import HOGEncoder, LogMelEncoder
import av

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

idle = peak()
count = sum(1 for _ in iter_frames(sys.argv[1], frame_rate=2, size=224))
samples = read_audio(sys.argv[1], 16000)
heard = LogMelEncoder()([samples])[0]
seen = HOGEncoder()([iter_frames(sys.argv[1], **HOGEncoder().reading)])[0]
print(count, len(samples), len(heard), len(seen), peak() - idle)
"""


@pytest.mark.slow
def test_ten_minutes_in_bounded_memory(tmp_path):
    path = tmp_path / "long.mp4"
    still = np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)
    sound = np.tile(tone(1.0, sampling_rate=8000), 600)
    write_clip(path, (still for _ in range(600)), sound, 1, sampling_rate=8000, video_codec="mpeg4")
    done = subprocess.run([sys.executable, "-c", LONG_CLIP, str(path)], capture_output=True, text=True, check=True)
    count, samples, heard, seen, megabytes = done.stdout.split()
    assert int(heard) == pytest.approx(30000, abs=10) and int(seen) == 6000
    assert int(count) == 1200 and int(samples) == pytest.approx(600 * 16000, rel=1e-3)
    assert float(megabytes) < 500  # all frames at full size would be 830 MB


class TestWhatIsNoClip:
    def check(self, path, message):
        for read in (lambda: read_frames(path, frame_rate=5), lambda: read_audio(path, 16000)):
            with pytest.raises(ClipError, match=message) as caught:
                read()
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "does not exist"),
            ("", "is empty; copy"),
            ("This is a text.\n" * 100, "cannot be decoded"),
            ("1\n00:00:00,000 --> 00:00:01,000\nHello\n", "cannot be decoded|neither audio nor video"),
            # A clip names no other file: otherwise an uploaded "mp4" could make this machine read any address.
            ("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n", "cannot be decoded"),
            ("ffconcat version 1.0\nfile '{clip}'\n", "cannot be decoded"),
        ],
    )
    def test_no_media_file(self, tmp_path, clip, content, message):
        if content is not None:
            (tmp_path / "clip.mp4").write_text(content.format(clip=clip))
        self.check(tmp_path / "clip.mp4", message)

    def test_folder(self, tmp_path):
        self.check(tmp_path, "is a folder")

    @pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}], ids=["index last", "index first"])
    def test_truncated_mp4(self, tmp_path, options):
        noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
        whole = tmp_path / "whole.mp4"
        write_clip(whole, noise, tone(4.0), options=options)
        assert len(read_frames(whole, frame_rate=5)) == 20
        path = tmp_path / "clip.mp4"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        self.check(path, "cannot be decoded|is cut short")

    @pytest.mark.parametrize("suffix", [".mkv", ".wav", ".flac"])
    def test_truncated_others(self, tmp_path, suffix):
        whole = tmp_path / f"whole{suffix}"
        write_clip(whole, None, np.random.default_rng(0).uniform(-1, 1, 64000))
        path = tmp_path / f"clip{suffix}"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ClipError, match=re.escape(str(path))):
            read_audio(path, 16000)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("memory://nowhere.mp4", "memory://nowhere.mp4 does not exist"),
            (7, "not int"),
            (b"abc", "given as 3 bytes cannot be decoded"),
            (b"", "given as 0 bytes is empty"),
        ],
    )
    def test_other_sources(self, source, message):
        with pytest.raises(ClipError, match=message):
            read_audio(source, 16000)

    def test_closing_early_leaves_no_open_file(self, clip):
        frames = iter_frames(str(clip), frame_rate=5)
        next(frames)
        frames.close()
        clip.rename(clip)


class TestArrays:
    def read(self, samples, rate, wanted):
        return Clip.from_row({"audio": np.array(samples), "sampling_rate": rate}).read_audio(wanted)

    def test_rates_and_channels(self):
        samples = self.read(np.stack([tone(1.0, 440, 48000)] * 2), 48000, 16000)
        assert samples.shape == pytest.approx((16000,), abs=40) and samples.dtype == np.float32
        assert loudest_hertz(samples, 16000) == pytest.approx(440, abs=2)
        np.testing.assert_allclose(self.read([[0.5, 0.0], [1.0, 0.5], [0.0, 0.0]], 8, 8), [0.25, 0.75, 0])
        np.testing.assert_allclose(self.read(np.array([16384, -32768], np.int16), 8000, 8000), [0.5, -1.0])

    def test_wrong_shape(self):
        with pytest.raises(ClipError, match=r"shape \(1, 2, 3\)"):
            self.read(np.zeros((1, 2, 3)), 8000, 16000)
