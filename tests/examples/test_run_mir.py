"""Both training scripts, from the command line to the files that they write."""

import csv
import json
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
from command_line import one_line_errors
from demo_corpus import write_demo_corpus
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
    TrainingArguments,
    set_seed,
)
from utils import text_config, write_table_folder

from amess_hf import AMESSForIntentClassification, AMESSTrainer, AMESSTrainingArguments
from amess_hf.data.mintrec import load_mintrec
from amess_hf.datasets_amess import DATASETS
from amess_hf.hub import files_for_hub
from amess_hf.training.run_state import last_complete_checkpoint


EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"run_mir": run_mir, "run_mir_no_trainer": run_mir_no_trainer}
METRICS = ("accuracy", "weighted_f1", "weighted_precision", "f1", "precision", "recall")
SIZES = "hidden_size=16,num_anchors=2,projection_dim=8"
ONCE = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Options for a tiny folder of clips and a tiny text encoder."""
    folder = tmp_path_factory.mktemp("inputs")
    write_demo_corpus(folder / "data", seed=0, clips_per_split={"train": 23, "dev": 9, "test": 7})
    words = sorted(set("the you i a it is not so we they this that and to of in what please no".split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder / "encoder")
    BertModel(text_config()).save_pretrained(folder / "encoder")
    values = {"dataset_name": "mintrec", "data_dir": folder / "data", "text_model_name_or_path": folder / "encoder"}
    return {**values, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "save_total_limit": 1}


def as_options(values, flags=()):
    given = {name: value for name, value in values.items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))] + [f"--{f}" for f in flags]


def run(values, flags, script="run_mir", **changes):
    """What the script does with these options, in this process."""
    values = {"config_overrides": SIZES, **values, **changes}
    if values.get("model_name_or_path"):
        values |= {"text_model_name_or_path": None, "config_overrides": changes.get("config_overrides")}
    return SCRIPTS[script].main(as_options(values, flags.split()))


def read_predictions(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def write_folder(folder, **splits):
    """A folder of one's own data, of text alone: split → labels of its clips. Returns options."""
    for split, labels in splits.items():
        splits[split] = [(f"please, number {number}", label) for number, label in enumerate(labels)]
    write_table_folder(folder, **splits)
    return {"dataset_name": "folder", "data_dir": folder}


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Folders of the same short training, one for each script."""
    folders = {script: tmp_path_factory.mktemp(script) for script in SCRIPTS}
    for script, folder in folders.items():
        flags = "do_train do_eval do_predict"
        run(inputs, flags, script, output_dir=folder, max_steps=5, logging_steps=2)
    return folders


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_of_a_run(trained, script):
    folder = trained[script]
    results = json.loads((folder / "all_results.json").read_text())
    assert all(0 <= results[f"{prefix}_{name}"] <= 1 for prefix in ("eval", "test") for name in METRICS)
    assert results["train_steps_per_second"] > 0
    for name, clips in (("predictions_dev.tsv", 9), ("predictions_test.tsv", 7)):
        rows = read_predictions(folder / name)
        assert len(rows) == clips and list(rows[0]) == ["id", "label", "prediction", "score", "text"]
        assert {row["prediction"] for row in rows} <= set(DATASETS["mintrec"].labels)
        assert all(0 < float(row["score"]) <= 1 for row in rows)
    rows = read_predictions(folder / "predictions_dev.tsv")
    assert sum(row["label"] == row["prediction"] for row in rows) / len(rows) == results["eval_accuracy"]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "train_results.json", "eval_results.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("training_args.bin"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert list(model.config.id2label.values()) == list(DATASETS["mintrec"].labels)
    assert AutoTokenizer.from_pretrained(folder)("please")["input_ids"][1] != 1


def test_both_scripts_reach_the_same(trained):
    first, second = (load_file(trained[script] / "model.safetensors") for script in SCRIPTS)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    for split in ("dev", "test"):
        one, other = ((trained[script] / f"predictions_{split}.tsv").read_bytes() for script in SCRIPTS)
        assert one == other
    results = [json.loads((trained[script] / "all_results.json").read_text()) for script in SCRIPTS]
    for name in ("train_loss", "epoch", *(f"eval_{name}" for name in METRICS)):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-6), name
    histories = [json.loads((trained[script] / "trainer_state.json").read_text())["log_history"] for script in SCRIPTS]
    parts = [[line for line in history if "label_triplet_loss" in line] for history in histories]
    assert len(parts[0]) == len(parts[1]) == 2
    for one, other in zip(*parts, strict=True):
        for name in ("loss", "classification_loss", "label_triplet_loss", "label_contrastive_loss", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_three_lines_of_python_give_the_same(inputs, tmp_path):
    """`from_text_pretrained` and `AMESSTrainer` with nothing but a data set are what the script does by default."""
    run(inputs, "do_train", output_dir=tmp_path / "script", num_train_epochs=2, config_overrides=None)
    set_seed(42)
    dataset = load_mintrec(inputs["data_dir"])
    model = AMESSForIntentClassification.from_text_pretrained(
        inputs["text_model_name_or_path"], dataset=dataset["train"], label_descriptions="mintrec"
    )
    args = AMESSTrainingArguments(
        tmp_path / "python", use_cpu=True, disable_tqdm=True, num_train_epochs=2, per_device_train_batch_size=8
    )
    given = args.to_dict()
    trainer = AMESSTrainer(model, args, train_dataset=dataset["train"], eval_dataset=dataset["validation"])
    trainer.train()
    trainer.save_model()
    assert args.to_dict() == given and args.learning_rate is None
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("script", "python"))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("script", "python")]
    assert configs[0] == configs[1]


class TestArguments:
    def test_help_is_grouped_with_defaults_and_choices(self, capsys):
        with pytest.raises(SystemExit):
            run_mir.main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(f" {group}: --" in text for group in ("model", "data", "run", "our defaults)"))
        assert "(default: mintrec)" in text and "(default: 0.95)" in text and "default: None" not in text
        assert "--on_error {raise,skip}" in text and "--detector {msp,max_logit,energy," in text

    def test_own_options_are_few(self):
        kinds = (run_mir.ModelArguments, run_mir.DataArguments, run_mir.RunArguments, AMESSTrainingArguments)
        own = {name for kind in kinds for name in kind.__dataclass_fields__}
        assert len(own - set(TrainingArguments.__dataclass_fields__)) <= 40

    def test_config_overrides(self):
        text = "num_anchors=4,dropout=0.5,audio_config.max_length=400,audio_config.norm=clip,text_prefix=null,"
        assert run_mir.read_overrides(text + "description_prefix=well, so: ") == {
            "num_anchors": 4,
            "dropout": 0.5,
            "audio_config": {"max_length": 400, "norm": "clip"},
            "text_prefix": None,
            "description_prefix": "well, so: ",
        }
        assert run_mir.read_overrides(None) == {}

    @pytest.mark.parametrize(
        ("text", "near"),
        [
            ("context_turns=1", "--context_turns"),
            ("num_anchor=4", "num_anchors"),
            ("audio_config.max_len=4", "audio_config.max_length"),
            ("4", ""),
        ],
    )
    def test_unknown_field(self, text, near):
        with pytest.raises(ValueError, match=f"no field '{text.split('=')[0]}' to set; did you mean {near}"):
            run_mir.read_overrides(text)

    def test_json_file(self, inputs, tmp_path):
        """Held-out intents; the result has the figures of seen and unseen ones."""
        values = {**inputs, **ONCE, "output_dir": tmp_path / "run", "max_steps": 2, "do_train": True}
        values |= {"config_overrides": f"{SIZES},fusion_type=text", "hold_out_intents": ["Joke", "Care", "Thank"]}
        values |= {"label_update": 5, "learning_rate": "2e-4", "report_to": ["none"], "lr_scheduler_kwargs": {}}
        (tmp_path / "arguments.json").write_text(json.dumps(values, default=str))
        results = run_mir_no_trainer.main([str(tmp_path / "arguments.json")])
        for path in ("similarity", "combined"):
            assert 0 <= results[f"eval_{path}_harmonic_accuracy"] <= 1
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.num_labels == 17

    @pytest.mark.parametrize("content", ["{,", "[1]", '{"seed": "x"}', None])
    def test_bad_json_file(self, tmp_path, content):
        path = tmp_path / "arguments.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(
            ValueError, match="invalid int value: 'x'" if content == '{"seed": "x"}' else "should be JSON"
        ):
            run_mir.main([str(path)])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data_dir": "missing-folder"}, "missing-folder"),
            ({"data_dir": ""}, "names 1 local data set(s) and `--data_dir` 0 folder(s)"),
            ({"dataset_name": "mintrec,folder"}, "names 2 local data set(s) and `--data_dir` 1 folder(s)"),
            ({"detector": "softmax"}, "argument --detector: invalid choice: 'softmax' (choose from"),
            ({"text_model_name_or_path": "missing-folder"}, "missing-folder"),
            ({"hold_out_intents": "Joke", "label_granularity": "coarse"}, "--label_descriptions"),
            ({"text_model_name_or_path": None}, "--text_model_name_or_path"),
            ({"hold_out_intents": "Joke,Laugh"}, "laugh"),
            ({"config_overrides": "num_anchors=many"}, "`num_anchors`"),
            ({"config_overrides": "num_anchors"}, "`num_anchors`"),
            ({"label_update": "0"}, "label_update"),
            ({"resume_from_checkpoint": "no-such-checkpoint"}, "no-such-checkpoint"),
            ({"seeds": "0,x"}, "`--seeds 0,x` must be different numbers"),
            ({"seeds": "1,2,1"}, "`--seeds 1,2,1` must be different numbers"),
            ({"seeds": "4294967296"}, "`--seeds 4294967296` must be different numbers below 10^9"),
            ({"load_in": "8bit"}, "`--load_in 8bit` is for a new model with an adapter"),
            ({"evidence_spans": "missing.tsv"}, "missing.tsv is no table"),
            ({"train_clips_per_intent": 0}, "`--train_clips_per_intent` is 0"),
            ({"number_of_anchors": 4}, "--number_of_anchors"),
            ({"max_step": 4}, "--max_step"),
            ({"model_name_or_path": "."}, "is not a saved model that can be loaded"),
        ],
    )
    def test_bad_input_is_one_line(self, inputs, tmp_path, change, message, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["run_mir.py"])
        with pytest.raises(SystemExit) as error, one_line_errors():
            run(inputs, "do_train", output_dir=tmp_path, **change)
        assert str(error.value).startswith("run_mir.py: ") and message in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("missing", "option", "split"),
        [("test", "do_predict", "test"), ("dev", "do_eval", "validation"), ("train", "do_train", "train")],
    )
    def test_missing_split(self, inputs, tmp_path, missing, option, split):
        data = shutil.copytree(inputs["data_dir"], tmp_path / "data", ignore=shutil.ignore_patterns(f"{missing}.tsv"))
        with pytest.raises(ValueError, match=f"`--{option}` needs the split `{split}`, but the data has only"):
            run(inputs, "do_train" if option == "do_train" else f"do_train {option}", output_dir=tmp_path / "run",
                data_dir=data)  # fmt: skip
        assert not list((tmp_path / "run").glob("*.safetensors")) and not list((tmp_path / "run").glob("checkpoint-*"))

    @pytest.mark.parametrize("option", ["resume_from_checkpoint", "push_to_hub", "early_stopping_patience=2"])
    def test_what_the_loop_does_not_do(self, option):
        with pytest.raises(ValueError, match="this loop trains to the end and saves once"):
            run_mir_no_trainer.main(["--text_model_name_or_path", "x", "--do_train", *f"--{option}".split("=")])


class TestClips:
    def test_few(self, inputs):
        arguments = run_mir.DataArguments(data_dir=str(inputs["data_dir"]), train_clips_per_intent=1)
        dataset = run_mir.load_clips(arguments, seed=0)
        assert set(dataset) == {"train", "validation", "test"}
        assert len(set(dataset["train"]["label"])) == len(dataset["train"])

    def test_descriptions_of_two_sets(self):
        arguments = run_mir.DataArguments(dataset_name="mintrec,mintrec2.0", data_dir="x,y")
        alone = run_mir.find_label_descriptions(run_mir.DataArguments(data_dir="x"), ["PRAISE"])["PRAISE"]
        both = run_mir.find_label_descriptions(arguments, ["Praise", "Doubt"])
        assert both["Praise"][: len(alone)] == alone and len(set(both["Praise"])) == len(both["Praise"])
        assert list(both) == ["Praise", "Doubt"]

    @pytest.mark.parametrize(
        ("splits", "change", "message"),
        [
            ({"train": ["Refuse"] * 4}, {}, "'Refuse' is the only label: give at least two"),
            (
                {"train": ["Refuse", "Thank"], "dev": ["UNK"]},
                {"out_of_scope_clips": True},
                "no dev clip has an intent",
            ),
            (
                {"train": ["Refuse", "Thank"], "dev": ["Thank"]},
                {"detector": "label_similarity"},
                "`--label_descriptions",
            ),
        ],
    )
    def test_data_that_cannot_be_trained_on(self, inputs, tmp_path, splits, change, message):
        data = write_folder(tmp_path / "data", **splits)
        with pytest.raises(SystemExit, match=message), one_line_errors():
            run({**inputs, **data}, "do_train", output_dir=tmp_path / "run", **change)


class TestSavedModel:
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_scored(self, trained, inputs, script, tmp_path):
        folder = trained["run_mir"]
        results = run(inputs, "do_predict", script, model_name_or_path=folder, output_dir=tmp_path)
        assert results["test_accuracy"] == json.loads((folder / "all_results.json").read_text())["test_accuracy"]
        assert read_predictions(tmp_path / "predictions_test.tsv") == read_predictions(folder / "predictions_test.tsv")
        assert not (tmp_path / "model.safetensors").exists()
        # dev was not asked for
        assert not (tmp_path / "predictions_dev.tsv").exists() and "eval_accuracy" not in results

    def test_trained_further(self, trained, inputs, tmp_path):
        """With new weights of losses; what the weights' shapes hang on cannot change."""
        further = {**inputs, "model_name_or_path": trained["run_mir"], "max_steps": 1, "output_dir": tmp_path}
        overrides = "label_triplet_loss_weight=0,num_anchors=3,dropout=0.5,audio_config.max_length=7"
        run(further, "do_train", config_overrides=overrides)
        config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
        assert (config.label_triplet_loss_weight, config.num_anchors, config.dropout) == (0, 3, 0.5)
        assert config.audio_config.max_length == 7 and config.audio_config.feature_size is not None
        for change in ("fusion_type=mean", "hidden_size=8", "num_fusion_layers=1", "projection_dim=0"):
            with pytest.raises(ValueError, match=f"`--config_overrides {change}`: the saved weights do not fit"):
                run(further, "do_train", config_overrides=change)

    def test_plain_encoder(self, inputs, tmp_path):
        with pytest.raises(ValueError, match="is a bert model; `--model_name_or_path` takes a saved A-MESS model"):
            run(inputs, "do_predict", model_name_or_path=inputs["text_model_name_or_path"], output_dir=tmp_path)

    def test_other_features(self, trained, inputs, tmp_path):
        folder, dataset = trained["run_mir"], load_mintrec(inputs["data_dir"])
        config = AMESSForIntentClassification.from_pretrained(folder).config
        model_args = run_mir.ModelArguments(model_name_or_path=str(folder))
        message = r"the data's audio: .* is \('log-mel', None, .*\), but the model was trained with \(None, None, "
        with pytest.raises(ValueError, match=message):
            run_mir.saved_model(model_args, config, run_mir.DataArguments(audio_encoder="log-mel"), dataset)
        scored = {**inputs, "model_name_or_path": folder, "output_dir": tmp_path}
        run(scored, "do_predict", audio_features="none")  # it answers without


