"""The demo, in a tiny setting: its table and its anchors are true, and a second start works; and once as it is."""

import json

import pytest
import run_demo
from demo_corpus import MODALITIES
from demo_examples import EXAMPLES


TINY = "--train_clips 40 --test_clips 20 --num_train_epochs 2 --hidden_size 16".split()

pytest.importorskip("av", reason='pip install "amess_hf[video]"')


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """(folder, what `main` returned, what it printed) of one tiny run."""
    return run_in(tmp_path_factory.mktemp("demo") / "out", *TINY)


def run_in(folder, *arguments):
    import contextlib
    import io

    printed, bars = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(bars):
        result = run_demo.main(["--output_dir", str(folder), *arguments])
    assert ["Drawing clips" in bars.getvalue(), "Encoding" in bars.getvalue()] == 2 * [
        "--disable_tqdm" not in arguments
    ]
    assert "train_runtime" not in printed.getvalue() + bars.getvalue()
    return folder, result, printed.getvalue()


@pytest.mark.slow
def test_it_prints_the_table_and_three_clips(demo_run):
    _, result, printed = demo_run
    sets = [tuple(row["modalities"]) for row in result["table"]]
    assert sets[0] == MODALITIES and len(set(sets)) == 7
    # One clip of each intent: it is the words of the whole group or the plain words of one.
    for row, best in zip(result["table"], (100, 50, 50, 20, 25, 10, 10), strict=True):
        assert f"| {100 * row['accuracy']:6.1f} % | {best:5.1f} % |" in printed
    assert ",," not in printed and "idle cores" in printed
    assert printed.count("    text     ") == printed.count("    intent   ") == 3


@pytest.mark.slow
def test_the_pipeline_answers_from_the_files_as_the_trained_model_from_features(demo_run):
    folder, result, _ = demo_run
    assert result["reloaded_accuracy"] == result["table"][0]["accuracy"]
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"model.safetensors", "processor_config.json", "oos_detector.json", "README.md"} <= names
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pkl"))


@pytest.mark.slow
def test_report_and_card(demo_run):
    pytest.importorskip("matplotlib", reason='pip install "amess_hf[report]"')
    folder, result, printed = demo_run
    assert str(folder / "report" / "test" / "report.md") in printed
    assert f"python examples/app/app.py --model {folder / 'model'}" in printed
    assert {"report.md", "modalities.png", "anchors_surest_right.png", "calibration.png"} <= {
        path.name for path in (folder / "report" / "test").iterdir()
    }
    results = json.loads((folder / "model" / "all_results.json").read_text())
    assert results["test_accuracy"] == result["table"][0]["accuracy"]
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "simulated clips" in card and "Of the test clips" in card


@pytest.mark.slow
def test_second_start_uses_the_same_corpus(demo_run):
    folder = demo_run[0]
    arguments = run_demo.DemoArguments(output_dir=folder, train_clips=40, test_clips=20)
    before = sorted(path.stat().st_mtime_ns for path in folder.glob("clips-*/*"))
    corpus, clips = run_demo.prepare_corpus(arguments)
    assert sorted(path.stat().st_mtime_ns for path in folder.glob("clips-*/*")) == before and corpus.is_dir()
    rows = (corpus / "test.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[3] for row in rows] == [clip.text for clip in clips]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_demo_names_the_intents_of_the_pages_examples(tmp_path):
    """`make demo` as it is; minutes, most of them to draw and train."""
    import app

    folder, result, _ = run_in(tmp_path / "out")
    accuracy = {tuple(row["modalities"]): row["accuracy"] for row in result["table"]}
    assert 0.75 < accuracy[MODALITIES] < 1.0
    assert max(accuracy[names] for names in accuracy if len(names) == 1) < accuracy[MODALITIES] - 0.2
    recognizer = app.Recognizer(str(folder / "model"))
    for example, drawn in zip(EXAMPLES, app.draw_examples(tmp_path), strict=True):
        best = recognizer.pipeline({"clip": drawn["clip"], "text": drawn["text"]})[0]["label"]
        assert best == (example.intent or "UNK"), example.name
