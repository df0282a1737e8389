"""The demo, in a tiny setting: it trains, its table and its pictures of anchors are true, and a second start works."""

import re

import numpy as np
import pytest
import run_demo
from demo_corpus import MODALITIES, demo_clips


TINY = "--train_clips 240 --test_clips 100 --num_train_epochs 8 --hidden_size 32".split()


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """(folder, what `main` returned, what it printed) of one tiny run."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = run_demo.main(["--output_dir", str(folder), *TINY])
    return folder, result, printed.getvalue()


@pytest.mark.slow
def test_it_prints_the_table_and_three_clips(demo_run):
    _, result, printed = demo_run
    sets = [tuple(row["modalities"]) for row in result["table"]]
    assert sets[0] == MODALITIES and len(set(sets)) == 7
    for row, best in zip(result["table"], (100, 70, 70, 20, 55, 10, 10), strict=True):
        assert f"| {100 * row['accuracy']:6.1f} % | {best:5.1f} % |" in printed
    assert printed.count("    words    ") == printed.count("    intent   ") == 3
    assert len(re.findall(r"    (?:sound|picture)  +frames [\d, -]+ \(burst: \d+-\d+\)", printed)) == 6


@pytest.mark.slow
def test_the_reloaded_model_answers_as_the_trained_one(demo_run):
    folder, result, _ = demo_run
    assert result["reloaded_accuracy"] == result["table"][0]["accuracy"]
    assert (folder / "model" / "model.safetensors").is_file()
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pkl"))


@pytest.mark.slow
def test_report(demo_run):
    pytest.importorskip("matplotlib", reason='pip install "amess_hf[report]"')
    folder, _, printed = demo_run
    assert str(folder / "report" / "report.md") in printed
    assert {"report.md", "modalities.png", "anchors_surest_right.png"} <= {
        path.name for path in (folder / "report").iterdir()
    }


@pytest.mark.slow
def test_it_learns(demo_run):
    """A few passes do not make a good model, but one that is well above chance (0.05) and better than without the words."""
    accuracy = {tuple(row["modalities"]): row["accuracy"] for row in demo_run[1]["table"]}
    assert accuracy[MODALITIES] > 0.12
    assert accuracy["audio", "video"] < accuracy[MODALITIES]


@pytest.mark.slow
def test_second_start_uses_the_same_corpus(demo_run):
    folder = demo_run[0]
    arguments = run_demo.DemoArguments(output_dir=folder, train_clips=240, test_clips=100)
    before = sorted(path.stat().st_mtime_ns for path in folder.glob("corpus-*/*"))
    corpus, clips = run_demo.prepare_corpus(arguments)
    assert sorted(path.stat().st_mtime_ns for path in folder.glob("corpus-*/*")) == before and corpus.is_dir()
    rows = (corpus / "test.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[3] for row in rows] == [clip.text for clip in clips]


def test_tokenizer_knows_every_word_and_spells_new_ones():
    tokenizer = run_demo.build_tokenizer(["I can't believe it", "the lamp, anna"])
    assert tokenizer.tokenize("I can't believe the lamp") == ["i", "can", "'", "t", "believe", "the", "lamp"]
    assert tokenizer.tokenize("bat") == ["b", "##a", "##t"]
    assert tokenizer.unk_token_id not in tokenizer("anna believe, it")["input_ids"]
    assert tokenizer.pad_token_id == 0 and len(set(tokenizer.get_vocab().values())) == len(tokenizer)


def test_positions_are_shown_as_ranges():
    assert run_demo.as_ranges([7, 3, 4, 5]) == "3-5, 7"
    assert run_demo.as_ranges([0]) == "0"
    assert run_demo.as_ranges([]) == ""
    numbers = sorted(set(np.random.default_rng(0).integers(0, 60, 30).tolist()))
    spans = [[int(part) for part in text.split("-")] for text in run_demo.as_ranges(numbers[::-1]).split(", ")]
    assert [n for span in spans for n in range(span[0], span[-1] + 1)] == numbers


def test_anchors_that_hardly_count_are_not_shown():
    assert run_demo.kept_anchors(np.array([9, 2, 5, -1]), np.array([0.8, 0.4, 0.39, 0.0])) == [2, 9]
    assert run_demo.kept_anchors(np.array([-1, -1]), np.array([0.0, 0.0])) == []


def test_examples_are_ambiguous_clips_of_three_intents():
    clips = [clip for _, clip in demo_clips(seed=1, clips_per_split={"test": 60})]
    chosen = [clips[number] for number in run_demo.choose_examples(clips, 3)]
    assert len({clip.label for clip in chosen}) == 3 and not any(clip.plain for clip in chosen)
