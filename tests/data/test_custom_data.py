"""Custom data, in four formats."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from amess_hf.data import annotations
from amess_hf.data.mintrec import load_mintrec


ROWS = [
    {"id": "a", "text": 'she said "no", twice', "label": "refuse", "speaker": "Ann", "start": 1.5},
    {"id": "b", "text": "", "label": "Accept", "speaker": "Bob", "start": None},
    {"id": "c", "text": "hm", "label": "UNK", "speaker": "Ann", "start": 62.0},
]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
            writer = csv.DictWriter(file, list(rows[0]), **({"quotechar": None} if options else {}), **options)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def load(tmp_path):
    def load(data_dir, **kwargs):
        return load_mintrec(data_dir, "folder", cache_dir=tmp_path / "cache", **kwargs)

    return load


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_formats(load, tmp_path, suffix):
    write_rows(tmp_path / "data" / f"train{suffix}", ROWS)
    write_rows(tmp_path / "data" / f"valid{suffix}", ROWS[:1])
    dataset = load(tmp_path / "data", scope="all")
    assert list(dataset) == ["train", "validation"]
    rows = dataset["train"]
    assert rows.features["label"].names == ["Accept", "refuse"]
    assert rows.to_list() == [
        {**ROWS[0], "label": 1, "label_name": "refuse", "in_scope": True},
        {**ROWS[1], "label": 0, "label_name": "Accept", "in_scope": True},
        {**ROWS[2], "label": -1, "label_name": "UNK", "in_scope": False},
    ]
    assert len(load(tmp_path / "data")["train"]) == 2


def test_splits_that_number_their_clips_alike(load, tmp_path, monkeypatch):
    """Each clip has its own row's features, with a warning about the ids."""
    warnings = []
    monkeypatch.setattr(annotations.logger, "warning", warnings.append)
    for split, value in (("train", 1.0), ("dev", 2.0)):
        row = {"id": 0, "text": "hm", "label": "a", "audio_features": f"{split}.npy"}
        write_rows(tmp_path / "data" / f"{split}.csv", [row])
        np.save(tmp_path / "data" / f"{split}.npy", np.full((2, 3), value))
    dataset = load(tmp_path / "data")
    assert dataset["train"][0]["audio_features"].tolist() == [[1.0] * 3] * 2
    assert dataset["validation"][0]["audio_features"].tolist() == [[2.0] * 3] * 2
    assert warnings[0].startswith("1 clip ids occur in more than one split: 0;")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_are_text_whatever_they_look_like(load, tmp_path, suffix):
    rows = [
        {"id": "007", "text": "None", "label": "NA"},
        {"id": "1e5", "text": '"' * (suffix == ".tsv"), "label": "1.0"},
    ]
    write_rows(tmp_path / "data" / f"train{suffix}", rows)
    train = load(tmp_path / "data")["train"]
    assert [{**row, "label": row["label_name"]} for row in train.select_columns(["id", "text", "label_name"])] == [
        {**row, "label_name": row["label"]} for row in rows
    ]


