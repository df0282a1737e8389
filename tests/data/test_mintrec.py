"""`load_mintrec`: the official layouts, what it returns and refuses, and how data sets are exported."""

import os
import pickle
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import concatenate_datasets, load_dataset, load_from_disk

from amess_hf.data import mintrec
from amess_hf.data.feature_files import write_features
from amess_hf.data.mintrec import load_mintrec, with_feature_arrays
from amess_hf.datasets_amess import DATASETS, dataset_name


MINTREC_LABELS, MINTREC2_LABELS = DATASETS["mintrec"].labels, DATASETS["mintrec2.0"].labels

MINTREC_HEADER = "season\tepisode\tclip\ttext\tlabel"
MINTREC2_HEADER = "Dialogue_id\tUtterance_id\tText\tLabel\tStart_timestamp\tEnd_timestamp\tSource\tspeakername"
ROWS = {
    "train": ["S01\tE01\t1\tplease stay\tCare", "S01\tE01\t2\tso late\tcomplain", "S01\tE02\t1\thi\tAsk For Help"],
    "dev": ["S02\tE01\t1\tlook out\tPrevent", "S02\tE01\t9\tgood day\tGreet"],
    "test": ["S03\tE01\t1\tnever\tOppose"],
}


def write_table(folder, split, header, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def write_mintrec(folder, rows=None):
    for split, lines in (rows or ROWS).items():
        write_table(folder, split, MINTREC_HEADER, lines)
    return folder


def turn(dialogue, utterance, label="Inform", speaker="Ann", text=None, start="00:00:01,500", end="00:01:02,250"):
    text = f"words {dialogue} {utterance}" if text is None else text
    return f"{dialogue}\t{utterance}\t{text}\t{label}\t{start}\t{end}\tseries\t{speaker}"


def write_mintrec2(folder, split, rows):
    write_table(folder, split, MINTREC2_HEADER, rows)
    return folder


def random_features(clip_ids, width, seed=0):
    rng = np.random.default_rng(seed)
    return {clip_id: rng.standard_normal((int(rng.integers(0, 9)), width)).astype(np.float32) for clip_id in clip_ids}


def write_pickle(path, features):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(features))


def ids(folder_rows):
    return ["_".join(row.split("\t")[:3]) for rows in folder_rows.values() for row in rows]


@pytest.fixture
def load(tmp_path):
    """`load_mintrec` with a cache of this test's own."""

    def load(data_dir, *args, **kwargs):
        return load_mintrec(data_dir, *args, cache_dir=tmp_path / "cache", **kwargs)

    return load


@pytest.fixture
def folder(tmp_path):
    """MIntRec with audio (4 wide) and video (3 wide)."""
    write_mintrec(tmp_path / "MIntRec")
    write_pickle(tmp_path / "MIntRec" / "audio_data" / "wavlm_feats.pkl", random_features(ids(ROWS), 4, seed=1))
    write_pickle(tmp_path / "MIntRec" / "video_data" / "swin_feats.pkl", random_features(ids(ROWS), 3, seed=2))
    return tmp_path / "MIntRec"


class TestRealAnnotations:
    """Counts as published."""

    def test_mintrec(self, load, test_data):
        dataset = load(test_data / "mintrec")
        assert {split: len(rows) for split, rows in dataset.items()} == {"train": 1334, "validation": 445}
        assert dataset["train"].features["label"].names == MINTREC_LABELS
        counts = np.bincount(dataset["train"]["label"], minlength=20)
        assert counts[MINTREC_LABELS.index("Complain")] == 172 and counts[MINTREC_LABELS.index("Joke")] == 31
        assert counts.sum() == 1334 and counts.min() > 0
        assert dataset["train"][0]["id"] == "S05_E16_329"

    def test_mintrec2(self, load, test_data):
        dataset = load(test_data / "mintrec2", "mintrec2.0")
        assert {split: len(rows) for split, rows in dataset.items()} == {"train": 6165, "validation": 1106}
        assert dataset["train"].features["label"].names == MINTREC2_LABELS
        counts = np.bincount(dataset["train"]["label"], minlength=30)
        assert counts[MINTREC2_LABELS.index("Inform")] == 603 and counts[MINTREC2_LABELS.index("Warn")] == 63
        assert all(dataset["train"]["in_scope"])


