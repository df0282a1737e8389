"""Both training scripts, from the command line to the files that they write."""

import csv
import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import run_mir
import run_mir_no_trainer
import torch
from demo_corpus import write_demo_corpus
from huggingface_hub import ModelCard
from mir_common import one_line_errors, parse_arguments, run_for_each_seed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel, BertTokenizer
from utils import text_config

from amess_hf.data.mintrec import load_mintrec
from amess_hf.datasets_amess import DATASETS
from amess_hf.hub import files_for_hub
from amess_hf.training import WeightAverage
from amess_hf.training.run_state import last_complete_checkpoint


EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"run_mir": run_mir, "run_mir_no_trainer": run_mir_no_trainer}
METRICS = ("accuracy", "weighted_f1", "weighted_precision", "f1", "precision", "recall")


def make_text_encoder(folder):
    """A tiny BERT with a word-level vocabulary, saved as a pretrained encoder is."""
    words = sorted(
        set(re.findall(r"[a-z]+", "the you i a it is not so we they this that and to of in what please no"))
    )
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    BertModel(text_config()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Options that name a tiny folder of clips and a tiny text encoder."""
    folder = tmp_path_factory.mktemp("inputs")
    write_demo_corpus(folder / "data", seed=0, clips_per_split={"train": 23, "dev": 9, "test": 7})
    encoder = make_text_encoder(folder / "encoder")
    return {
        "data": {"dataset_name": "mintrec", "data_dir": str(folder / "data")},
        "encoder": {"text_model_name_or_path": encoder},
        "sizes": {"hidden_size": 16, "num_anchors": 2, "projection_dim": 8},
        "run": {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "save_total_limit": 1},
    }


def as_options(values):
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def run_script(script, values, flags=()):
    """What the script does with these options, in this process."""
    arguments = parse_arguments([*as_options(values), *(f"--{flag}" for flag in flags)])
    return run_for_each_seed(SCRIPTS[script].run, *arguments)


def read_predictions(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Folders of the same short training, one for each script."""
    folders = {}
    for script in SCRIPTS:
        folders[script] = tmp_path_factory.mktemp(script)
        values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 5}
        run_script(
            script,
            {**values, "output_dir": folders[script], "logging_steps": 2},
            ("do_train", "do_eval", "do_predict"),
        )
    return folders


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_of_a_run(trained, script):
    folder = trained[script]
    results = json.loads((folder / "all_results.json").read_text())
    for prefix in ("eval", "test"):
        for name in METRICS:
            assert 0 <= results[f"{prefix}_{name}"] <= 1
    assert results["train_samples" if script != "run_mir" else "train_steps_per_second"] > 0
    for name, clips in (("predictions_dev.tsv", 9), ("predictions_test.tsv", 7)):
        rows = read_predictions(folder / name)
        assert len(rows) == clips and list(rows[0]) == ["id", "label", "prediction", "score"]
        assert {row["prediction"] for row in rows} <= set(DATASETS["mintrec"].labels)
        assert all(0 < float(row["score"]) <= 1 for row in rows)
    rows = read_predictions(folder / "predictions_dev.tsv")
    share = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert share == pytest.approx(results["eval_accuracy"])
    for name in ("model.safetensors", "config.json", "tokenizer.json", "train_results.json", "eval_results.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("training_args.bin"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert list(model.config.id2label.values()) == DATASETS["mintrec"].labels
    assert AutoTokenizer.from_pretrained(folder)("please")["input_ids"][1] != 1


def test_both_scripts_reach_the_same(trained):
    first, second = (load_file(trained[script] / "model.safetensors") for script in SCRIPTS)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.sub(second[name]).abs().max() < 1e-6, name
    results = [json.loads((trained[script] / "all_results.json").read_text()) for script in SCRIPTS]
    for name in METRICS:
        assert results[0][f"eval_{name}"] == pytest.approx(results[1][f"eval_{name}"])
    histories = [json.loads((trained[script] / "trainer_state.json").read_text())["log_history"] for script in SCRIPTS]
    parts = [[line for line in history if "label_triplet_loss" in line] for history in histories]
    assert len(parts[0]) == len(parts[1]) == 2
    for one, other in zip(*parts, strict=True):
        for name in ("loss", "classification_loss", "label_triplet_loss", "label_contrastive_loss", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_scores_a_saved_model(trained, inputs, script, tmp_path):
    folder = trained["run_mir"]
    values = {**inputs["data"], "model_name_or_path": folder, "output_dir": tmp_path, "use_cpu": True}
    results = run_script(script, values, ("do_predict",))
    assert results["test_accuracy"] == json.loads((folder / "all_results.json").read_text())["test_accuracy"]
    assert read_predictions(tmp_path / "predictions_test.tsv") == read_predictions(folder / "predictions_test.tsv")
    assert not (tmp_path / "model.safetensors").exists()
    # dev was not asked for
    assert not (tmp_path / "predictions_dev.tsv").exists() and "eval_accuracy" not in results


def write_folder(folder, **splits):
    """A folder of one's own data, of words alone: split → labels of its clips."""
    folder.mkdir(parents=True)
    for split, labels in splits.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            rows = [(f"please, number {number}", label) for number, label in enumerate(labels)]
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_folders_that_have_little(inputs, script, tmp_path):
    """Training without dev; then a test split that lacks a label, and one of out-of-scope clips alone."""
    labels = ['say "hello"', "Refuse", "Thank"]
    values = {**inputs["encoder"], **inputs["run"], "dataset_name": "folder", "max_steps": 2}
    values |= {"data_dir": write_folder(tmp_path / "data", train=labels * 4), "output_dir": tmp_path / "run"}
    assert "eval_accuracy" not in run_script(script, values, ("do_train",))
    with pytest.raises(ValueError, match="`early_stopping_patience` is 2, but there are no clips to evaluate on"):
        run_script(script, {**values, "early_stopping_patience": 2}, ("do_train",))
    scored = {"dataset_name": "folder", "model_name_or_path": tmp_path / "run", "use_cpu": True}
    data = write_folder(tmp_path / "some", test=labels[:2])
    results = run_script(script, {**scored, "data_dir": data, "output_dir": tmp_path / "a"}, ("do_predict",))
    rows = read_predictions(tmp_path / "a" / "predictions_test.tsv")
    assert [row["label"] for row in rows] == labels[:2] and {row["prediction"] for row in rows} <= set(labels)
    assert results["test_accuracy"] == sum(row["label"] == row["prediction"] for row in rows) / 2
    data = write_folder(tmp_path / "other", test=["UNK", "UNK"], dev=["Refuse"])
    values = {**scored, "data_dir": data, "output_dir": tmp_path / "b"}
    results = run_script(script, values, ("do_predict", "out_of_scope_clips"))
    assert len(read_predictions(tmp_path / "b" / "predictions_test.tsv")) == 2 and "test_accuracy" not in results
    data = write_folder(tmp_path / "unknown", test=["Refuse", "Warn"])
    with pytest.raises(ValueError, match="the model does not know Warn; its labels are Refuse, Thank"):
        run_script(script, {**scored, "data_dir": data, "output_dir": tmp_path / "c"}, ("do_predict",))


def test_out_of_scope_figures_are_among_the_results(inputs, tmp_path):
    data = write_folder(tmp_path / "my_data", train=["Refuse", "Thank"] * 4, dev=["Refuse", "Thank", "UNK", "UNK"])
    values = {**inputs["encoder"], **inputs["run"], "dataset_name": "folder", "data_dir": data, "max_steps": 2}
    values |= {"output_dir": tmp_path / "run", "detector": "energy"}
    results = run_script("run_mir", values, ("do_train", "do_eval", "out_of_scope_clips"))
    assert 0 <= results["eval_oos_auroc"] <= 1 and 0 <= results["eval_open_f1_open"] <= 1
    answers = [row["prediction"] for row in read_predictions(tmp_path / "run" / "predictions_dev.tsv")]
    right = [answer == label for answer, label in zip(answers, ["Refuse", "Thank", "UNK", "UNK"], strict=True)]
    assert results["eval_open_accuracy"] == sum(right) / 4
    if importlib.util.find_spec("jinja2"):
        card = (tmp_path / "run" / "README.md").read_text()
        assert "F1-open" in card and "2 intents of my_data" in card


def write_official_folder(folder, name, **splits):
    """The tables of MIntRec or MIntRec2.0, of a few clips."""
    columns = {"mintrec": "season episode clip text label", "mintrec2.0": "Dialogue_id Utterance_id Source Text Label"}
    folder.mkdir()
    for split, labels in splits.items():
        rows = [f"1 {n} {n}".split() + [f"{split} of {name}, number {n}", label] for n, label in enumerate(labels)]
        lines = ["\t".join(row) for row in [columns[name].split(), *rows]]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_model_of_two_sets_answers_for_one(inputs, tmp_path):
    """Each clip against its own set's labels, whether the sets are scored together or one alone."""
    sets = {"mintrec": ["Complain", "Praise", "Greet"], "mintrec2.0": ["Doubt", "Praise", "Warn"]}
    folders = {
        name: write_official_folder(tmp_path / name, name, train=labels * 3, dev=labels)
        for name, labels in sets.items()
    }
    both = {"dataset_name": ",".join(folders), "data_dir": ",".join(map(str, folders.values()))}
    values = {**inputs["encoder"], **inputs["run"], **both, "max_steps": 2}
    together = run_script("run_mir", {**values, "output_dir": tmp_path / "run"}, ("do_train", "do_eval"))
    for name, folder in folders.items():
        scored = {"dataset_name": name, "data_dir": folder, "model_name_or_path": tmp_path / "run", "use_cpu": True}
        alone = run_script("run_mir", {**scored, "output_dir": tmp_path / f"{name}-scored"}, ("do_eval",))
        assert alone["eval_accuracy"] == together[f"eval_{name}_accuracy"]
        answers = {row["prediction"] for row in read_predictions(tmp_path / f"{name}-scored" / "predictions_dev.tsv")}
        assert answers <= set(DATASETS[name].labels)
    values |= {"output_dir": tmp_path / "held-out", "hold_out_intents": "Complain,Doubt"}
    assert 0 <= run_script("run_mir", values, ("do_train", "do_eval"))["eval_combined_harmonic_accuracy"] <= 1


def test_fields_of_a_saved_model(trained, inputs, tmp_path):
    """Training further takes new weights of losses; what the weights' shapes hang on cannot change."""
    values = {**inputs["data"], **inputs["run"], "model_name_or_path": trained["run_mir"], "max_steps": 1}
    values |= {"output_dir": tmp_path, "label_triplet_loss_weight": 0, "num_anchors": 2, "dropout": 0.5}
    run_script("run_mir", values, ("do_train",))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert (config.label_triplet_loss_weight, config.num_anchors, config.dropout) == (0, 2, 0.5)
    with pytest.raises(ValueError, match="`--fusion_type mean`: the saved model has anchor"):
        run_script("run_mir", {**values, "fusion_type": "mean"}, ("do_train",))


def test_held_out_intents_from_a_json_file(inputs, tmp_path):
    """Arguments in a file; the result has the figures of seen and unseen intents."""
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"]}
    values.update(output_dir=str(tmp_path / "run"), max_steps=2, do_train=True, fusion_type="text", save_strategy="no")
    values.update(eval_strategy="no", load_best_model_at_end=False, hold_out_intents=["Joke", "Care", "Thank"])
    values.update(label_update=5, learning_rate="2e-4", report_to=["none"], lr_scheduler_kwargs={})
    (tmp_path / "arguments.json").write_text(json.dumps(values))
    results = run_mir_no_trainer.run(*parse_arguments([str(tmp_path / "arguments.json")]))
    for path in ("similarity", "combined"):
        assert 0 <= results[f"eval_{path}_harmonic_accuracy"] <= 1
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.num_labels == 17


@pytest.mark.slow
def test_from_the_command_line(inputs, tmp_path):
    """In a process of its own, with two seeds."""
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 1}
    values.update(output_dir=tmp_path, seeds="3,5", save_strategy="no", eval_strategy="no")
    flags = ["--do_train", "--do_eval", "--load_best_model_at_end", "False"]
    command = [sys.executable, EXAMPLES / "run_mir.py", *as_options(values), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for seed in (3, 5):
        assert "eval_accuracy" in json.loads((tmp_path / f"seed-{seed}" / "all_results.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_dir": "missing-folder"}, "missing-folder"),
        ({"data_dir": ""}, "--data_dir"),
        ({"detector": "softmax"}, "choose one of msp"),
        ({"text_model_name_or_path": "missing-folder"}, "missing-folder"),
        ({"hold_out_intents": "Joke", "label_granularity": "coarse"}, "--label_descriptions"),
        ({"text_model_name_or_path": None}, "--text_model_name_or_path"),
        ({"hold_out_intents": "Joke,Laugh"}, "laugh"),
        ({"fusion_type": "sum"}, "fusion_type"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy"),
        ({"label_update": "0"}, "label_update"),
        ({"resume_from_checkpoint": "no-such-checkpoint"}, "no-such-checkpoint"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; it must be at least 1"),
        ({"gradient_accumulation_steps": -1}, "`gradient_accumulation_steps` is -1"),
        (
            {"metric_for_best_model": "acc"},
            "`metric_for_best_model` is 'acc'; it must be one of accuracy, weighted_f1",
        ),
        ({"seeds": "0,x"}, "`--seeds 0,x`: 'x' is not a number"),
        ({"seeds": "1,-2"}, "'-2' is not a number of at least 0"),
        ({"seeds": "1,2,1"}, "`--seeds 1,2,1` has 1 twice"),
        ({"seeds": "3,"}, "'' is not a number"),
        ({"seeds": "4294967296"}, "4294967296 is too large"),
        ({"load_in_8bit": True}, "`--load_in_8bit` is for a new model with an adapter"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "--load_in_4bit and --load_in_8bit exclude each other"),
        ({"evidence_spans": "spans.tsv"}, "`--evidence_spans` is for the report: give `--report` too"),
        ({"evidence_spans": "missing.tsv", "report": True}, "missing.tsv cannot be read"),
        ({"train_clips_per_intent": 0}, "`--train_clips_per_intent` is 0"),
        ({"context_turns": -1}, "`--context_turns` is -1"),
    ],
)
def test_bad_input_is_one_line(inputs, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_mir.py"])
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "output_dir": tmp_path}
    values = {name: value for name, value in {**values, **change}.items() if value is not None}
    with pytest.raises(SystemExit) as error, one_line_errors():
        run_script("run_mir", values, ("do_train",))
    assert str(error.value).startswith("run_mir.py: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("script", SCRIPTS)
def test_disk_that_fills_while_training(inputs, tmp_path, script, monkeypatch):
    """The checkpoint before stands alone, and the run goes on from it when there is room."""
    save = WeightAverage.save

    def full(average, folder):
        if folder.endswith("checkpoint-2"):
            raise OSError(errno.ENOSPC, "No space left on device", os.path.join(folder, "averaged_weights"))
        save(average, folder)

    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "output_dir": tmp_path}
    values |= {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    monkeypatch.setattr(WeightAverage, "save", full)
    with pytest.raises(
        SystemExit, match="checkpoint-2.*; free some space and start again: `--resume_from_checkpoint`"
    ):
        with one_line_errors():
            run_script(script, values, ("do_train",))
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "all_results.json").exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    monkeypatch.setattr(WeightAverage, "save", save)
    run_script(script, {**values, "resume_from_checkpoint": "True"}, ("do_train",))
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_output_folder_that_cannot_be_written(inputs, tmp_path, script):
    (tmp_path / "file").write_text("")
    values = {**inputs["data"], **inputs["encoder"], **inputs["run"], "output_dir": tmp_path / "file" / "run"}
    with pytest.raises(ValueError, match="`--output_dir` .*run cannot be written to"):
        run_script(script, values, ("do_train",))


def without_split(inputs, folder, missing):
    """The tiny data set without one of its splits."""
    folder.mkdir()
    for name in {"train", "dev", "test"} - {missing}:
        (folder / f"{name}.tsv").write_bytes(Path(inputs["data"]["data_dir"], f"{name}.tsv").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("missing", "option", "split"),
    [("test", "do_predict", "test"), ("dev", "do_eval", "validation"), ("train", "do_train", "train")],
)
def test_splits_are_looked_for_before_training(inputs, tmp_path, missing, option, split):
    values = {
        **inputs["data"],
        **inputs["encoder"],
        **inputs["sizes"],
        **inputs["run"],
        "output_dir": tmp_path / "run",
    }
    values["data_dir"] = without_split(inputs, tmp_path / "data", missing)
    with pytest.raises(ValueError, match=f"`--{option}` needs the split `{split}`, but the data has only"):
        run_script("run_mir", values, dict.fromkeys(["do_train", option]))
    assert not list((tmp_path / "run").glob("*.safetensors")) and not list((tmp_path / "run").glob("checkpoint-*"))


def test_labels_that_train_lacks_are_named(inputs, tmp_path, caplog):
    data = write_folder(tmp_path / "data", train=["Refuse", "Thank"] * 4, dev=["Refuse", "Warn"])
    values = {**inputs["encoder"], **inputs["run"], "dataset_name": "folder", "data_dir": data, "max_steps": 1}
    run_script("run_mir", {**values, "output_dir": tmp_path / "run"}, ("do_train",))
    assert (
        "the split validation has labels that train lacks, so their clips cannot be answered correctly: ['Warn']"
        in caplog.text
    )


def test_missing_test_split(trained, inputs, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_bytes(Path(inputs["data"]["data_dir"], name).read_bytes())
    values = {"dataset_name": "mintrec", "data_dir": tmp_path, "model_name_or_path": trained["run_mir"]}
    with pytest.raises(ValueError, match="`--do_predict` needs the split `test`, but the data has only train, valid"):
        run_script("run_mir", {**values, "output_dir": tmp_path / "out", "use_cpu": True}, ("do_predict",))


@pytest.mark.parametrize(
    "change",
    [
        {"label_triplet_loss_weight": 0, "label_contrastive_loss_weight": 0, "batch_triplet_loss_weight": 0},
        {"label_update": "50"},  # at most steps it is no label's turn
    ],
)
@pytest.mark.slow
def test_steps_without_descriptions(inputs, tmp_path, change):
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 3, **change}
    values |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    results = run_script("run_mir", {**values, "output_dir": tmp_path}, ("do_train", "do_eval"))
    assert 0 <= results["eval_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_seeds_are_aggregated_and_resume(inputs, script, tmp_path):
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 2}
    values |= {"output_dir": tmp_path, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    first = run_script(script, {**values, "seeds": "0,1"}, ("do_train", "do_eval"))
    assert list(first) == [0, 1]
    weights = tmp_path / "seed-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_script(script, {**values, "seeds": "0,1"}, ("do_train", "do_eval"))
    assert again == first and weights.stat().st_mtime_ns == written
    table = (tmp_path / "aggregate.md").read_text()
    assert "eval_accuracy" in table and "| 2 |" in table
    # what was not there before is made
    run_script(script, {**values, "seeds": "0,1"}, ("do_train", "do_eval", "do_predict"))
    assert (tmp_path / "seed-1" / "predictions_test.tsv").is_file()


def test_arguments_in_a_bad_file(tmp_path):
    path = tmp_path / "arguments.json"
    for content, message in (
        ("{,", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ('{"seed": "x"}', None),
    ):
        path.write_text(content)
        with pytest.raises(SystemExit if message is None else ValueError, match=message):
            parse_arguments([str(path)])
    with pytest.raises(ValueError, match=r"missing\.json is missing"):
        parse_arguments([str(tmp_path / "missing.json")])


def test_a_plain_encoder_is_no_model(inputs, tmp_path):
    values = {**inputs["data"], "model_name_or_path": inputs["encoder"]["text_model_name_or_path"], "use_cpu": True}
    with pytest.raises(ValueError, match="is a bert model; `--model_name_or_path` takes a saved A-MESS model"):
        run_script("run_mir", {**values, "output_dir": tmp_path}, ("do_predict",))


@pytest.mark.slow
def test_report_detector_and_card(inputs, tmp_path):
    pytest.importorskip("matplotlib")
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 2}
    values |= {"output_dir": tmp_path / "run", "eval_strategy": "no", "save_strategy": "no", "detector": "max_logit"}
    values |= {"load_best_model_at_end": False, "license": "mit", "language": "en, de"}
    clips = load_mintrec(inputs["data"]["data_dir"])["validation"]["id"]
    rows = [f"{clip}\t{modality}\t0\t1\t2\n" for clip in clips for modality in ("audio", "video")]
    (tmp_path / "spans.tsv").write_text("id\tmodality\tfirst\tend\tframes\n" + "".join(rows))
    values["evidence_spans"] = tmp_path / "spans.tsv"
    results = run_script("run_mir", values, ("do_train", "do_eval", "report"))
    assert "## Anchors and evidence" in (tmp_path / "run" / "report" / "dev" / "report.md").read_text()
    anchors = json.loads((tmp_path / "run" / "report" / "dev" / "metrics.json").read_text())["anchors"]
    assert {modality: values["clips"] for modality, values in anchors.items()} == dict.fromkeys(anchors, len(clips))
    assert anchors["audio"]["chance"] == 0.5
    assert (tmp_path / "run" / "oos_detector.json").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    metadata = ModelCard(card).data
    assert (metadata.license, metadata.language) == ("mit", ["en", "de"])
    assert f"{results['eval_accuracy']:.2f}"[:4] in card or str(results["eval_accuracy"]) in card
    # the saved detector answers when the model is only scored, and calls some clips out of scope
    answers = {row["prediction"] for row in read_predictions(tmp_path / "run" / "predictions_dev.tsv")}
    scored = {
        **inputs["data"],
        "model_name_or_path": tmp_path / "run",
        "output_dir": tmp_path / "scored",
        "use_cpu": True,
    }
    run_script("run_mir", scored, ("do_predict",))
    answers |= {row["prediction"] for row in read_predictions(tmp_path / "scored" / "predictions_test.tsv")}
    assert answers <= {*DATASETS["mintrec"].labels, "UNK"}
    # a detector that was made for other weights does not stay next to new ones
    run_script(
        "run_mir",
        {name: value for name, value in values.items() if name not in ("detector", "evidence_spans")},
        ("do_train",),
    )
    assert not (tmp_path / "run" / "oos_detector.json").exists()


def test_three_lines_of_python_give_the_same(inputs, tmp_path):
    """`from_text_pretrained` and `AMESSTrainer` with nothing but a data set are what the script does by default."""
    from transformers import set_seed

    from amess_hf import AMESSForIntentClassification, AMESSTrainer, AMESSTrainingArguments, load_mintrec

    values = {**inputs["data"], **inputs["encoder"], "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 2}
    run_script("run_mir", {**values, "output_dir": tmp_path / "script"}, ("do_train",))
    set_seed(42)
    dataset = load_mintrec(inputs["data"]["data_dir"])
    model = AMESSForIntentClassification.from_text_pretrained(
        inputs["encoder"]["text_model_name_or_path"], dataset=dataset["train"], label_descriptions="mintrec"
    )
    args = AMESSTrainingArguments(tmp_path / "python", use_cpu=True, disable_tqdm=True, num_train_epochs=2)
    given = args.to_dict()
    trainer = AMESSTrainer(model, args, train_dataset=dataset["train"], eval_dataset=dataset["validation"])
    trainer.train()
    trainer.save_model()
    assert args.to_dict() == given and args.learning_rate is None
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("script", "python"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("script", "python")]
    assert configs[0] == configs[1]


@pytest.mark.slow
class TestRunsThatWouldMix:
    """A folder whose run was asked for something else is not gone on with, and its figures are nobody else's."""

    @pytest.fixture(scope="class")
    def finished(self, inputs, tmp_path_factory):
        """Options of a finished run with one seed, and its folder."""
        folder = tmp_path_factory.mktemp("finished")
        values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 2}
        values |= {
            "output_dir": folder,
            "seeds": "5",
            "fusion_type": "text",
            "save_strategy": "steps",
            "save_steps": 1,
        }
        values |= {"eval_strategy": "no", "load_best_model_at_end": False}
        return values, run_script("run_mir", values, ("do_train", "do_eval"))

    @pytest.fixture
    def copied(self, finished, tmp_path):
        values, _ = finished
        shutil.copytree(values["output_dir"], tmp_path / "run")
        return {**values, "output_dir": tmp_path / "run"}

    @pytest.mark.parametrize("script", SCRIPTS)
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"learning_rate": 1e-3}, r"`learning_rate` \(0.0002 before, 0.001 now\)"),
            ({"max_steps": 3}, r"`max_steps` \(2 before, 3 now\)"),
            ({"fusion_type": "mean"}, "`config.fusion_type` .text before, mean now"),
            ({"train_clips_per_intent": 1}, "`train_clips` .23 clips, .* before, "),
        ],
    )
    def test_refused(self, copied, script, change, message):
        (copied["output_dir"] / "seed-5" / "finished.json").unlink()  # also where it was stopped half-way
        message = message if script == "run_mir" else "`written_by` .AMESSTrainer before, run_mir_no_trainer.py now"
        with pytest.raises(
            ValueError, match=f"seed-5 holds another run: it was created with different arguments: .*{message}"
        ):
            run_script(script, {**copied, **change}, ("do_train", "do_eval"))

    def test_other_data(self, copied, tmp_path):
        """A table whose words have changed, in the same place."""
        data = shutil.copytree(copied["data_dir"], tmp_path / "data")
        table = data / "train.tsv"
        *lines, last = table.read_text(encoding="utf-8").splitlines(keepends=True)
        *cells, text, label = last.split("\t")
        table.write_text("".join(lines) + "\t".join([*cells, f"please {text}", label]), encoding="utf-8")
        with pytest.raises(ValueError, match="`train_clips`"):
            run_script("run_mir", {**copied, "data_dir": data}, ("do_train", "do_eval"))

    def test_the_same_data_elsewhere(self, copied, finished, tmp_path):
        data = shutil.copytree(copied["data_dir"], tmp_path / "moved")
        assert run_script("run_mir", {**copied, "data_dir": data}, ("do_train", "do_eval")) == finished[1]

    def test_started_again(self, copied):
        values = {**copied, "learning_rate": 1e-3, "max_steps": 1}
        run_script("run_mir", values, ("do_train", "overwrite_run"))
        folder = copied["output_dir"] / "seed-5"
        # neither its checkpoint nor its figures
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
        assert "eval_accuracy" not in json.loads((folder / "all_results.json").read_text())
        assert not (folder / "predictions_dev.tsv").exists()
        assert json.loads((folder / "run.json").read_text())["learning_rate"] == 1e-3

    def test_only_named_seeds_count(self, copied, finished):
        other = copied["output_dir"] / "seed-7"
        other.mkdir()
        (other / "all_results.json").write_text('{"eval_accuracy": 0.0}')
        assert run_script("run_mir", copied, ("do_train", "do_eval")) == finished[1]
        assert "| 1 |" in (copied["output_dir"] / "aggregate.md").read_text()

    def test_other_test_clips(self, inputs, trained, tmp_path):
        """What is only scored: the folder holds the figures of one model."""
        values = {**inputs["data"], "use_cpu": True, "output_dir": tmp_path, "model_name_or_path": trained["run_mir"]}
        run_script("run_mir", values, ("do_eval",))
        run_script("run_mir", values, ("do_predict",))
        values["model_name_or_path"] = tmp_path / "other"
        shutil.copytree(trained["run_mir"], tmp_path / "other")
        weights = load_file(tmp_path / "other" / "model.safetensors")
        weights["amess.text_encoder.embeddings.position_embeddings.weight"] += 1
        save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="different arguments: `weights`"):
            run_script("run_mir", values, ("do_predict",))

    def test_unknown_run(self, copied):
        (copied["output_dir"] / "seed-5" / "run.json").unlink()
        with pytest.raises(ValueError, match=r"has no run\.json that says how it was created; give another"):
            run_script("run_mir", copied, ("do_train", "do_eval"))

    def test_what_ended_before_it_had_results(self, copied, tmp_path):
        """After training that diverged before the first checkpoint, a lower rate needs no permission."""
        values = {**copied, "output_dir": tmp_path / "new"}
        with pytest.raises(ValueError, match=r"the loss of step \d+ is not finite: `learning_rate` is 1e\+30"):
            run_script("run_mir", {**values, "learning_rate": 1e30, "max_steps": 9, "save_steps": 9}, ("do_train",))
        assert not list((tmp_path / "new" / "seed-5").glob("*.safetensors"))
        run_script("run_mir", values, ("do_train",))

    def test_nothing_of_it_goes_to_the_hub(self, copied):
        names = files_for_hub(copied["output_dir"] / "seed-5")
        assert "model.safetensors" in names and not {"run.json", "finished.json"} & set(names)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_from_outside(inputs, script, number, tmp_path):
    """While one run trains no other may; then it is told to stop, and does with one line and a whole checkpoint."""
    values = {**inputs["data"], **inputs["encoder"], **inputs["sizes"], **inputs["run"], "max_steps": 1_000_000}
    values |= {"output_dir": tmp_path, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "no"}
    values |= {"load_best_model_at_end": False, "logging_steps": 1_000_000}
    command = [sys.executable, EXAMPLES / f"{script}.py", *as_options(values), "--do_train"]
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the program.
    unignored = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unignored
    )
    try:
        while last_complete_checkpoint(tmp_path) is None:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        with pytest.raises(ValueError, match=rf"is in use by process {process.pid} on .* \({script}.py, since"):
            run_script(script, values, ("do_train",))
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert sum(number.name in line or "stopped by" in line for line in errors.splitlines()) == 1
    assert last_complete_checkpoint(tmp_path) is not None
    if number == signal.SIGTERM:
        assert f"{last_complete_checkpoint(tmp_path)} is saved" in errors
