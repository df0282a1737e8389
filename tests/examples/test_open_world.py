"""Tests on intents that are only described, with tiny models that do not know some of the demo's intents."""

import csv

import numpy as np
import open_world
import pytest
from demo_corpus import demo_label_descriptions, write_demo_corpus
from transformers import BertConfig, BertModel, BertTokenizer
from utils import TEXT_SIZES, tiny_model


LABELS = list(demo_label_descriptions())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(folder, what `main` returned) for two folds of models that are not trained."""
    folder = tmp_path_factory.mktemp("open_world")
    write_demo_corpus(folder / "corpus", clips_per_split={"train": 40, "dev": 40})
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"',-?!."]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(letters)})
    config = BertConfig(**TEXT_SIZES, intermediate_size=48)
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    for fold in (1, 2):
        known = [label for label in LABELS if label not in LABELS[fold - 1 :: 4]]
        model = tiny_model(
            fold,
            text_config=config,
            fusion_type="text",
            audio_config=None,
            video_config=None,
            projection_dim=0,
            id2label=dict(enumerate(known)),
            label_descriptions={label: demo_label_descriptions()[label] for label in known},
        )
        model.save_pretrained(folder / f"fold-{fold}")
        tokenizer.save_pretrained(folder / f"fold-{fold}")
    table = open_world.main(
        ["--data_dir", str(folder / "corpus"), "--text_model_name_or_path", str(folder / "encoder")]
        + ["--model_name_or_path", f"{folder / 'fold-1'},{folder / 'fold-2'}", "--output_dir", str(folder / "out")]
        + ["--sentences", "2", "--pretrained_shares", "0,1"]
    )
    return folder, table


@pytest.mark.slow
def test_every_model_and_share(scored):
    folder, table = scored
    names = {"pretrained share 0", "pretrained share 1", "untrained", "chance"}
    for rows in table.values():
        assert names <= set(rows)
        for figures in rows.values():
            seen, unseen = figures["seen_accuracy"], figures["unseen_accuracy"]
            mean = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
            assert figures["harmonic_accuracy"] == pytest.approx(mean)
    with open(folder / "out" / "open_world.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"fold-1", "fold-2"}


def test_table_has_means_over_the_folds(scored):
    folder, table = scored
    lines = (folder / "out" / "open_world.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| untrained |")]
    mean = 100 * np.mean([rows["untrained"]["unseen_accuracy"] for rows in table.values()])
    assert f"| {mean:.1f} ± " in line


def test_clips_that_were_trained_on_are_left_out(scored, tmp_path):
    folder, _ = scored
    names = {"model_name_or_path": "", "text_model_name_or_path": ""}
    arguments = open_world.OpenWorldArguments(**names, data_dir=str(folder / "corpus"), output_dir=str(tmp_path))
    whole = open_world.clips_to_score(arguments)
    arguments.trained_on = f"mintrec={folder / 'corpus'}"
    texts = open_world.clips_to_score(arguments)["text"]
    trained = {open_world.words_of(text) for text in open_world.load_mintrec(arguments.data_dir)["train"]["text"]}
    assert len(whole) == 40 and not {open_world.words_of(text) for text in texts} & trained
    arguments.trained_on = "mintrec"
    with pytest.raises(ValueError, match="give NAME=FOLDER"):
        open_world.clips_to_score(arguments)