@pytest.mark.parametrize("script", SCRIPTS)
def test_folders_that_have_little(inputs, script, tmp_path):
    """Training without dev; then a test split that lacks a label, and one of out-of-scope clips alone."""
    labels = ['say "hello"', "Refuse", "Thank"]
    values = {**inputs, **write_folder(tmp_path / "data", train=labels * 4), "max_steps": 2}
    assert "eval_accuracy" not in run(values, "do_train", script, output_dir=tmp_path / "run")
    scored = {**inputs, "model_name_or_path": tmp_path / "run"}
    data = write_folder(tmp_path / "some", test=labels[:2])
    results = run({**scored, **data}, "do_predict", script, output_dir=tmp_path / "a")
    rows = read_predictions(tmp_path / "a" / "predictions_test.tsv")
    assert [row["label"] for row in rows] == labels[:2] and {row["prediction"] for row in rows} <= set(labels)
    assert results["test_accuracy"] == sum(row["label"] == row["prediction"] for row in rows) / 2
    data = write_folder(tmp_path / "other", test=["UNK", "UNK"], dev=["Refuse"])
    results = run({**scored, **data}, "do_predict out_of_scope_clips", script, output_dir=tmp_path / "b")
    assert len(read_predictions(tmp_path / "b" / "predictions_test.tsv")) == 2 and "test_accuracy" not in results
    data = write_folder(tmp_path / "unknown", test=["Refuse", "Warn"])
    with pytest.raises(ValueError, match="the model does not know Warn; its labels are Refuse, Thank"):
        run({**scored, **data}, "do_predict", script, output_dir=tmp_path / "c")


