"""Training from raw clips in which only the sound, or only the movement, distinguishes the intents."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from encoder_models import save_whisper
from transformers import AutoModel, BertModel, set_seed
from transformers import pipeline as make_pipeline
from utils import text_config

from amess_hf import (
    AMESSConfig,
    AMESSDataCollator,
    AMESSForIntentClassification,
    AMESSProcessor,
    IntentRecognitionPipeline,
    load_mintrec,
)


av = pytest.importorskip("av")

from clip_writer import write_clip
from encoder_models import save_speech_model
from mir_common import parse_arguments, run_for_each_seed

from amess_hf.clips_amess import read_audio
from amess_hf.data.clip_features import add_clip_features, clip_jobs
from amess_hf.data.dataset_files import find_clips


WORDS = "you are so kind"
RATE = 16000


def speak(path, high, generator):
    """The same words in a high or a low voice, at varying speed; a rising or falling tone where there is no espeak-ng."""
    if shutil.which("espeak-ng"):
        pitch, speed = generator.integers(*((85, 99) if high else (1, 15))), generator.integers(170, 230)
        spoken = path.with_suffix(".wav.tmp")
        subprocess.run(["espeak-ng", "-p", str(pitch), "-s", str(speed), "-w", spoken, WORDS], check=True)
        sound = read_audio(spoken, RATE)
        spoken.unlink()
    else:
        glide = np.linspace(300, 900, round(generator.uniform(0.8, 1.2) * RATE))[:: 1 if high else -1]
        sound = 0.4 * np.sin(2 * np.pi * np.cumsum(glide * generator.uniform(0.9, 1.1)) / RATE)
    return sound + generator.normal(0, 0.02, len(sound))


def draw(path, intent, evidence, generator):
    """
    A clip of about 1 s. Evidence in the sound: the voice. Evidence in the movement: a bright square goes right or left. The
    other modality is drawn at random, so that it says nothing.
    """
    heard = intent if evidence == "sound" else int(generator.integers(2))
    seen = intent if evidence == "movement" else int(generator.integers(2))
    sound = speak(path, heard, generator)
    count, top = round(len(sound) / RATE * 20), int(generator.integers(0, 32))
    frames = np.full((count, 64, 64, 3), 60, dtype=np.uint8)
    for index, left in enumerate(np.linspace(0, 44, count)[:: 1 if seen else -1].astype(int)):
        frames[index, top : top + 24, left : left + 20] = 220
    codec = "libx264" if generator.integers(2) else "mpeg4"
    write_clip(path, frames, sound, frame_rate=20, sampling_rate=RATE, video_codec=codec)


@pytest.fixture(scope="module", params=["sound", "movement"])
def corpus(request, tmp_path_factory):
    """A MIntRec folder with clips and no features; the words are always the same."""
    root = tmp_path_factory.mktemp(request.param)
    generator = np.random.default_rng(0)
    for season, (split, count) in enumerate([("train", 40), ("dev", 24)], start=1):
        folder = root / "raw_data" / f"S{season:02d}" / "E01"
        folder.mkdir(parents=True)
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        for number in range(count):
            draw(folder / f"{number}.mp4", number % 2, request.param, generator)
            label = ("Complain", "Praise")[number % 2]
            lines.append(f"S{season:02d}\tE01\t{number}\t{WORDS}\t{label}")
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return root


def train(splits, tokenizer):
    """A few epochs of a small model on the training clips."""
    set_seed(0)
    config = AMESSConfig(
        text_config=text_config(),
        audio_config={"feature_size": 80, "encoder": "log-mel"},
        video_config={"feature_size": 580, "encoder": "hog"},
        hidden_size=32,
        intermediate_size=64,
        num_fusion_layers=1,
        modality_dropout=0.0,
        id2label=dict(enumerate(splits["train"].features["label"].names)),
    )
    model = AMESSForIntentClassification(config)
    collator = AMESSDataCollator(tokenizer, config)
    rows = list(splits["train"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(30):
        for picked in torch.randperm(len(rows), generator=order).split(8):
            optimizer.zero_grad()
            model(**collator([rows[index] for index in picked])).loss.backward()
            optimizer.step()
    return model.eval(), collator


@pytest.mark.slow
def test_clips_train_a_model_and_the_pipeline_agrees_with_training(corpus, tokenizer, tmp_path):
    dataset = load_mintrec(corpus, cache_dir=tmp_path)
    splits = add_clip_features(dataset, "log-mel", "hog", data_dir=corpus)
    model, collator = train(splits, tokenizer)
    rows = list(splits["validation"])
    with torch.no_grad():
        logits = model(**{k: v for k, v in collator(rows).items() if k != "labels"}).logits
    accuracy = (logits.argmax(-1) == torch.tensor([row["label"] for row in rows])).float().mean()
    assert accuracy >= 0.95

    pipe = IntentRecognitionPipeline(model, AMESSProcessor.for_model(model.config, tokenizer).tokenizer, device="cpu")
    clips = find_clips(corpus)
    answers = pipe(
        [{"clip": str(clips[row["id"]]), "text": row["text"]} for row in rows[:6]], top_k=None, batch_size=4
    )
    for answer, expected in zip(answers, logits.softmax(-1), strict=False):
        found = {entry["label"]: entry["score"] for entry in answer}
        expected = dict(zip(model.config.id2label.values(), expected.tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-4)
    with torch.no_grad():
        batch = pipe.processor(text=[row["text"] for row in rows], clip=[str(clips[row["id"]]) for row in rows])
        torch.testing.assert_close(model(**batch).logits, logits, atol=1e-4, rtol=0)


@pytest.fixture
def few(tmp_path):
    """Three short clips and the data set of their paths, kept on disk as `load_mintrec` keeps it."""
    generator = np.random.default_rng(1)
    for number in range(3):
        draw(tmp_path / f"dia0_utt{number}.mp4", number % 2, "sound", generator)
    rows = [{"id": f"dia0_utt{number}", "text": WORDS, "label": 0} for number in range(3)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    return tmp_path, DatasetDict(train=Dataset.load_from_disk(str(tmp_path / "saved")))


class TestCache:
    def test_the_same_clips_are_encoded_once_and_a_change_is_noticed(self, few, monkeypatch):
        folder, dataset = few
        counts = []
        import amess_hf.data.clip_features as module

        _encode_jobs = module._encode_jobs

        def counted(jobs, *args):
            counts.append(len(jobs))
            return _encode_jobs(jobs, *args)

        monkeypatch.setattr(module, "_encode_jobs", counted)
        first = add_clip_features(dataset, "log-mel", "hog", data_dir=folder)["train"]
        again = add_clip_features(dataset, "log-mel", "hog", data_dir=folder)["train"]
        assert counts == [3]
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one["audio_features"], other["audio_features"])
            assert one["audio_features"].dtype == np.float32 and one["video_features"].shape[1] == 580
        (folder / "dia0_utt1.mp4").write_bytes((folder / "dia0_utt2.mp4").read_bytes())
        add_clip_features(dataset, "log-mel", "hog", data_dir=folder)
        assert counts == [3, 3]
        cut = add_clip_features(dataset, "log-mel", None, data_dir=folder, max_audio_length=5)["train"]
        assert "video_features" not in cut.column_names and cut[0]["audio_features"].shape == (5, 80)
        np.testing.assert_array_equal(cut[0]["audio_features"], first[0]["audio_features"][:5])

    def test_a_cache_that_is_cut_is_made_again(self, few, monkeypatch):
        folder, dataset = few
        said = []
        monkeypatch.setattr("amess_hf.data.clip_features.logger.warning", said.append)
        first = add_clip_features(dataset, "log-mel", data_dir=folder)["train"]
        expected, path = first.to_list(), Path(first.cache_files[0]["filename"])
        content = path.read_bytes()
        del first
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
        assert add_clip_features(dataset, "log-mel", data_dir=folder)["train"].to_list() == expected
        assert len(said) == 1 and said[0].startswith("the cache of the clips of train is damaged")

    def test_other_weights_in_the_folder_of_an_encoder(self, few, tmp_path):
        folder, dataset = few
        speech = save_speech_model(tmp_path / "encoder")
        first = add_clip_features(dataset, speech, data_dir=folder)["train"][0]["audio_features"]
        again = add_clip_features(dataset, speech, data_dir=folder)["train"][0]["audio_features"]
        np.testing.assert_array_equal(first, again)
        model = AutoModel.from_pretrained(speech)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        model.save_pretrained(speech)
        other = add_clip_features(dataset, speech, data_dir=folder)["train"][0]["audio_features"]
        assert not np.allclose(first, other)

    def test_without_encoders_nothing_changes(self, few):
        assert add_clip_features(few[1]) is few[1]


class TestClipJobs:
    def test_paths_spans_and_times_of_the_episode(self):
        own = {"id": "a", "clip": "a.mp4", "audio": "a.wav", "start": 1.0, "end": 2.0}
        cut = {"id": "b", "clip": "b.mp4", "start": 343.0, "end": 344.0, "dialogue_id": "0"}
        first, second = clip_jobs([own, cut])
        assert (first.audio, first.video, first.start, first.end) == ("a.wav", "a.mp4", 1.0, 2.0)
        assert (second.audio, second.video, second.start, second.end) == ("b.mp4", "b.mp4", None, None)

    def test_missing_clips_are_listed(self, tmp_path):
        rows = [{"id": f"S01_E01_{number}"} for number in range(10)]
        with pytest.raises(
            ValueError, match="no raw clip for 10 of 10 rows: S01_E01_0, .*S01_E01_7, ...; put the clips"
        ):
            clip_jobs(rows, tmp_path)

    def test_a_clip_that_cannot_be_read_is_named(self, few):
        folder, dataset = few
        (folder / "dia0_utt1.mp4").write_text("no clip")
        with pytest.raises(ValueError, match="clip dia0_utt1: .*dia0_utt1.mp4 cannot be decoded"):
            add_clip_features(dataset, "log-mel", data_dir=folder)

    def test_a_video_column_brings_its_sound(self):
        (job,) = clip_jobs([{"id": "a", "video": "a.mp4"}])
        assert (job.audio, job.video) == ("a.mp4", "a.mp4")

    def test_clips_that_cannot_be_read_are_left_out(self, few, caplog):
        folder, dataset = few
        (folder / "dia0_utt1.mp4").write_text("no clip")
        failures = {}
        for _ in range(2):  # the second time from the cache
            failures.clear()
            splits = add_clip_features(dataset, "log-mel", "hog", data_dir=folder, on_error="skip", failures=failures)
            assert splits["train"]["id"] == [clip for clip in dataset["train"]["id"] if clip != "dia0_utt1"]
            assert set(splits["train"].column_names) == {
                *dataset["train"].column_names,
                "audio_features",
                "video_features",
            }
            assert list(failures) == ["dia0_utt1"] and "cannot be decoded" in failures["dia0_utt1"]
            assert "1 clips cannot be used and are left out: dia0_utt1 (" in caplog.text
            caplog.clear()
        with pytest.raises(ValueError, match="`on_error` is 'ignore'; choose raise or skip"):
            add_clip_features(dataset, "log-mel", data_dir=folder, on_error="ignore")
        for clip in dataset["train"]["id"]:
            (folder / f"{clip}.mp4").write_text("no clip")
        with pytest.raises(ValueError, match="none of the clips of train can be used: .*cannot be decoded"):
            add_clip_features(dataset, "log-mel", data_dir=folder, on_error="skip")

    def test_rows_without_a_clip_are_left_out(self, corpus, tmp_path):
        clip = next(iter(find_clips(corpus).values()))
        rows = [("hello", "Greet", clip), ("hello", "Greet", "missing.mp4"), ("thanks", "Thank", "")]
        with open(tmp_path / "train.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label", "video"), *rows])
        with pytest.raises(ValueError, match="`video` missing.mp4 does not exist"):
            load_mintrec(tmp_path, name="folder")
        dataset = load_mintrec(tmp_path, name="folder", on_error="skip")
        with pytest.raises(ValueError, match="no raw clip for 1 of 3 rows: train-2"):
            add_clip_features(dataset, "log-mel")
        failures = {}
        encoded = add_clip_features(dataset, "log-mel", "hog", on_error="skip", failures=failures)
        assert encoded["train"]["id"] == ["train-0"] and len(encoded["train"][0]["audio_features"])
        assert list(failures) == ["train-1", "train-2"] and failures["train-2"] == "the row has no clip"
        assert "missing.mp4" in failures["train-1"]

    def test_layers_are_cached_apart(self, few, tmp_path):
        folder, dataset = few
        name = save_whisper(tmp_path / "whisper")
        first, second, again = (
            add_clip_features(dataset, name, data_dir=folder, audio_encoder_layer=layer)["train"][0]["audio_features"]
            for layer in (1, 2, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - second).max() > 0.1


@pytest.mark.slow
def test_bad_clips_do_not_stop_a_run(corpus, tokenizer, tmp_path):
    """`--on_error skip` trains on the others, and lists what was left out and why."""
    import run_mir

    folder = shutil.copytree(corpus, tmp_path / "data")
    dataset = load_mintrec(folder)
    bad, clips = dataset["train"]["id"][1], find_clips(folder)
    Path(clips[bad]).write_text("no clip")
    BertModel(text_config()).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    options = {
        "data_dir": folder, "audio_encoder": "log-mel", "text_model_name_or_path": tmp_path / "encoder",
        "output_dir": tmp_path / "run", "max_steps": 1, "hidden_size": 16, "projection_dim": 8, "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    flags = ["--do_train", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    with pytest.raises(ValueError, match=f"clip {bad}: .* cannot be decoded.*`on_error` skip continues without it"):
        run_for_each_seed(run_mir.run, *parse_arguments(flags))
    run_for_each_seed(run_mir.run, *parse_arguments([*flags, "--on_error", "skip"]))
    header, line = (tmp_path / "run" / "left_out.tsv").read_text().splitlines()
    assert header == "id\treason" and line.startswith(f"{bad}\t") and "cannot be decoded" in line
    asked = json.loads((tmp_path / "run" / "run.json").read_text())
    assert asked["train_clips"].startswith(f"{len(dataset['train']) - 1} clips, ")


@pytest.mark.slow
def test_one_command_from_clips_to_a_pipeline(corpus, tokenizer, tmp_path, monkeypatch):
    """`run_mir.py` with encoders trains on raw clips; the pipeline over what it saved gives the scores that it wrote."""
    import run_mir

    BertModel(text_config()).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    options = {
        "data_dir": corpus, "audio_encoder": "log-mel", "video_encoder": "hog",
        "text_model_name_or_path": tmp_path / "encoder", "output_dir": tmp_path / "run", "max_steps": 2,
        "hidden_size": 16, "projection_dim": 8, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    run_for_each_seed(run_mir.run, *parse_arguments(["--do_train", "--do_eval", *flags]))
    lines = (tmp_path / "run" / "predictions_dev.tsv").read_text().splitlines()[1:5]
    pipe = make_pipeline("intent-recognition", model=str(tmp_path / "run"), device="cpu")
    clips = find_clips(corpus)
    for clip, _, prediction, score in (line.split("\t") for line in lines):
        answer = pipe({"video": str(clips[clip]), "text": WORDS}, top_k=1)
        assert answer == [{"label": prediction, "score": pytest.approx(float(score), abs=1e-4)}]
