"""What a model's configuration takes from a data set."""

import pytest
from datasets import Dataset, load_dataset
from demo_corpus import AUDIO_WIDTH, VIDEO_WIDTH, write_demo_corpus
from utils import write_table_folder

from amess_hf import load_mintrec
from amess_hf.datasets_amess import config_fields_for, label_names, text_length_for, usual_limits


def test_features_and_lengths(tmp_path):
    write_demo_corpus(tmp_path / "corpus", clips_per_split={"train": 20, "dev": 20})
    train = load_mintrec(tmp_path / "corpus")["train"]
    fields = config_fields_for(train)
    assert fields == {
        "context_turns": 0,
        "max_text_length": 30,
        "audio_config": {"feature_size": AUDIO_WIDTH, "max_length": 480},
        "video_config": {"feature_size": VIDEO_WIDTH, "max_length": 230},
    }
    assert label_names(train)[0] == "Complain"
    assert config_fields_for(train.remove_columns("audio_features")).keys() == fields.keys() - {"audio_config"}


def test_words_alone_are_not_fused(tmp_path):
    folder = write_table_folder(tmp_path / "data", train=[("hello you", "Greet"), ("so late", "Complain")])
    assert config_fields_for(load_mintrec(folder, name="folder")["train"]) == {
        "context_turns": 0,
        "fusion_type": "text",
    }


def test_context_takes_room(tmp_path):
    (tmp_path / "train.tsv").write_text(
        "Dialogue_id\tUtterance_id\tSource\tText\tLabel\n" + "".join(f"0\t{n}\tFriends\tno\tDoubt\n" for n in range(4))
    )
    train = load_mintrec(tmp_path, name="mintrec2.0", context_turns=2)["train"]
    fields = config_fields_for(train)
    assert (fields["context_turns"], fields["max_text_length"]) == (2, 150)
    assert config_fields_for(train, context_turns=1)["max_text_length"] == 100


def test_largest_of_several():
    limits = usual_limits(["mintrec", "mintrec2.0", "folder"])
    assert limits == {"text": 50, "audio": 480, "video": 230}
    assert usual_limits(["folder"], context_turns=3) == {}


def test_text_of_99_of_100_clips(tokenizer):
    """With the two special tokens; a turn of context has as much room."""
    words = [10] * 88 + [40] * 11 + [90]
    clips = Dataset.from_dict({"text": [" ".join(["hello"] * count) for count in words]})
    assert text_length_for(clips, tokenizer) == 42 and text_length_for(clips, tokenizer, context_turns=2) == 126
    assert text_length_for(clips.select(range(88)), tokenizer) == 30
    assert text_length_for(clips.select(range(90, 100)), tokenizer) == 92


def test_labels_must_be_named(tmp_path):
    folder = write_table_folder(tmp_path / "data", train=[("hello you", "Greet")])
    train = load_mintrec(folder, name="folder")["train"]
    with pytest.raises(ValueError, match="not a `ClassLabel`"):
        label_names(train.remove_columns("label"))


def test_a_data_set_without_its_name_is_known_by_its_labels(tmp_path):
    """As plain `push_to_hub` and Parquet files leave it."""
    write_demo_corpus(tmp_path / "corpus", clips_per_split={"train": 20, "dev": 20})
    train = load_mintrec(tmp_path / "corpus")["train"]
    train.to_parquet(tmp_path / "train.parquet")
    pushed = load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path), split="train"
    )
    assert pushed.info.config_name == "default"
    assert config_fields_for(pushed) == config_fields_for(train)


@pytest.mark.parametrize("column", ["clip", "video", "audio"])
def test_clips_that_are_not_read_are_named(column, caplog):
    rows = Dataset.from_dict({"text": ["hello"], column: ["a.mp4"]})
    assert config_fields_for(rows)["fusion_type"] == "text"
    assert f"the clips in the column `{column}` are not read: give `--audio_encoder log-mel" in caplog.text
    assert "--video_encoder hog" in caplog.text
    caplog.clear()
    config_fields_for(rows.remove_columns(column))
    assert "using fusion_type='text'" in caplog.text
