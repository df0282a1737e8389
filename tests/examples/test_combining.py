"""Label sets that are merged, reduced, or taken from a model."""

import numpy as np
import pytest
from combining import (
    few_clips,
    hold_out_intents,
    in_labels_of,
    intents_to_hold_out,
    labels_of,
    merge_datasets,
    with_labels,
)
from demo_corpus import write_demo_corpus
from utils import tiny_config, write_table_folder

from amess_hf import load_mintrec


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "MIntRec"
    write_demo_corpus(folder, clips_per_split={"train": 60, "dev": 40})
    return folder


@pytest.fixture
def dataset(corpus):
    return load_mintrec(corpus)


class TestWithLabels:
    def test_rows_keep_their_features(self, dataset):
        names = labels_of(dataset)
        split = with_labels(dataset["train"], [-1, *dataset["train"]["label"][1:]], names, extra=list(range(60)))
        assert split[0]["label"] == -1 and split[3]["extra"] == 3 and labels_of({"train": split}) == names
        before, after = dataset["train"][5]["audio_features"], split[5]["audio_features"]
        assert isinstance(after, np.ndarray) and np.array_equal(before, after)


class TestFewClips:
    def test_so_many_of_each(self, dataset):
        split = few_clips(dataset["train"], 2, seed=0)
        labels, counts = np.unique(split["label"], return_counts=True)
        available = dict(zip(*np.unique(dataset["train"]["label"], return_counts=True), strict=True))
        assert dict(zip(labels, counts, strict=True)) == {label: min(2, n) for label, n in available.items()}

    def test_out_of_scope_is_not_an_intent(self, dataset):
        ids = [-1] * 10 + dataset["train"]["label"][10:]
        split = with_labels(dataset["train"], ids, labels_of(dataset))
        assert few_clips(split, 1, seed=0)["id"][:10] == split["id"][:10]

    def test_the_seed_draws(self, dataset):
        draws = [few_clips(dataset["train"], 1, seed=seed)["id"][:] for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]


class TestIntentsToHoldOut:
    @pytest.mark.parametrize(("labels", "folds"), [(20, 4), (30, 5), (7, 3)])
    def test_each_is_in_one_fold(self, labels, folds):
        names = [f"intent {index}" for index in range(labels)]
        parts = [intents_to_hold_out(f"fold:{k}/{folds}", names) for k in range(1, folds + 1)]
        assert sorted(sum(parts, [])) == sorted(names)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_names(self):
        assert intents_to_hold_out(" Joke, Ask for help ,", ["Joke"]) == ["Joke", "Ask for help"]
        assert intents_to_hold_out("", ["Joke"]) == []

    @pytest.mark.parametrize("names", ["fold:0/2", "fold:3/2", "fold:1/4", "fold:1/1", "fold:1", "fold:a/b"])
    def test_no_such_fold(self, names):
        with pytest.raises(ValueError, match="fold:K/N with K from 1 to N and N from 2 to 3"):
            intents_to_hold_out(names, ["Joke", "Care", "Leave"])


class TestHoldOutIntents:
    def test_their_clips_are_gone_and_ids_follow(self, dataset):
        seen = hold_out_intents(dataset, ["joke", "Care"])
        assert "Joke" not in labels_of(seen) and len(labels_of(seen)) == 18
        for name, split in seen.items():
            before = dataset[name]
            pairs = zip(before["id"], before["label_name"], strict=True)
            assert split["id"][:] == [clip for clip, label in pairs if label not in ("Joke", "Care")]
            assert [labels_of(seen)[label] for label in split["label"]] == split["label_name"][:]

    def test_clips_out_of_scope_from_the_start_stay(self, dataset):
        ids = [-1, -1, *dataset["train"]["label"][2:]]
        train = with_labels(dataset["train"], ids, labels_of(dataset))
        seen = hold_out_intents({"train": train}, ["Joke"])
        assert seen["train"]["label"][:2] == [-1, -1]
        assert seen["train"]["label"][:].count(-1) == 2

    def test_unknown_intent(self, dataset):
        with pytest.raises(ValueError, match="dance"):
            hold_out_intents(dataset, ["Dance"])


class TestMergedDatasets:
    @pytest.fixture
    def merged(self, tmp_path):
        train = [("hello you", "Greet"), ("so late", "Complain")]
        write_table_folder(tmp_path / "a", train=train, dev=[("hi", "Greet")])
        train = [("Hi", "Greet"), ("hop in", "Invite"), ("join us", "Invite")]
        write_table_folder(tmp_path / "b", train=train, dev=[("so  LATE!", "Invite")])
        return merge_datasets({name: load_mintrec(tmp_path / name, name="folder") for name in "ab"})

    def test_each_clip_keeps_its_own_label_set(self, merged):
        labels = labels_of(merged)
        assert set(labels) == {"Complain", "Greet", "Invite"}
        own = {"a": {"Complain", "Greet"}, "b": {"Greet", "Invite"}}
        rows = []
        for row in merged["train"]:
            rows.append((row["dataset"], row["text"], labels[row["label"]]))
            allowed = {label for label, there in zip(labels, row["candidate_mask"], strict=True) if there}
            assert allowed == own[row["dataset"]]
        # "so late" and "Hi", whatever the case and punctuation, are in the other set's validation split
        assert rows == [("a", "hello you", "Greet"), ("b", "hop in", "Invite"), ("b", "join us", "Invite")]
        assert len(merged["validation"]) == 2

    def test_held_out_intents_leave_the_masks(self, merged):
        seen = hold_out_intents(merged, ["Greet"])
        assert labels_of(seen) == ["Complain", "Invite"] and seen["train"]["candidate_mask"][:] == [[False, True]] * 2

    def test_in_the_order_of_a_model(self, merged):
        names = ["Invite", "Warn", "Greet", "Complain"]
        config = tiny_config(id2label=dict(enumerate(names)), label_descriptions=None)
        followed = in_labels_of(config, merged, "a,b")
        for before, after in zip(merged["train"], followed["train"], strict=True):
            assert labels_of(merged)[before["label"]] == names[after["label"]]
            assert sum(after["candidate_mask"]) == 2 and not after["candidate_mask"][1]

    def test_a_label_that_the_model_does_not_know(self, merged):
        with pytest.raises(ValueError, match="does not know"):
            in_labels_of(tiny_config(), merged, "a,b")

    def test_widths_must_agree(self, corpus, tmp_path):
        narrow = load_mintrec(corpus)
        for name in ("train", "validation"):
            column = [np.zeros((2, 3), dtype=np.float32).tolist()] * len(narrow[name])
            narrow[name] = narrow[name].remove_columns("audio_features").add_column("audio_features", column)
        with pytest.raises(ValueError, match="different widths: audio"):
            merge_datasets({"a": load_mintrec(corpus), "b": narrow})
