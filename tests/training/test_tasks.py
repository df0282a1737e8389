import dataclasses

import numpy as np
import pytest
from demo_corpus import write_demo_corpus

from amess_hf.training.preparation import task_fields
from amess_hf.training.script_arguments import DataArguments, ModelArguments
from amess_hf.training.tasks import (
    few_clips,
    hold_out,
    load_task,
    merge_tasks,
    task_descriptions,
    with_labels,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "MIntRec"
    write_demo_corpus(folder, clips_per_split={"train": 60, "dev": 40})
    return folder


@pytest.fixture
def task(corpus):
    return load_task(DataArguments(dataset_name="mintrec", data_dir=str(corpus)), seed=0)


def texts_folder(folder, train, dev):
    """A folder of one's own data: (text, label) rows."""
    folder.mkdir()
    for name, rows in (("train", train), ("dev", dev)):
        lines = ["text\tlabel", *[f"{text}\t{label}" for text, label in rows]]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


class TestLoadTask:
    def test_labels_splits_and_widths(self, task):
        assert len(task.labels) == 20 and task.labels[0] == "Complain"
        assert set(task.splits) == {"train", "validation"}
        assert len(task.splits["train"]) == 60
        sizes = task.feature_sizes()
        row = task.splits["train"][0]
        assert sizes["audio_feature_size"] == np.shape(row["audio_features"])[1]
        assert sizes["video_feature_size"] == np.shape(row["video_features"])[1]
        assert list(task.label_descriptions) == task.labels

    def test_words_alone_are_not_fused(self, task, tmp_path):
        assert "fusion_type" not in task_fields(task)
        folder = texts_folder(tmp_path / "a", [("hello you", "Greet"), ("so late", "Complain")], [("hi", "Greet")])
        words = load_task(DataArguments(dataset_name="folder", data_dir=str(folder)), seed=0)
        assert task_fields(words) == {"fusion_type": "text"}

    def test_folders_must_match_names(self, corpus):
        with pytest.raises(ValueError, match="one folder for each"):
            load_task(DataArguments(dataset_name="mintrec,mintrec2.0", data_dir=str(corpus)), seed=0)

    def test_a_name_stands_once(self, corpus):
        with pytest.raises(ValueError, match="names a data set twice"):
            load_task(DataArguments(dataset_name="folder,folder", data_dir=f"{corpus},{corpus}"), seed=0)

    def test_coarse_labels_have_no_descriptions(self):
        assert task_descriptions("mintrec", ["Emotion", "Goal"], DataArguments(label_granularity="coarse")) is None

    def test_description_missing(self, tmp_path):
        path = tmp_path / "own.json"
        path.write_text('{"descriptions": {"Praise": ["the speaker praises somebody"]}}')
        with pytest.raises(ValueError, match="Complain"):
            task_descriptions("mintrec", ["Praise", "Complain"], DataArguments(label_descriptions=str(path)))

    def test_case_of_descriptions_does_not_matter(self):
        found = task_descriptions("mintrec", ["ASK FOR HELP"], DataArguments())
        assert list(found) == ["ASK FOR HELP"] and found["ASK FOR HELP"]


class TestFewClips:
    def test_so_many_of_each(self, task):
        split = few_clips(task.splits["train"], 2, seed=0)
        labels, counts = np.unique(split["label"], return_counts=True)
        available = dict(zip(*np.unique(task.splits["train"]["label"], return_counts=True), strict=True))
        assert dict(zip(labels, counts, strict=True)) == {label: min(2, n) for label, n in available.items()}

    def test_out_of_scope_is_no_intent(self, task):
        split = with_labels(task.splits["train"], [-1] * 10 + task.splits["train"]["label"][10:])
        assert few_clips(split, 1, seed=0)["id"][:10] == split["id"][:10]

    def test_the_seed_draws(self, task):
        draws = [few_clips(task.splits["train"], 1, seed=seed)["id"][:] for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]


class TestHoldOut:
    def test_their_clips_are_gone_and_ids_follow(self, task):
        seen = hold_out(task, ["joke", "Care"])
        assert "Joke" not in seen.labels and len(seen.labels) == 18
        assert list(seen.label_descriptions) == seen.labels
        for name, split in seen.splits.items():
            before = task.splits[name]
            expected = [
                clip
                for clip, label in zip(before["id"], before["label_name"], strict=True)
                if label not in ("Joke", "Care")
            ]
            assert split["id"][:] == expected
            assert [seen.labels[label] for label in split["label"]] == split["label_name"][:]

    def test_clips_out_of_scope_from_the_start_stay(self, task):
        train = with_labels(task.splits["train"], [-1, -1, *task.splits["train"]["label"][2:]])
        seen = hold_out(dataclasses.replace(task, splits={"train": train}), ["Joke"])
        assert seen.splits["train"]["label"][:2] == [-1, -1]
        assert seen.splits["train"]["label"][:].count(-1) == 2

    def test_unknown_intent(self, task):
        with pytest.raises(ValueError, match="dance"):
            hold_out(task, ["Dance"])


class TestMergedTasks:
    def test_each_clip_keeps_its_own_label_set(self, tmp_path):
        first = texts_folder(tmp_path / "a", [("hello you", "Greet"), ("so late", "Complain")], [("hi", "Greet")])
        second = texts_folder(
            tmp_path / "b", [("Hi", "Greet"), ("hop in", "Invite"), ("join us", "Invite")], [("so  LATE!", "Invite")]
        )
        tasks = {
            name: load_task(DataArguments(dataset_name="folder", data_dir=str(folder)), seed=0)
            for name, folder in (("a", first), ("b", second))
        }
        merged = merge_tasks(tasks)
        assert set(merged.labels) == {"Complain", "Greet", "Invite"}
        for name, own in (("a", {"Complain", "Greet"}), ("b", {"Greet", "Invite"})):
            assert {merged.labels[index] for index in merged.candidates[name]} == own
        rows = [(row["dataset"], row["text"], merged.labels[row["label"]]) for row in merged.splits["train"]]
        # "so late" and "Hi", whatever the case and punctuation, are in the other set's validation split
        assert rows == [("a", "hello you", "Greet"), ("b", "hop in", "Invite"), ("b", "join us", "Invite")]
        assert len(merged.splits["validation"]) == 2


class TestModelArguments:
    def test_only_what_was_given(self):
        arguments = ModelArguments(text_model_name_or_path="somewhere", num_anchors=3, dropout=0.0)
        assert arguments.config_fields() == {"num_anchors": 3, "dropout": 0.0}

    def test_every_one_is_a_field_of_the_configuration(self):
        from amess_hf import AMESSConfig

        known = {item.name for item in dataclasses.fields(AMESSConfig)}
        given = {item.name for item in dataclasses.fields(ModelArguments)}
        assert given - known == {"text_model_name_or_path", "model_name_or_path", "freeze_word_embeddings"}