class TestLabels:
    def test_official_lists(self):
        assert len(MINTREC_LABELS) == len(set(MINTREC_LABELS)) == 20
        assert len(MINTREC2_LABELS) == 30 and sorted(MINTREC2_LABELS, key=str.lower) == MINTREC2_LABELS
        assert (MINTREC_LABELS[0], MINTREC_LABELS[-1]) == ("Complain", "Ask for help")

    def test_coarse(self):
        for name, goals in (("mintrec", 9), ("mintrec2.0", 14)):
            spec = DATASETS[name]
            assert len(set(spec.labels) - spec.emotions) == goals and set(spec.labels) >= spec.emotions


class TestMIntRec:
    def test_words_only(self, load, tmp_path, caplog):
        dataset = load(write_mintrec(tmp_path / "MIntRec"))
        assert {split: len(rows) for split, rows in dataset.items()} == {"train": 3, "validation": 2, "test": 1}
        assert dataset["train"].column_names == ["id", "text", "label", "label_name", "in_scope"]
        assert dataset["train"][2] == {
            "id": "S01_E02_1",
            "text": "hi",
            "label": MINTREC_LABELS.index("Ask for help"),
            "label_name": "Ask for help",
            "in_scope": True,
        }

    def test_says_once_that_there_is_text_alone(self, load, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr(mintrec.logger, "warning_once", said.append)
        write_mintrec(tmp_path / "MIntRec")
        load(tmp_path / "MIntRec", audio_features="none")
        assert said == []
        load(tmp_path / "MIntRec")
        (tmp_path / "a.mp4").touch()
        (tmp_path / "train.csv").write_text("text,label,video\nhello,Greet,a.mp4\n")
        load(tmp_path, name="folder")
        assert said == [
            f"{tmp_path / 'MIntRec'} has no feature files; using text only",
            f"{tmp_path} has no feature files; using text only; `add_clip_features` makes features of its clips",
        ]

    def test_features(self, load, folder):
        dataset = load(folder)
        for column, width, seed in (("audio_features", 4, 1), ("video_features", 3, 2)):
            expected = random_features(ids(ROWS), width, seed)
            assert dataset["train"].features[column] == datasets.Array2D((None, width), "float32")
            for rows in dataset.values():
                for row in rows:
                    assert row[column].dtype == np.float32 and row[column].shape[1] == width
                    np.testing.assert_array_equal(row[column], expected[row["id"]])
        assert isinstance(dataset["train"][0]["label"], int) and isinstance(dataset["train"][0]["text"], str)

    def test_float16(self, load, folder):
        whole, half = load(folder)["train"], load(folder, dtype="float16")["train"]
        assert half.features["audio_features"].dtype == "float16"
        for row, same in zip(whole, half, strict=True):
            assert same["audio_features"].dtype == np.float32
            np.testing.assert_allclose(same["audio_features"], row["audio_features"], rtol=1e-3)

    def test_any_case_and_order_of_columns(self, load, tmp_path):
        write_table(tmp_path / "MIntRec", "dev", "LABEL\tText\tClip\tEpisode\tSEASON", ["joke\thi\t3\tE01\tS01"])
        dataset = load(tmp_path / "MIntRec")
        row = dataset["validation"][0]
        assert list(dataset) == ["validation"]
        assert (row["id"], row["text"], row["label_name"]) == ("S01_E01_3", "hi", "Joke")

    def test_cells_are_text_whatever_they_look_like(self, load, tmp_path):
        texts = ['"', '"oh', 'say "please"', "it's \\n", '""', "\ufeffa bom, naïve – “quotes”"]
        texts += ["None", "NA", "nan", "007", "1e5", "True", "#N/A"]
        rows = [f"007\t1e5\t{number:03}\t{text}\tJoke" for number, text in enumerate(texts)]
        write_mintrec(tmp_path / "MIntRec", {"train": rows})
        train = load(tmp_path / "MIntRec")["train"]
        assert train["text"][:] == texts and train["id"][11] == "007_1e5_011"

    def test_windows_line_ends_byte_order_mark_and_empty_utterances(self, load, tmp_path):
        rows = ["S01\tE01\t1\t\tJoke", "S01\tE01\t2\t  \tjoke", ""]
        content = "\r\n".join([MINTREC_HEADER, *rows])
        (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbf" + content.encode())
        train = load(tmp_path)["train"]
        assert train["text"][:] == ["", ""] and train["label_name"][:] == ["Joke", "Joke"]

    def test_coarse(self, load, folder):
        rows = load(folder, label_granularity="coarse")["train"]
        assert rows.features["label"].names == ["Emotion", "Goal"]
        assert rows["label"][:] == [0, 0, 1] and rows["label_name"][:] == ["Emotion", "Emotion", "Goal"]

    @pytest.mark.parametrize("place", ["inside", "next to"])
    def test_out_of_scope_folder(self, load, folder, place):
        outside = (folder if place == "inside" else folder.parent) / "MIntRec-OOD"
        write_mintrec(outside, {"test": ["S09\tE01\t1\thm\tUNK", "S09\tE01\t2\tum\tunk"]})
        for name, width in (("audio_data/wavlm_feats", 4), ("video_data/swin_feats", 3)):
            write_pickle(outside / f"{name}.pkl", random_features(["S09_E01_1", "S09_E01_2"], width))
        out = load(folder, scope="out")
        assert list(out) == ["test"]
        assert out["test"]["id"][:] == ["S09_E01_1", "S09_E01_2"]
        assert out["test"]["label"][:] == [-1, -1] and set(out["test"]["label_name"]) == {"UNK"}
        assert not any(out["test"]["in_scope"])
        everything = load(folder, scope="all")
        assert {split: len(rows) for split, rows in everything.items()} == {"train": 3, "validation": 2, "test": 3}
        assert everything["test"]["label"][:] == [MINTREC_LABELS.index("Oppose"), -1, -1]
        np.testing.assert_array_equal(
            everything["test"][1]["audio_features"], random_features(["S09_E01_1", "S09_E01_2"], 4)["S09_E01_1"]
        )
        assert len(load(folder)["test"]) == 1

    def test_coarse_labels_of_out_of_scope_clips(self, load, tmp_path):
        write_mintrec(tmp_path / "MIntRec", {"train": ["S01\tE01\t1\ta\tUNK", "S01\tE01\t2\tb\tJoke"]})
        rows = load(tmp_path / "MIntRec", scope="all", label_granularity="coarse")["train"]
        assert rows["label"][:] == [-1, 0] and rows["label_name"][:] == ["UNK", "Emotion"]

    def test_raw_clips(self, load, folder):
        for name in ("S01/E01/1.mp4", "S01/E01/2.mkv", "S01/E02/1.txt"):
            (folder / "raw_data" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "raw_data" / name).touch()
        found = [str(folder / f"raw_data/S01/E01/{name}") for name in ("1.mp4", "2.mkv")]
        assert load(folder)["train"]["clip"][:] == [*found, None]


class TestMIntRec2:
    @pytest.fixture
    def full(self, tmp_path):
        """All three folders, as published."""
        root = tmp_path / "MIntRec2.0"
        inside = [turn(0, 0), turn(0, 2, "Joke"), turn(1, 0, "warn")]
        outside = [turn(0, 1, "UNK"), turn(1, 1, "UNK")]
        write_mintrec2(root / "in-scope", "train", inside)
        write_mintrec2(root / "out-of-scope" / "MIntRec2.0-OOD", "train", outside)
        write_mintrec2(root / "total", "train", [*inside, *outside])
        known, unknown = ["dia0_utt0", "dia0_utt2", "dia1_utt0"], ["dia0_utt1", "dia1_utt1"]
        for name, clips in (("in-scope", known), ("out-of-scope/MIntRec2.0-OOD", unknown), ("total", known + unknown)):
            write_pickle(root / name / "video_data" / "swin_roi.pkl", {clip: np.ones((2, 3)) for clip in clips})
        return root

    def test_fields(self, load, full):
        row = load(full, "mintrec2.0")["train"][1]
        assert row.pop("video_features").tolist() == [[1, 1, 1], [1, 1, 1]]
        assert row == {
            "id": "dia0_utt2",
            "text": "words 0 2",
            "label": MINTREC2_LABELS.index("Joke"),
            "label_name": "Joke",
            "in_scope": True,
            "speaker": "Ann",
            "source": "series",
            "dialogue_id": "0",
            "utterance_id": "2",
            "start": 1.5,
            "end": 62.25,
        }

    @pytest.mark.parametrize("total", [True, False])
    def test_scopes(self, load, full, total):
        if not total:
            (full / "total").rename(full.parent / "elsewhere")
        in_scope = ["dia0_utt0", "dia0_utt2", "dia1_utt0"]
        assert load(full, "mintrec2.0")["train"]["id"][:] == in_scope
        assert load(full, "mintrec2.0", "out")["train"]["id"][:] == ["dia0_utt1", "dia1_utt1"]
        everything = load(full, "mintrec2.0", "all")["train"]
        assert everything["id"][:] == [*in_scope, "dia0_utt1", "dia1_utt1"]
        assert everything["in_scope"][:] == [True, True, True, False, False]

    @pytest.mark.parametrize("only", ["total", "root"])
    def test_one_folder_has_all_scopes(self, load, full, only):
        root = full.parent / "other"
        root.mkdir()
        (full / "total").rename(root / "total" if only == "total" else root / "x")
        if only == "root":
            root = root / "x"
        assert load(root, "mintrec2.0")["train"]["in_scope"][:] == [True] * 3
        assert load(root, "mintrec2.0", "out")["train"]["in_scope"][:] == [False] * 2
        assert len(load(root, "mintrec2.0", "all")["train"]) == 5

    def test_empty_timestamps(self, load, tmp_path):
        write_mintrec2(tmp_path, "train", [turn(0, 0, start="", end="12.5")])
        row = load(tmp_path, "mintrec2.0")["train"][0]
        assert (row["start"], row["end"]) == (None, 12.5)


class TestContext:
    def test_turns(self, load, tmp_path):
        """Order by number, not by row or text ('10' < '9'); gaps skipped; no other dialogue, no other split."""
        rows = [
            turn(0, 10, speaker="Bob", text="ten"),
            turn(1, 0, text="other dialogue"),
            turn(0, 9, speaker="", text="nine"),
            turn(0, 3, text="three"),
            turn(1, 1, text="second"),
        ]
        write_mintrec2(tmp_path / "data", "train", rows)
        write_mintrec2(tmp_path / "data", "dev", [turn(0, 11, text="eleven"), turn(0, 12, text="twelve")])
        dataset = load(tmp_path / "data", "mintrec2.0", context_turns=2)
        expected = [["Ann: three", "nine"], [], ["Ann: three"], [], ["Ann: other dialogue"]]
        assert dataset["train"]["context"][:] == expected
        assert dataset["validation"]["context"][:] == [[], ["Ann: eleven"]]
        one = load(tmp_path / "data", "mintrec2.0", context_turns=1)["train"]
        assert one["context"][:] == [["nine"], [], ["Ann: three"], [], ["Ann: other dialogue"]]
        assert "context" not in load(tmp_path / "data", "mintrec2.0")["train"].column_names

    def test_out_of_scope_turns_count_where_they_are_known(self, load, tmp_path):
        root = tmp_path / "data"
        inside = [turn(0, 0, text="zero"), turn(0, 2, text="two")]
        write_mintrec2(root / "in-scope", "train", inside)
        assert load(root, "mintrec2.0", context_turns=1)["train"]["context"][:] == [[], ["Ann: zero"]]
        write_mintrec2(root / "total", "train", [*inside, turn(0, 1, "UNK", text="one")])
        assert load(root, "mintrec2.0", context_turns=1)["train"]["context"][:] == [[], ["Ann: one"]]

    def test_against_a_slow_search(self, load, tmp_path):
        rng = np.random.default_rng(0)
        places = {(int(rng.integers(4)), int(rng.integers(30))) for _ in range(60)}
        places = [tuple(place) for place in rng.permutation(sorted(places)).tolist()]
        write_mintrec2(tmp_path / "data", "train", [turn(*place) for place in places])
        rows = load(tmp_path / "data", "mintrec2.0", context_turns=3)["train"]
        for (dialogue, utterance), context in zip(places, rows["context"], strict=True):
            expected = []
            for earlier in range(utterance - 1, -1, -1):
                if (dialogue, earlier) in places and len(expected) < 3:
                    expected.insert(0, f"Ann: words {dialogue} {earlier}")
            assert context == expected

    def test_needs_dialogues(self, load, folder):
        with pytest.raises(ValueError, match=r"train.tsv:2: `context_turns` needs the columns dialogue_id and"):
            load(folder, context_turns=1)

    def test_bad_number(self, load, tmp_path):
        write_mintrec2(tmp_path / "data", "train", [turn(0, 0), turn(0, "1b")])
        with pytest.raises(ValueError, match=r"train.tsv:3: utterance_id '1b' is not an integer"):
            load(tmp_path / "data", "mintrec2.0", context_turns=1)


class TestChoiceOfFeatures:
    def test_several_and_none_chosen(self, load, folder):
        write_pickle(folder / "video_data" / "video_feats.pkl", random_features(ids(ROWS), 2))
        found = "several video_data: swin_feats, video_feats; choose one with `video_features`"
        with pytest.raises(ValueError, match=found):
            load(folder)
        assert load(folder, video_features="video_feats")["train"].features["video_features"].shape == (None, 2)
        assert load(folder, video_features="swin_feats")["train"].features["video_features"].shape == (None, 3)

    def test_by_path(self, load, folder, tmp_path):
        write_pickle(tmp_path / "elsewhere" / "x.pkl", random_features(ids(ROWS), 6))
        rows = load(folder, audio_features=str(tmp_path / "elsewhere" / "x.pkl"))["train"]
        assert rows.features["audio_features"].shape == (None, 6)
        rows = load(folder, audio_features="video_data/swin_feats.pkl")["train"]
        assert rows.features["audio_features"].shape == (None, 3)

    def test_left_out(self, load, folder):
        rows = load(folder, audio_features="none")["train"]
        assert "audio_features" not in rows.column_names and "video_features" in rows.column_names

    def test_unknown_name(self, load, folder):
        with pytest.raises(ValueError, match="`audio_features` 'hubert' is neither a file nor .*; found: wavlm_feats"):
            load(folder, audio_features="hubert")

    @pytest.mark.parametrize("form", ["folder", "file"])
    def test_safetensors_are_preferred(self, load, folder, form):
        features = random_features(ids(ROWS), 5, seed=9)
        out = write_features(features.items(), folder / "audio_data" / "wavlm_feats", source=folder / "x.pkl")
        if form == "file":
            (out / "features-00001-of-00001.safetensors").rename(folder / "audio_data" / "wavlm_feats.safetensors")
            (out / "features.safetensors.index.json").unlink()
            out.rmdir()
        rows = load(folder)["train"]
        np.testing.assert_array_equal(rows[0]["audio_features"], features["S01_E01_1"])

    def test_warns_of_an_older_conversion(self, load, folder, monkeypatch):
        said = []
        monkeypatch.setattr("amess_hf.data.dataset_files.logger.warning", said.append)
        features = random_features(ids(ROWS), 4, seed=1)
        out = write_features(features.items(), folder / "audio_data" / "wavlm_feats", source=folder / "x.pkl")
        load(folder)
        assert said == []
        os.utime(out, (1, 1))
        load(folder)
        assert said and "wavlm_feats.pkl is newer" in said[0]


# (a row after three good ones, or a table in their place; message)
BAD_TABLES = [
    ("S01\tE01\t7\tno label", "train.tsv:5: 4 cells, but the header names 5"),
    ("S01\tE01\t7\thi\tJoke\tx", "train.tsv:5: 6 cells, but the header names 5"),
    ("S01\tE01\t7\t\udcff\tJoke", "train.tsv: not UTF-8 text"),
    (
        "S01\tE01\t7\thi\tCompalin",
        "train.tsv:5: unknown label 'Compalin' of clip S01_E01_7; the nearest known one is 'Comp",
    ),
    (ROWS["train"][0], "train.tsv:5: clip id S01_E01_1 appears again, first at"),
    (
        "season\tepisode\tclip\ttext\nS\tE\t1\thi",
        "train.tsv: no column label; its header names season, episode, clip, text",
    ),
    (MINTREC_HEADER + "\tLabel \nS\tE\t1\thi\tJoke\tCare", "train.tsv:2: the column 'Label ' appears twice"),
]


class TestBadInput:
    def error(self, load, *args, **kwargs):
        with pytest.raises(ValueError) as error:
            load(*args, **kwargs)
        message = str(error.value)
        assert "\n" not in message
        return message

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "mintrec3"}, "`name` is 'mintrec3'; choose one of mintrec, mintrec2.0, folder"),
            ({"scope": "some"}, "`scope` is 'some'; choose one of in, out, all"),
            ({"label_granularity": "medium"}, "`label_granularity` is 'medium'; choose one of fine, coarse"),
            ({"dtype": "int8"}, "`dtype` is 'int8'; choose one of float32, float16"),
            ({"on_error": "stop"}, "`on_error` is 'stop'; choose one of raise, skip"),
            ({"context_turns": -1}, "`context_turns` is -1; give 0 or more"),
        ],
    )
    def test_arguments(self, load, folder, arguments, message):
        assert self.error(load, folder, **arguments) == message

    def test_no_folder_and_no_table(self, load, tmp_path):
        assert "is not a folder" in self.error(load, tmp_path / "nowhere")
        message = self.error(load, tmp_path)
        assert "no train, dev, test (.tsv)" in message and str(tmp_path) in message
        (tmp_path / "train.csv").write_text("text,label\nhi,Greet\n")
        assert self.error(load, tmp_path).endswith("; `name='folder'` reads tables of your own")
        (tmp_path / "train.tsv").write_text("text\tlabel\nhi\tGreet\n")
        assert "no column season, episode, clip; its header names text, label; `name='folder'`" in self.error(
            load, tmp_path
        )

    def test_no_clip_of_that_scope_and_wrong_data_set(self, load, folder):
        assert "no clip of scope='out'" in self.error(load, folder, scope="out")
        assert "no column dialogue_id, utterance_id" in self.error(load, folder, "mintrec2.0")

    @pytest.mark.parametrize(("content", "message"), BAD_TABLES, ids=range(len(BAD_TABLES)))
    def test_tables(self, load, tmp_path, content, message):
        table = content if "\n" in content else "\n".join([MINTREC_HEADER, *ROWS["train"], content])
        (tmp_path / "train.tsv").write_bytes(table.encode("utf-8", "surrogateescape"))
        assert message in self.error(load, tmp_path)

    @pytest.mark.parametrize("time", ["soon", "nan", "inf", "-1", "1e999"])
    def test_times_that_are_none(self, load, tmp_path, time):
        write_mintrec2(tmp_path / "data", "train", [turn(0, 0, start=time)])
        assert f"train.tsv:2: '{time}' is not a time" in self.error(load, tmp_path / "data", "mintrec2.0")

    def test_start_after_end(self, load, tmp_path):
        write_mintrec2(tmp_path / "data", "train", [turn(0, 0, start="00:00:05", end="00:00:04,5")])
        message = self.error(load, tmp_path / "data", "mintrec2.0")
        assert "train.tsv:2: `start` 5 s is after `end` 4.5 s" in message

    def test_labels_that_train_lacks(self, load, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr("amess_hf.data.annotations.logger.warning", said.append)
        load(write_mintrec(tmp_path / "data"))
        assert said == [
            "no model can answer with labels of validation that train lacks: Greet, Prevent",
            "no model can answer with labels of test that train lacks: Oppose",
        ]

    @pytest.mark.parametrize(
        ("clip", "frames", "message"),
        [
            (
                "S02_E01_9",
                np.array([[0.0] * 4, [0.0] * 4, [0, np.nan, 0, 0]]),
                "has NaN or infinite features, first in frame 2",
            ),
            ("S02_E01_9", np.array([[np.inf] * 4]), "has NaN or infinite features, first in frame 0"),
            ("S02_E01_9", np.zeros((3, 5)), "is 5 wide, other clips are 4 wide"),
            # named, instead of being taken for the width of all
            ("S01_E01_1", np.ones((5, 0)), "has features of shape [5, 0]"),
            ("S02_E01_9", np.full((3, 4), 7e4), "has values too large for float16; use a wider dtype"),
        ],
    )
    def test_features(self, load, folder, clip, frames, message):
        features = {name: np.ones((2, 4), np.float32) for name in ids(ROWS)} | {clip: frames}
        write_pickle(folder / "audio_data" / "wavlm_feats.pkl", features)
        assert f"wavlm_feats.pkl: clip {clip} {message}" in self.error(load, folder, dtype="float16")
        assert not list(folder.parent.glob("cache/**/*.arrow"))
        if "float16" in message:
            load(folder)

    def test_hostile_pickle(self, load, folder):
        (folder / "audio_data" / "wavlm_feats.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R.")
        assert "wavlm_feats.pkl: refused, it contains the name 'os.system'" in self.error(load, folder)

    def test_clip_without_features(self, load, folder):
        features = random_features(ids(ROWS), 4, seed=1)
        kept = {clip_id: features[clip_id] for clip_id in ids(ROWS)[2:]}
        write_pickle(folder / "audio_data" / "wavlm_feats.pkl", kept)
        message = self.error(load, folder)
        assert "no audio features for 2 clips: S01_E01_1, S01_E01_2; set `allow_missing_features`" in message
        rows = load(folder, allow_missing_features=True)["train"]
        assert [row["audio_features"].shape for row in rows][:2] == [(0, 4), (0, 4)]
        np.testing.assert_array_equal(rows[2]["audio_features"], features["S01_E02_1"])

    def test_a_modality_without_frames_is_left_out(self, load, folder):
        write_pickle(folder / "audio_data" / "wavlm_feats.pkl", {clip: np.empty((0, 4)) for clip in ids(ROWS)})
        rows = load(folder)["train"]
        assert "audio_features" not in rows.column_names and "video_features" in rows.column_names

    def test_several_out_of_scope_folders(self, load, tmp_path):
        for name in ("A", "B"):
            write_mintrec2(tmp_path / "data" / "out-of-scope" / name, "test", [turn(0, 0, "UNK")])
        assert "holds several data sets: A, B" in self.error(load, tmp_path / "data", "mintrec2.0", "out")

    def test_different_widths_of_scopes(self, load, tmp_path):
        root = tmp_path / "data"
        for name, utterance, width in (("in-scope", 0, 3), ("out-of-scope/x", 1, 4)):
            write_mintrec2(root / name, "train", [turn(0, utterance, "Inform" if width == 3 else "UNK")])
            write_pickle(root / name / "video_data" / "swin_roi.pkl", {f"dia0_utt{utterance}": np.ones((2, width))})
        assert "features of different width" in self.error(load, root, "mintrec2.0", "all")


class TestCache:
    @pytest.fixture
    def built(self, monkeypatch):
        """Lists the builds that really happen."""
        built = []
        real = mintrec.read_annotations
        monkeypatch.setattr(mintrec, "read_annotations", lambda *args: built.append(1) or real(*args))
        return built

    def test_second_load_reads_the_cache(self, load, folder, built, monkeypatch):
        first = load(folder)
        monkeypatch.chdir(folder.parent)
        second = load("MIntRec/../MIntRec")
        assert len(built) == 1
        assert first["train"].features == second["train"].features
        assert first["train"].to_list() == second["train"].to_list()

    def test_changes_are_noticed(self, load, folder, built):
        load(folder)
        write_mintrec(folder, {**ROWS, "train": [ROWS["train"][0].replace("stay", "tray"), *ROWS["train"][1:]]})
        assert load(folder)["train"][0]["text"] == "please tray"
        new = random_features(ids(ROWS), 4, seed=5)
        write_pickle(folder / "audio_data" / "wavlm_feats.pkl", new)
        np.testing.assert_array_equal(load(folder)["train"][1]["audio_features"], new["S01_E01_2"])
        (folder / "test.tsv").unlink()
        assert list(load(folder)) == ["train", "validation"]
        assert len(built) == 4

    def test_arguments_are_told_apart(self, load, folder, built):
        for arguments in ({}, {"dtype": "float16"}, {"label_granularity": "coarse"}, {"video_features": "none"}):
            load(folder, **arguments)
            load(folder, **arguments)
        assert len(built) == 4

    def test_version_is_part_of_the_path(self, load, folder):
        path = load(folder)["train"].cache_files[0]["filename"]
        assert f"/{mintrec.MIntRec.VERSION}/" in path and mintrec.MIntRec.VERSION == mintrec.MIntRecConfig.version

    def test_a_failed_build_is_no_cache(self, load, folder):
        path = folder / "audio_data" / "wavlm_feats.pkl"
        good = path.read_bytes()
        path.write_bytes(good[:-30])
        for _ in range(2):
            with pytest.raises(ValueError, match="truncated"):
                load(folder)
        path.write_bytes(good)
        assert len(load(folder)["train"]) == 3


class TestDamagedCache:
    """A cache that is cut is built again, with one line."""

    @pytest.fixture
    def said(self, monkeypatch):
        said = []
        monkeypatch.setattr(mintrec.logger, "warning", said.append)
        return said

    @pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "fewer rows", "info cut"])
    def test_is_built_again(self, load, folder, said, damage):
        first = load(folder)
        expected, path = first["train"].to_list(), Path(first["train"].cache_files[0]["filename"])
        fewer = load(folder, scope="all")["test"].cache_files[0]["filename"]
        content = {"cut": path.read_bytes()[:-400], "emptied": b"", "fewer rows": Path(fewer).read_bytes()}
        damaged = path.with_name("dataset_info.json") if damage == "info cut" else path
        del first
        damaged.unlink()
        if damage == "info cut":
            damaged.write_text('{"splits"')
        elif damage != "removed":
            damaged.write_bytes(content[damage])
        assert load(folder)["train"].to_list() == expected
        assert len(said) == 1 and "is damaged" in said[0] and "\n" not in said[0]
        assert load(folder)["train"].to_list() == expected and len(said) == 1

    def test_converted_features(self, load, folder, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr("amess_hf.data.feature_files.logger.warning", said.append)
        expected = load(folder)["train"].to_list()
        shard = next((tmp_path / "cache" / "amess_features").glob("wavlm_feats-*/*.safetensors"))
        content = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(content[:-9])
        said.clear()
        assert load(folder, dtype="float32", scope="all")["train"].to_list() == expected
        assert len(said) == 1 and said[0].endswith("wavlm_feats.pkl is converted again")


class TestExport:
    """What is exported loads back with plain `datasets` to the same columns and rows."""

    @pytest.fixture
    def dataset(self, load, tmp_path):
        root = tmp_path / "data"
        rows = [turn(0, 0), turn(0, 1, "UNK", start=""), turn(1, 0, "Joke", speaker="")]
        write_mintrec2(root, "train", rows)
        write_mintrec2(root, "dev", [turn(5, 1, "Warn")])
        clips = ["dia0_utt0", "dia0_utt1", "dia1_utt0", "dia5_utt1"]
        features = random_features(clips, 3)
        features["dia0_utt1"] = np.empty((0, 3), np.float32)
        write_pickle(root / "video_data" / "swin_roi.pkl", features)
        write_pickle(root / "audio_data" / "wavlm_feats.pkl", {clip: torch.ones(2, 1, 4) for clip in clips})
        return load(root, "mintrec2.0", "all", context_turns=2)

    def assert_same(self, loaded, dataset):
        assert list(loaded) == list(dataset)
        for split, rows in dataset.items():
            assert loaded[split].features == rows.features
            assert loaded[split].to_list() == rows.to_list()
            for row, same in zip(rows, with_feature_arrays(loaded)[split], strict=True):
                assert same["video_features"].shape == row["video_features"].shape
                np.testing.assert_array_equal(same["video_features"], row["video_features"])

    def test_save_to_disk(self, dataset, tmp_path):
        dataset.save_to_disk(tmp_path / "saved")
        loaded = load_from_disk(tmp_path / "saved")
        self.assert_same(loaded, dataset)
        assert isinstance(loaded["train"][0]["video_features"], np.ndarray)

    def test_parquet(self, dataset, tmp_path):
        for split, rows in dataset.items():
            rows.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
        self.assert_same(load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "plain")), dataset)

    def test_float16_parquet(self, load, folder, tmp_path):
        rows, path = load(folder, dtype="float16")["train"], str(tmp_path / "half.parquet")
        rows.to_parquet(path)
        loaded = load_dataset("parquet", data_files=path, cache_dir=str(tmp_path / "plain"), split="train")
        assert loaded.features == rows.features and loaded.to_list() == rows.to_list()


