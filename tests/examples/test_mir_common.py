"""What the training scripts share: arguments and the clips that they name."""

import dataclasses

import pytest
from demo_corpus import write_demo_corpus
from mir_common import DataArguments, ModelArguments, data_folders, find_label_descriptions, load_clips

from amess_hf import AMESSConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "MIntRec"
    write_demo_corpus(folder, clips_per_split={"train": 60, "dev": 40})
    return str(folder)


class TestModelArguments:
    def test_only_what_was_given(self):
        arguments = ModelArguments(text_model_name_or_path="somewhere", num_anchors=3, dropout=0.0)
        assert arguments.config_fields() == {"num_anchors": 3, "dropout": 0.0}

    def test_every_one_is_a_field_of_the_configuration(self):
        known = {item.name for item in dataclasses.fields(AMESSConfig)}
        given = {item.name for item in dataclasses.fields(ModelArguments)}
        assert given - known == {
            "text_model_name_or_path",
            "model_name_or_path",
            "lora_rank",
            "lora_target_modules",
            "load_in_4bit",
            "load_in_8bit",
            "teacher_model_name_or_path",
        }


class TestClips:
    def test_splits(self, corpus):
        dataset = load_clips(DataArguments(data_dir=corpus), seed=0)
        assert set(dataset) == {"train", "validation"} and len(dataset["train"]) == 60

    def test_few(self, corpus):
        assert len(load_clips(DataArguments(data_dir=corpus, train_clips_per_intent=1), seed=0)["train"]) <= 20

    def test_folders_must_match_names(self, corpus):
        with pytest.raises(ValueError, match="one folder for each"):
            data_folders(DataArguments(dataset_name="mintrec,mintrec2.0", data_dir=corpus))

    def test_a_name_stands_once(self, corpus):
        with pytest.raises(ValueError, match="names a data set twice"):
            data_folders(DataArguments(dataset_name="folder,folder", data_dir=f"{corpus},{corpus}"))


class TestDescriptions:
    def test_coarse_labels_have_none(self):
        assert find_label_descriptions(DataArguments(data_dir="x", label_granularity="coarse"), ["Emotion"]) is None

    def test_one_is_missing(self, tmp_path):
        path = tmp_path / "own.json"
        path.write_text('{"descriptions": {"Praise": ["the speaker praises somebody"]}}')
        with pytest.raises(ValueError, match="Complain"):
            find_label_descriptions(DataArguments(label_descriptions=str(path)), ["Praise", "Complain"])

    def test_case_does_not_matter(self):
        found = find_label_descriptions(DataArguments(data_dir="x"), ["ASK FOR HELP"])
        assert list(found) == ["ASK FOR HELP"] and found["ASK FOR HELP"]

    def test_of_two_sets(self):
        arguments = DataArguments(dataset_name="mintrec,mintrec2.0", data_dir="x,y")
        alone = find_label_descriptions(DataArguments(data_dir="x"), ["Praise"])["Praise"]
        both = find_label_descriptions(arguments, ["Praise", "Doubt"])
        assert both["Praise"][: len(alone)] == alone and len(set(both["Praise"])) == len(both["Praise"])
        assert list(both) == ["Praise", "Doubt"]