def test_out_of_scope_figures_are_among_the_results(inputs, tmp_path):
    data = write_folder(tmp_path / "my_data", train=["Refuse", "Thank"] * 4, dev=["Refuse", "Thank", "UNK", "UNK"])
    folder = tmp_path / "run"
    flags = "do_train do_eval out_of_scope_clips"
    results = run({**inputs, **data}, flags, output_dir=folder, detector="energy", max_steps=2)
    assert 0 <= results["eval_oos_auroc"] <= 1 and 0 <= results["eval_open_f1_open"] <= 1
    answers = [row["prediction"] for row in read_predictions(folder / "predictions_dev.tsv")]
    right = [answer == label for answer, label in zip(answers, ["Refuse", "Thank", "UNK", "UNK"], strict=True)]
    assert results["eval_open_accuracy"] == sum(right) / 4
    pytest.importorskip("jinja2")
    card = (folder / "README.md").read_text()
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
    both = {**inputs, "dataset_name": ",".join(folders), "data_dir": ",".join(map(str, folders.values()))}
    together = run(both, "do_train do_eval", output_dir=tmp_path / "run", max_steps=2)
    for name, folder in folders.items():
        scored = {**inputs, "dataset_name": name, "data_dir": folder, "model_name_or_path": tmp_path / "run"}
        alone = run(scored, "do_eval", output_dir=tmp_path / f"{name}-scored")
        assert alone["eval_accuracy"] == together[f"eval_{name}_accuracy"]
        answers = {row["prediction"] for row in read_predictions(tmp_path / f"{name}-scored" / "predictions_dev.tsv")}
        assert answers <= set(DATASETS[name].labels)
    held_out = {"output_dir": tmp_path / "held-out", "hold_out_intents": "Complain,Doubt", "max_steps": 2}
    assert 0 <= run(both, "do_train do_eval", **held_out)["eval_combined_harmonic_accuracy"] <= 1


