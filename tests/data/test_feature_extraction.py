"""Extraction: what it writes is read back, nothing is lost or doubled by a kill, and failures are reported."""

import os
import signal

import numpy as np
import pytest

from amess_hf import load_mintrec
from amess_hf.data.feature_files import SafetensorsFeatures
from amess_hf.encoders_amess import HOGEncoder, LogMelEncoder


av = pytest.importorskip("av")

from clip_writer import write_clip
from encoder_models import save_speech_model

from amess_hf.clips_amess import read_audio, read_frames
from amess_hf.data import clip_features
from amess_hf.data.clip_features import extract_features, read_jobs


ENCODERS = {"audio_encoder": "log-mel", "video_encoder": "hog"}
TRAIN, DEV = 18, 3  # more than a batch of 16


@pytest.fixture
def corpus(tmp_path):
    generator = np.random.default_rng(0)
    for season, (split, count) in enumerate([("train", TRAIN), ("dev", DEV)], start=1):
        folder = tmp_path / "data" / "raw_data" / f"S{season:02d}" / "E01"
        folder.mkdir(parents=True)
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for number in range(count):
            frames = generator.integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
            write_clip(folder / f"{number}.mp4", frames, generator.uniform(-0.5, 0.5, 4000), frame_rate=10)
            lines.append(f"S{season:02d}\tE01\t{number}\thello\tComplain")
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def check_complete(corpus, tmp_path, count=TRAIN + DEV):
    """Every clip is there once, as a direct encoding has it, and nothing else is left behind."""
    for modality, encoder in (("audio", "log-mel"), ("video", "hog")):
        features = SafetensorsFeatures(corpus / f"{modality}_data" / encoder)
        ids = list(features)
        assert len(ids) == len(set(ids)) == count
        assert ids[:3] == ["S01_E01_0", "S01_E01_1", "S01_E01_2"]
    assert not [path for path in corpus.rglob("*") if path.name.startswith(".")]
    splits = load_mintrec(corpus, cache_dir=tmp_path / "cache")
    for row in (splits["train"][5], splits["validation"][2]):
        clip = row["clip"]
        np.testing.assert_allclose(row["audio_features"], LogMelEncoder()([read_audio(clip, 16000)])[0], atol=1e-6)
        frames = read_frames(clip, **HOGEncoder().reading)
        np.testing.assert_allclose(row["video_features"], HOGEncoder()([frames])[0], atol=1e-6)


def test_what_it_writes_is_read_back_and_added_to(corpus, tmp_path, capsys):
    table = (corpus / "dev.tsv").read_text()
    (corpus / "dev.tsv").write_text("\n".join(table.splitlines()[:2]) + "\n")
    assert extract_features(corpus, **ENCODERS) == {}
    output = capsys.readouterr()
    assert "19 of 19 clips are in" in output.out and "Encoding clips: 100%" in output.err
    (corpus / "dev.tsv").write_text(table)
    assert extract_features(corpus, **ENCODERS) == {}
    check_complete(corpus, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in corpus.rglob("*.safetensors")}
    assert extract_features(corpus, **ENCODERS) == {}
    assert "21 of 21 clips are already encoded" in capsys.readouterr().out
    assert written == {path: path.stat().st_mtime_ns for path in corpus.rglob("*.safetensors")}


def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment):
    """Makes the extraction kill itself at a moment."""
    if moment == "encoding":
        write_part = clip_features._write_part

        def write_and_die(parts, clips, modalities):
            write_part(parts, clips, modalities)
            (parts / ".cut.safetensors.partial").write_bytes(b"half a part")
            kill()

        clip_features._write_part = write_and_die
    elif moment == "joining":
        write_features = clip_features.write_features

        def join_and_die(entries, out, **kwargs):
            write_features(entries, out, **kwargs)
            (out.parent / f".{out.name}.cut.partial").mkdir()  # as a kill a little earlier leaves it
            kill()

        clip_features.write_features = join_and_die
    else:
        clip_features.shutil.rmtree = lambda path, **_: kill() if ".parts" in str(path) else None


@pytest.mark.parametrize("moment", ["encoding", "joining", "clearing up"])
def test_killed_and_started_again(corpus, tmp_path, moment):
    read_jobs(corpus)  # the tables are in the cache before the fork
    process = os.fork()
    if process == 0:
        signal.alarm(120)
        arm(moment)
        extract_features(corpus, **ENCODERS)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert list(corpus.glob(".parts-*/*.safetensors"))
    extract_features(corpus, **ENCODERS)
    check_complete(corpus, tmp_path)


