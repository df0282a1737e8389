"""Both training scripts, from the command line to the files they leave behind."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_mir
import run_mir_no_trainer
import torch
from demo_corpus import write_demo_corpus
from mir_common import one_line_errors, parse_arguments, run_for_each_seed
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel, BertTokenizer
from utils import text_config

from amess_hf.data.labels import LABELS, MINTREC_LABELS


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
        assert {row["prediction"] for row in rows} <= set(MINTREC_LABELS)
        assert all(0 < float(row["score"]) <= 1 for row in rows)
    rows = read_predictions(folder / "predictions_dev.tsv")
    share = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert share == pytest.approx(results["eval_accuracy"])
    for name in ("model.safetensors", "config.json", "tokenizer.json", "train_results.json", "eval_results.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("training_args.bin"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert list(model.config.id2label.values()) == MINTREC_LABELS
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
        assert answers <= set(LABELS[name])
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
def test_output_folder_that_cannot_be_written(inputs, tmp_path, script):
    (tmp_path / "file").write_text("")
    values = {**inputs["data"], **inputs["encoder"], **inputs["run"], "output_dir": tmp_path / "file" / "run"}
    with pytest.raises(ValueError, match="`--output_dir` .*run cannot be written to"):
        run_script(script, values, ("do_train",))


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
    values |= {"load_best_model_at_end": False}
    results = run_script("run_mir", values, ("do_train", "do_eval", "report"))
    assert (tmp_path / "run" / "report" / "dev" / "report.md").is_file()
    assert (tmp_path / "run" / "oos_detector.json").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
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
    assert answers <= {*MINTREC_LABELS, "UNK"}
    # a detector that was made for other weights does not stay next to new ones
    run_script("run_mir", {name: value for name, value in values.items() if name != "detector"}, ("do_train",))
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