@pytest.mark.slow
def test_report_detector_and_card(inputs, tmp_path):
    pytest.importorskip("matplotlib")
    values = {**inputs, **ONCE, "max_steps": 2, "output_dir": tmp_path / "run"}
    clips = load_mintrec(inputs["data_dir"])["validation"]["id"]
    rows = [f"{clip}\t{modality}\t0\t1\t2\n" for clip in clips for modality in ("audio", "video")]
    (tmp_path / "spans.tsv").write_text("id\tmodality\tfirst\tend\tframes\n" + "".join(rows))
    reported = {"detector": "max_logit", "license": "mit", "language": "en, de"}
    reported["evidence_spans"] = tmp_path / "spans.tsv"
    results = run(values, "do_train do_eval", **reported)
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
    run(inputs, "do_predict", model_name_or_path=tmp_path / "run", output_dir=tmp_path / "scored")
    answers |= {row["prediction"] for row in read_predictions(tmp_path / "scored" / "predictions_test.tsv")}
    assert answers <= {*DATASETS["mintrec"].labels, "UNK"}
    # a detector that was made for other weights does not stay next to new ones
    run(values, "do_train")
    assert not (tmp_path / "run" / "oos_detector.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {
            "config_overrides": "label_triplet_loss_weight=0,label_contrastive_loss_weight=0,batch_triplet_loss_weight=0"
        },
        {"label_update": "50"},  # at most steps it is no label's turn
    ],
)
def test_steps_without_descriptions(inputs, tmp_path, change):
    results = run({**inputs, **ONCE}, "do_train do_eval", output_dir=tmp_path, max_steps=3, **change)
    assert 0 <= results["eval_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_seeds_are_aggregated_and_resume(inputs, script, tmp_path):
    values = {**inputs, **ONCE, "max_steps": 2, "output_dir": tmp_path, "seeds": "0,1"}
    first = run(values, "do_train do_eval", script)
    assert list(first) == [0, 1]
    weights = tmp_path / "seed-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert run(values, "do_train do_eval", script) == first and weights.stat().st_mtime_ns == written
    table = (tmp_path / "aggregate.md").read_text()
    assert "eval_accuracy" in table and "| 2 |" in table
    # what was not there before is made
    run(values, "do_train do_eval do_predict", script)
    assert (tmp_path / "seed-1" / "predictions_test.tsv").is_file()


@pytest.mark.slow
class TestRunsThatWouldMix:
    """A folder whose run was asked for something else is not gone on with, and its figures are nobody else's."""

    @pytest.fixture(scope="class")
    def finished(self, inputs, tmp_path_factory):
        """Options of a finished run with one seed, and its metrics."""
        values = {**inputs, **ONCE, "max_steps": 2, "output_dir": tmp_path_factory.mktemp("finished"), "seeds": "5"}
        values |= {"config_overrides": f"{SIZES},fusion_type=text", "save_strategy": "steps", "save_steps": 1}
        return values, run(values, "do_train do_eval")

    @pytest.fixture
    def copied(self, finished, tmp_path):
        values, _ = finished
        return {**values, "output_dir": shutil.copytree(values["output_dir"], tmp_path / "run")}

    @pytest.mark.parametrize("script", SCRIPTS)
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"learning_rate": 1e-3}, r"`learning_rate` \(0.0002 before, 0.001 now\)"),
            ({"max_steps": 3}, r"`max_steps` \(2 before, 3 now\)"),
            ({"config_overrides": f"{SIZES},fusion_type=mean"}, "`config.fusion_type` .text before, mean now"),
            ({"train_clips_per_intent": 1}, "`train_clips` .23 clips, .* before, "),
        ],
    )
    def test_refused(self, copied, script, change, message):
        (copied["output_dir"] / "seed-5" / "finished.json").unlink()  # also where it was stopped half-way
        message = message if script == "run_mir" else "`written_by` .AMESSTrainer before, run_mir_no_trainer now"
        with pytest.raises(
            ValueError, match=f"seed-5 holds another run: it was created with different arguments: .*{message}"
        ):
            run(copied, "do_train do_eval", script, **change)

    def test_the_same_data_elsewhere(self, copied, finished, tmp_path):
        data = shutil.copytree(copied["data_dir"], tmp_path / "moved")
        assert run(copied, "do_train do_eval", data_dir=data) == finished[1]

    def test_started_again(self, copied):
        run(copied, "do_train overwrite_run", learning_rate=1e-3, max_steps=1)
        folder = copied["output_dir"] / "seed-5"
        # neither its checkpoint nor its figures
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
        assert "eval_accuracy" not in json.loads((folder / "all_results.json").read_text())
        assert not (folder / "predictions_dev.tsv").exists()
        assert json.loads((folder / "run.json").read_text())["learning_rate"] == 1e-3

    def test_asking_deletes_nothing(self, copied):
        folder = copied["output_dir"] / "seed-5"
        before = sorted(folder.rglob("*"))
        parsed = run_mir.parse_arguments(
            as_options({**copied, "output_dir": folder, "learning_rate": 1e-3}, ["do_train"])
        )
        prepared = run_mir.prepare(*parsed)
        assert not run_mir.is_finished(prepared, run_mir.what_is_asked(prepared, "AMESSTrainer"))
        assert sorted(folder.rglob("*")) == before

    def test_only_named_seeds_count(self, copied, finished):
        other = copied["output_dir"] / "seed-7"
        other.mkdir()
        (other / "all_results.json").write_text('{"eval_accuracy": 0.0}')
        assert run(copied, "do_train do_eval") == finished[1]
        assert "| 1 |" in (copied["output_dir"] / "aggregate.md").read_text()

    def test_other_test_clips(self, inputs, trained, tmp_path):
        """What is only scored: the folder holds the figures of one model."""
        scored = {**inputs, "output_dir": tmp_path / "scored", "model_name_or_path": trained["run_mir"]}
        run(scored, "do_eval")
        run(scored, "do_predict")
        other = shutil.copytree(trained["run_mir"], tmp_path / "other")
        weights = load_file(other / "model.safetensors")
        weights["amess.text_encoder.embeddings.position_embeddings.weight"] += 1
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="different arguments: `weights`"):
            run(scored, "do_predict", model_name_or_path=other)

    def test_unknown_run(self, copied):
        (copied["output_dir"] / "seed-5" / "run.json").unlink()
        with pytest.raises(
            ValueError,
            match=r"seed-5 holds another run: it has no run\.json that says how it was created; give another",
        ):
            run(copied, "do_train do_eval")

    def test_what_ended_before_it_had_results(self, copied, tmp_path):
        """After training that diverged before the first checkpoint, a lower rate needs no permission."""
        values = {**copied, "output_dir": tmp_path / "new"}
        message = r"the loss of step \d+ is not finite: `learning_rate` is 1e\+30"
        with pytest.raises(ValueError, match=message):
            run(values, "do_train", learning_rate=1e30, max_steps=9, save_steps=9)
        assert not list((tmp_path / "new" / "seed-5").glob("*.safetensors"))
        run(values, "do_train")

    def test_nothing_of_it_goes_to_the_hub(self, copied):
        names = files_for_hub(copied["output_dir"] / "seed-5")
        assert "model.safetensors" in names and not {"run.json", "finished.json"} & set(names)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_from_outside(inputs, number, tmp_path):
    """While one run trains no other may; then it is told to stop, and does with one line and a whole checkpoint."""
    values = {**inputs, "max_steps": 1_000_000, "logging_steps": 1_000_000, "output_dir": tmp_path}
    values |= {**ONCE, "save_strategy": "steps", "save_steps": 5, "config_overrides": SIZES}
    command = [sys.executable, EXAMPLES / "run_mir.py", *as_options(values, ["do_train"])]
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the program.
    unignored = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unignored
    )
    try:
        while last_complete_checkpoint(tmp_path) is None:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        for script in SCRIPTS:
            with pytest.raises(ValueError, match=rf"is in use by process {process.pid} on .* \(.*run_mir.py, since"):
                run(values, "do_train", script)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert sum(number.name in line or "stopped by" in line for line in errors.splitlines()) == 1
    assert last_complete_checkpoint(tmp_path) is not None
    if number == signal.SIGTERM:
        assert f"{last_complete_checkpoint(tmp_path)} is saved" in errors