def test_killed_between_taking_away_and_putting_there(corpus, tmp_path):
    extract_features(corpus, **ENCODERS)
    folder = corpus / "audio_data" / "log-mel"
    folder.rename(folder.with_name(".log-mel.old"))
    extract_features(corpus, **ENCODERS)
    check_complete(corpus, tmp_path)


def test_two_at_a_time(corpus, tmp_path, monkeypatch):
    """The second is refused, and the first is not disturbed."""
    write_part = clip_features._write_part

    def write_while_another_begins(*args):
        with pytest.raises(ValueError, match=f"another extraction is writing into {corpus}; wait for it"):
            extract_features(corpus, **ENCODERS)
        write_part(*args)

    monkeypatch.setattr(clip_features, "_write_part", write_while_another_begins)
    extract_features(corpus, **ENCODERS)
    check_complete(corpus, tmp_path)


def test_features_of_other_weights_are_not_added_to(corpus, tmp_path):
    """An encoder in a local folder is known by what the folder holds."""
    encoder = save_speech_model(tmp_path / "speech")
    extract_features(corpus, audio_encoder=encoder)
    extract_features(corpus, audio_encoder=encoder)
    config = tmp_path / "speech" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match="speech: `audio_encoder` was .* remove the folder, or choose another"):
        extract_features(corpus, audio_encoder=encoder)


def test_clips_that_cannot_be_read(corpus, tmp_path, capsys):
    """They stop the extraction, or are left out and listed; a mended clip is added."""
    bad = corpus / "raw_data" / "S01" / "E01" / "7.mp4"
    good = bad.read_bytes()
    bad.write_text("no clip")
    with pytest.raises(ValueError, match=r"clip S01_E01_7: .*7.mp4 .*`on_error` skip"):
        extract_features(corpus, **ENCODERS)
    assert not (corpus / "audio_data").exists()
    assert list(extract_features(corpus, **ENCODERS, on_error="skip")) == ["S01_E01_7"]
    assert "20 of 21 clips" in capsys.readouterr().out
    header, line = (corpus / "failed_clips.tsv").read_text().splitlines()
    assert header == "id\treason" and line.startswith("S01_E01_7\t") and "cannot be decoded" in line
    assert "S01_E01_7" not in SafetensorsFeatures(corpus / "audio_data" / "log-mel")
    bad.write_bytes(good)
    assert extract_features(corpus, **ENCODERS) == {}
    assert not (corpus / "failed_clips.tsv").exists()
    check_complete(corpus, tmp_path)


def test_a_listed_id_is_no_formula(tmp_path):
    clip_features._report(tmp_path, {}, 1, {"=1+1": "cannot be decoded"})
    assert (tmp_path / "failed_clips.tsv").read_text() == "id\treason\n'=1+1\tcannot be decoded\n"


class TestTable:
    def test_spans_of_one_file(self, tmp_path):
        generator = np.random.default_rng(0)
        write_clip(
            tmp_path / "film.mkv", generator.integers(0, 255, (30, 16, 16, 3), dtype=np.uint8), None, frame_rate=10
        )
        write_clip(tmp_path / "film.wav", sound=generator.uniform(-0.5, 0.5, 48000))
        rows = ["id,video,audio,start,end", "a,film.mkv,film.wav,0.5,1.5", "b,film.mkv,film.wav,1.5,2.0"]
        (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
        options = {"table": tmp_path / "clips.csv", "output_dir": tmp_path / "out", "dtype": "float16"}
        extract_features(tmp_path, **options, **ENCODERS)
        audio = SafetensorsFeatures(tmp_path / "out" / "audio_data" / "log-mel")
        video = SafetensorsFeatures(tmp_path / "out" / "video_data" / "hog")
        assert [len(video[clip]) for clip in "ab"] == [10, 5] and [len(audio[clip]) for clip in "ab"] == [49, 24]
        expected = LogMelEncoder()([read_audio(tmp_path / "film.wav", 16000, 1.5, 2.0)])[0]
        np.testing.assert_allclose(audio["b"], expected, atol=2e-3)

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(ValueError, match="`audio_encoder` and `video_encoder` are both missing"):
            extract_features(tmp_path)
        (tmp_path / "clips.csv").write_text("id,clip\na,\n")
        (tmp_path / "spans.csv").write_text("id,clip,start\na,film.mkv,soon\n")
        for table, message in (
            ("clips.csv", "no path in `clip`"),
            ("spans.csv", "'soon' is not a time"),
            ("x.txt", "not a .csv"),
        ):
            with pytest.raises(ValueError, match=message):
                extract_features(tmp_path, table=tmp_path / table, audio_encoder="log-mel")