class TestDatasetName:
    def test_survives_what_one_does_with_rows(self, load, tmp_path):
        rows = load(write_mintrec(tmp_path / "MIntRec"))["train"]
        kept = [rows, rows.select([0]), rows.filter(lambda row: row["label_name"] == "Care"), rows.shuffle(seed=0)]
        kept += [rows.map(lambda row: {"text": row["text"].upper()}), concatenate_datasets([rows, rows.select([1])])]
        rows.save_to_disk(tmp_path / "saved")
        kept.append(load_from_disk(tmp_path / "saved"))
        assert [dataset_name(split) for split in kept] == ["mintrec"] * len(kept)

    def test_other_sets(self, load, tmp_path):
        write_mintrec2(tmp_path / "two", "train", [turn(0, 0)])
        rows = load(tmp_path / "two", "mintrec2.0")["train"]
        assert dataset_name(rows) == "mintrec2.0"
        write_table(tmp_path / "own", "train", "text\tlabel", ["hi\tJoke"])
        own = load(tmp_path / "own", "folder")["train"]
        assert dataset_name(own) == "folder"
        plain = [split.remove_columns("label") for split in (rows, own)]
        assert dataset_name(concatenate_datasets(plain)) is None


class TestStreaming:
    """Features larger than memory can be built and read: neither step holds more than a few clips."""

    COUNT, SHAPE = 400, (64, 128)
    BYTES = COUNT * 64 * 128 * 4

    @pytest.fixture
    def large(self, tmp_path):
        """13 MB of features, small for a computer and large for the modules that a first build imports."""
        rows = [f"S01\tE01\t{number}\thm\tJoke" for number in range(self.COUNT)]
        write_mintrec(tmp_path / "large", {"train": rows})
        clips = ((f"S01_E01_{number}", np.full(self.SHAPE, number, np.float32)) for number in range(self.COUNT))
        write_features(clips, tmp_path / "large" / "audio_data" / "wavlm_feats", source=tmp_path / "x")
        return tmp_path / "large"

    def test_build(self, load, folder, large):
        load(folder)  # imports what a build needs
        tracemalloc.start()
        load(large)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.BYTES / 2

    def test_rows_are_mapped_and_read_one_by_one(self, load, large):
        rows = load(large)["train"]
        assert rows.cache_files
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        for number, row in enumerate(rows):
            assert row["audio_features"][-1, -1] == number
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < self.BYTES / 4
        assert pa.total_allocated_bytes() - before < self.BYTES / 4