def test_lines_in_a_cell(load, tmp_path):
    """A row is named by its last line, whatever lines its cells and those before it have."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text('text,label\n"a\nb",c\n\n"d\ne"\n')
    with pytest.raises(ValueError, match="train.csv:6: 1 cells, but the header names 2"):
        load(tmp_path / "data")


class TestSpreadsheets:
    """What they export is read as it was meant."""

    ROWS = [("hello, you", "Greet", "a.mp4"), ("so late", "Complain", "a.mp4")]

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "a.mp4").touch()
        return tmp_path

    @pytest.mark.parametrize(
        "content",
        [
            "text;label;video\nhello, you;Greet;a.mp4\nso late;Complain;a.mp4\n",
            "text\tlabel\tvideo\nhello, you\tGreet\ta.mp4\nso late\tComplain\ta.mp4\n",
            'text, label, video\n"hello, you", Greet, a.mp4\n so late , Complain , a.mp4 \n',
            'text,label,video,,\n"hello, you",Greet,a.mp4,,\n,,,,\nso late,Complain,a.mp4\n,,,,\n',
            'text,label,video\n"hello, you",Greet,a.mp4,,,\n\nso late,Complain,a.mp4\n,,,,,,\n',
            '\r\n"text","label","video"\r\n"hello, you","Greet","a.mp4"\r\n"so late","Complain","a.mp4"',
        ],
        ids=["semicolons", "tabs", "spaces", "empty columns", "empty cells", "empty line"],
    )
    def test_read(self, load, folder, content):
        (folder / "train.csv").write_bytes(content.encode())
        rows = load(folder)["train"]
        found = zip(rows["text"], rows["label_name"], rows["video"], strict=True)
        assert [(text, label, path[-5:]) for text, label, path in found] == self.ROWS

    def test_a_long_cell(self, load, folder):
        (folder / "train.csv").write_text("text,label\n" + "x" * 200_000 + ",a\nb,c\n")
        assert [len(text) for text in load(folder)["train"]["text"]] == [200_000, 1]

    @pytest.mark.parametrize("content", ["", "text,label\n", "text,label\n,,\n\n"])
    def test_no_row(self, load, folder, content):
        (folder / "train.csv").write_text(content)
        with pytest.raises(ValueError, match="train.csv: no row below the header; fill the table"):
            load(folder)

    @pytest.mark.parametrize(
        ("column", "cell", "wanted"),
        [("vidoe", "a.mp4", "video"), ("audio_feats", "x", "audio_features"), ("Videos", "", "video")]
        + [(name, "A.MP4", "clip, video, audio, audio_features, video_features") for name in ("path", "file_name")],
    )
    def test_a_column_under_another_name(self, load, folder, column, cell, wanted):
        (folder / "train.csv").write_text(f"text,label,{column}\nhello,Greet,{cell}\n")
        message = f"train.csv: the column '{column.lower()}' is not read; rename it to {wanted}, or remove it"
        with pytest.raises(ValueError, match=message):
            load(folder)

    def test_other_columns(self, load, folder):
        (folder / "train.csv").write_text("text,label,video,topic,clip_id,original\nhello,Greet,a.mp4,x,3,S1.mp4\n")
        assert len(load(folder)["train"]) == 1

    def test_missing_files_are_counted(self, load, folder):
        rows = "".join(f"hello,Greet,{name}\n" for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"))
        (folder / "train.csv").write_text("text,label,video\n" + rows)
        with pytest.raises(ValueError) as error:
            load(folder)
        assert str(error.value) == (
            f"{folder / 'train.csv'}:3: `video` b.mp4 does not exist, and 2 more files of the table do not; correct the "
            "paths, or leave such clips out with `on_error` (`--on_error`) skip"
        )
        assert len(load(folder, on_error="skip")["train"]) == 4

    def test_a_loop_of_links(self, load, folder):
        (folder / "b.mp4").symlink_to(folder / "b.mp4")
        (folder / "train.csv").write_text("text,label,video\nhello,Greet,b.mp4\n")
        with pytest.raises(ValueError, match="`video` b.mp4 does not exist"):
            load(folder)
        load(folder, on_error="skip")
        with pytest.raises(ValueError, match="is not a folder"):
            load(folder / "b.mp4")

    def test_texts_that_are_repeated(self, load, folder, monkeypatch):
        said = []
        monkeypatch.setattr(annotations.logger, "warning", said.append)
        (folder / "train.csv").write_text("text,label\nOk,Agree\nok,Doubt\nwell,Doubt\n,Agree\n,Doubt\n")
        (folder / "dev.csv").write_text("text,label\nwell,Doubt\nhm,Doubt\n,Agree\n")
        load(folder)
        assert said == [
            "1 texts of train have several labels: 'ok' (Agree, Doubt)",
            "1 texts of validation are in train too: 'well'",
        ]


def test_zero_is_a_value(load, tmp_path):
    rows = [{"id": n, "text": n, "label": "a", "dialogue_id": 0, "utterance_id": n} for n in (0, 1)]
    rows.append({"id": 2, "text": "alone", "label": "a", "dialogue_id": None, "utterance_id": None})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load(tmp_path / "data", context_turns=1)["train"]
    assert train["id"][:] == ["0", "1", "2"] and train["text"][:] == ["0", "1", "alone"]
    assert train["context"][:] == [[], ["0"], []]


def test_exported_tables_are_read_by_the_names_of_labels(load, tmp_path):
    write_rows(tmp_path / "data" / "train.csv", ROWS)
    rows = load(tmp_path / "data", scope="all")["train"]
    (tmp_path / "exported").mkdir()
    rows.to_parquet(tmp_path / "exported" / "train.parquet")
    again = load(tmp_path / "exported", scope="all")["train"]
    assert again.features["label"].names == ["Accept", "refuse"] and again["label"][:] == [1, 0, -1]


def test_text_and_label_are_enough(load, tmp_path):
    write_rows(tmp_path / "data" / "train.csv", [{"Text": "hi", "LABEL": "Greet"}, {"Text": "ho", "LABEL": 7}])
    rows = load(tmp_path / "data")["train"]
    assert rows["id"][:] == ["train-0", "train-1"] and rows["label_name"][:] == ["Greet", "7"]


def test_features_by_path(load, tmp_path):
    rng = np.random.default_rng(0)
    features = {clip: rng.standard_normal((length, 3)) for clip, length in (("a", 4), ("b", 0), ("c", 2))}
    folder = tmp_path / "data"
    (folder / "npy").mkdir(parents=True)
    for clip, frames in features.items():
        np.save(folder / "npy" / f"{clip}.npy", frames[:, None] if clip == "c" else frames)
    rows = [{**row, "audio_features": f"npy/{row['id']}.npy"} for row in ROWS]
    write_rows(folder / "train.csv", rows)
    loaded = load(folder, scope="all")["train"]
    for row in loaded:
        assert row["audio_features"].shape == features[row["id"]].shape
        np.testing.assert_allclose(row["audio_features"], features[row["id"]], rtol=1e-6)
    np.save(folder / "npy" / "a.npy", features["a"] + 1)  # noticed, though the table is the same
    np.testing.assert_allclose(load(folder, scope="all")["train"][0]["audio_features"], features["a"] + 1, rtol=1e-6)


def test_feature_files_by_clip_id(load, tmp_path):
    """A folder may have feature files as MIntRec has them."""
    from amess_hf.data.feature_files import write_features

    write_rows(tmp_path / "data" / "train.jsonl", ROWS)
    features = {"a": np.ones((1, 2)), "b": np.zeros((2, 2))}
    write_features(features.items(), tmp_path / "data" / "video_data" / "my_feats", source=tmp_path / "x")
    assert [row["video_features"].tolist() for row in load(tmp_path / "data")["train"]] == [[[1, 1]], [[0, 0]] * 2]


def test_clips_by_path(load, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"")
    (folder / "a.wav").write_bytes(b"")
    rows = [{"text": "x", "label": "l", "video": "a.mp4"}, {"text": "y", "label": "l", "audio": "a.wav"}]
    write_rows(folder / "train.jsonl", rows)
    loaded = load(folder)["train"]
    assert loaded["clip"][:] == [str(folder / "a.mp4"), str(folder / "a.wav")]
    assert loaded["audio"][:] == [None, str(folder / "a.wav")]


def test_two_tables_for_a_split_and_coarse_labels(load, tmp_path):
    write_rows(tmp_path / "data" / "train.csv", ROWS)
    with pytest.raises(ValueError, match="known for mintrec and mintrec2.0 only"):
        load(tmp_path / "data", label_granularity="coarse")
    write_rows(tmp_path / "data" / "train.tsv", ROWS)
    with pytest.raises(ValueError, match="several files for the split train: train.csv, train.tsv"):
        load(tmp_path / "data")


class TestRefusedTables:
    """What cannot be read, or two readers would understand differently, is refused, by file and row."""

    def error(self, load, folder):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"label": None}, ":2: no label; fill the cell"),
            ({"label": " "}, ":2: no label; fill the cell"),
            ({"label": float("nan")}, ":2: no label; fill the cell"),  # an empty cell of pandas
            ({"label": -1}, ":2: the label -1, which means out of scope only"),  # exported without the names
            ({"clip": "no.mp4"}, ":2: `clip` no.mp4 does not exist; correct the paths, or leave such clips out"),
            ({"video": "https://a.org/b.mp4"}, ":2: `video` https://a.org/b.mp4 is a web address; download the file"),
            ({"audio_features": [[1.0]]}, ":2: `audio_features` holds a list, not a path"),
            ({"id": "train-0"}, ":2: clip id train-0 appears again, first at"),
            ({"id": "a\u200bb"}, ":2: `id` 'a\\u200bb' has invisible characters"),
            ({"start": 3, "end": 2.5}, ":2: `start` 3 s is after `end` 2.5 s; correct the cells"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_rows(self, load, tmp_path, suffix, row, message):
        rows = [dict.fromkeys(row, None) | {"text": "x", "label": "l"}, {"text": "x", "label": "l"} | row]
        if suffix == ".parquet" and not isinstance(row.get("label", ""), str):
            rows[0]["label"] = 7
        write_rows(tmp_path / "data" / f"train{suffix}", rows)
        assert f"train{suffix}{message}" in self.error(load, tmp_path / "data")

    def test_no_column_and_no_clip_in_scope(self, load, tmp_path):
        write_rows(tmp_path / "data" / "train.jsonl", [{"text": "x"}])
        assert self.error(load, tmp_path / "data").endswith("train.jsonl: no column label; its header names text")
        write_rows(tmp_path / "data" / "train.jsonl", [{"text": "x", "label": "UNK"}])
        assert "no clip of scope='in'" in self.error(load, tmp_path / "data")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train.jsonl", "{", ":1: not a JSON object"),
            ("train.jsonl", "[1]", ":1: a JSON list, not an object"),
            ("train.jsonl", "[" * 100_000, ":1: not a JSON object"),
            ("train.jsonl", '{"text": ' + "9" * 5000 + "}", ":1: not a JSON object"),
            ("train.jsonl", '{"text": "\\ud800", "label": "a"}', ":1: not a JSON object"),
            ("train.jsonl", "\x00", ":1: not a JSON object"),
            ("train.jsonl", '{"text": "\udcff", "label": "a"}', ":1: not UTF-8 text"),
            ("train.jsonl", '{"text": "a", "label": "b", "LABEL": "c"}', ":1: the column 'LABEL' appears twice"),
            (
                "train.jsonl",
                '{"text": "a", "label": "b", "label": "c"}',
                ":1: not a JSON object (a name appears twice)",
            ),
            ("train.parquet", "PAR", ": not a readable Parquet file"),
            ("train.csv", "text,label\nx\n", ":2: 1 cells, but the header names 2"),
            ("train.csv", "text,label,Label\na,b,c\n", ":2: the column 'Label' appears twice"),
            ("train.csv", 'text,label\n"a,b\n', ": unexpected end of data; correct the row"),
        ],
        ids=range(13),
    )
    def test_files(self, load, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
        assert f"{name}{message}" in self.error(load, tmp_path)

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    @pytest.mark.parametrize("value", [["a", "b"], {"a": 1}], ids=["list", "dict"])
    @pytest.mark.parametrize("column", ["label", "text", "id"])
    def test_several_values_in_a_cell(self, load, tmp_path, suffix, value, column):
        write_rows(tmp_path / "data" / f"train{suffix}", [{"id": "1", "text": "a", "label": "b", column: value}])
        message = self.error(load, tmp_path / "data")
        assert f"train{suffix}:1: `{column}` holds a {type(value).__name__}, not text" in message

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Greet", other)
            for other in ("Greet\u200b", "\ufeffGreet", "Gre\u00adet", "greet", "Greet\u2060", "Gr\u200deet")
        ]
        + [("a b", "a\u00a0b"), ("a b", "a  b"), ("\u00e9", "e\u0301")],
        ids=ascii,
    )
    def test_labels_that_look_the_same(self, load, tmp_path, one, other):
        write_rows(tmp_path / "data" / "train.jsonl", [{"text": "a", "label": one}, {"text": "b", "label": other}])
        found = f"train.jsonl:2: labels {ascii(one)} and {ascii(other)} differ in case or invisible characters only"
        assert found in self.error(load, tmp_path / "data")

    def test_labels_that_do_not(self, load, tmp_path):
        rows = [{"text": "a", "label": label} for label in ("m2", "m²", "e", "é", "a b", "ab")]
        write_rows(tmp_path / "data" / "train.jsonl", rows)
        assert len(load(tmp_path / "data")["train"].features["label"].names) == 6

    @pytest.mark.parametrize("kind", ["rows", "bytes"])
    def test_compressed_tables_that_unfold(self, load, tmp_path, kind):
        count, text = (2**20, "") if kind == "rows" else (1000, "x" * 2**18)
        table = pa.table({"text": [text], "label": ["a"]})
        writer = pq.ParquetWriter(tmp_path / "train.parquet", table.schema, compression="zstd")
        indices = pa.array(np.zeros(count if kind == "rows" else 1, np.int32))
        for _ in range(1 if kind == "rows" else count):
            writer.write_table(table.take(indices))
        writer.close()
        with pytest.raises(ValueError, match="train.parquet: a table of .* refused as a decompression bomb"):
            load(tmp_path)
