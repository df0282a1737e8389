"""Training from raw clips in which only the sound, or only the movement, distinguishes the intents."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from encoder_models import save_whisper
from transformers import AutoModel, BertModel, set_seed
from transformers import pipeline as make_pipeline
from utils import text_config

from amess_hf import AMESSConfig, AMESSDataCollator, AMESSForIntentClassification, load_mintrec


av = pytest.importorskip("av")

from clip_writer import write_clip

from amess_hf.data.clip_features import add_clip_features, clip_jobs
from amess_hf.data.dataset_files import find_clips


WORDS = "you are so kind"
RATE = 16000


def draw(path, intent, evidence, generator):
    """
    A clip of about 1 s. Evidence in the sound: a rising or falling tone. Evidence in the movement: a bright square goes right or left. The
    other modality is drawn at random, so that it says nothing.
    """
    rising = intent if evidence == "sound" else int(generator.integers(2))
    seen = intent if evidence == "movement" else int(generator.integers(2))
    glide = np.linspace(300, 900, round(generator.uniform(0.8, 1.2) * RATE))[:: 1 if rising else -1]
    sound = 0.4 * np.sin(2 * np.pi * np.cumsum(glide * generator.uniform(0.9, 1.1)) / RATE)
    sound += generator.normal(0, 0.02, len(sound))
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


@pytest.mark.slow
def test_a_model_learns_from_clips(corpus, tokenizer, tmp_path):
    splits = add_clip_features(load_mintrec(corpus, cache_dir=tmp_path), "log-mel", "hog", data_dir=corpus)
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
    model, collator = AMESSForIntentClassification(config), AMESSDataCollator(tokenizer, config)
    rows, held_out = list(splits["train"]), list(splits["validation"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        for picked in torch.randperm(len(rows)).split(8):
            optimizer.zero_grad()
            model.train()(**collator([rows[index] for index in picked])).loss.backward()
            optimizer.step()
    with torch.no_grad():
        predictions = model.eval()(**collator(held_out)).logits.argmax(-1)
    assert (predictions == torch.tensor([row["label"] for row in held_out])).float().mean() >= 0.95


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

    def test_other_weights_and_layers_are_cached_apart(self, few, tmp_path):
        folder, dataset = few

        def encode(layer=None):
            return add_clip_features(dataset, speech, data_dir=folder, audio_encoder_layer=layer)["train"][0][
                "audio_features"
            ]

        speech = save_whisper(tmp_path / "encoder")
        first, second = encode(1), encode(2)
        np.testing.assert_array_equal(first, encode(1))
        assert np.abs(first - second).max() > 0.1
        model = AutoModel.from_pretrained(speech)
        torch.nn.init.normal_(model.encoder.conv1.weight, std=0.2)
        model.save_pretrained(speech)
        assert not np.allclose(first, encode(1))

    def test_without_encoders_nothing_changes(self, few):
        assert add_clip_features(few[1]) is few[1]


class TestClipJobs:
    def test_paths_spans_and_times_of_the_episode(self):
        own = {"id": "a", "clip": "a.mp4", "audio": "a.wav", "start": 1.0, "end": 2.0}
        cut = {"id": "b", "clip": "b.mp4", "start": 343.0, "end": 344.0, "dialogue_id": "0"}
        first, second, third = clip_jobs([own, cut, {"id": "c", "video": "c.mp4"}])
        assert (third.audio, third.video) == ("c.mp4", "c.mp4")
        assert (first.audio, first.video, first.start, first.end) == ("a.wav", "a.mp4", 1.0, 2.0)
        assert (second.audio, second.video, second.start, second.end) == ("b.mp4", "b.mp4", None, None)

    def test_missing_clips_are_listed(self, tmp_path):
        rows = [{"id": f"S01_E01_{number}"} for number in range(10)]
        with pytest.raises(
            ValueError, match="no raw clip for 10 of 10 rows: S01_E01_0, .*S01_E01_7, ...; put the clips"
        ):
            clip_jobs(rows, tmp_path)

    def test_clips_that_cannot_be_read_are_left_out(self, few, caplog):
        folder, dataset = few
        (folder / "dia0_utt1.mp4").write_text("no clip")
        with pytest.raises(ValueError, match="clip dia0_utt1: .*dia0_utt1.mp4 cannot be decoded"):
            add_clip_features(dataset, "log-mel", data_dir=folder)
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


@pytest.mark.slow
def test_one_command_from_clips_to_a_pipeline(corpus, tokenizer, tmp_path):
    """`run_mir.py` leaves out a bad clip if told to; the pipeline over what it saved gives the scores that it wrote."""
    import run_mir

    folder = shutil.copytree(corpus, tmp_path / "data")
    clips = find_clips(folder)
    bad = next(iter(clips))
    clips[bad].write_text("no clip")
    BertModel(text_config()).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    options = {
        "data_dir": folder, "audio_encoder": "log-mel", "video_encoder": "hog",
        "text_model_name_or_path": tmp_path / "encoder", "output_dir": tmp_path / "run", "max_steps": 2,
        "config_overrides": "hidden_size=16,projection_dim=8", "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    flags = [
        "--do_train",
        "--do_eval",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    with pytest.raises(ValueError, match=f"clip {bad}: .* cannot be decoded.*`on_error` skip continues without it"):
        run_mir.main(flags)
    run_mir.main([*flags, "--on_error", "skip"])
    header, line = (tmp_path / "run" / "left_out.csv").read_text().splitlines()
    assert header == "id,reason" and line.startswith(f"{bad},") and "cannot be decoded" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train_clips"].startswith("39 clips, ")
    lines = (tmp_path / "run" / "predictions_dev.tsv").read_text().splitlines()[1:5]
    pipe = make_pipeline("intent-recognition", model=str(tmp_path / "run"), device="cpu")
    for clip, _, prediction, score, *_ in (line.split("\t") for line in lines):
        answer = pipe({"video": str(clips[clip]), "text": WORDS}, top_k=1)
        assert answer == [{"label": prediction, "score": pytest.approx(float(score), abs=1e-4)}]
