import os
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction
from utils import text_config, tiny_config, tiny_model

from amess_hf import AMESSForIntentClassification, AMESSProcessor, AMESSTrainer, AMESSTrainingArguments
from amess_hf.configuration_amess import IGNORED_LABEL_ID
from amess_hf.evaluation.prediction import predict_clips
from amess_hf.training import WeightAverage
from amess_hf.training.arguments import default_epochs, default_learning_rate


def arguments(tmp_path, **fields):
    return AMESSTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **fields)


class TestArguments:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("label_update", "often"), ("label_update", "0"), ("layer_decay", 0.0), ("layer_decay", 1.1),
         ("weight_averaging", 1.0), ("pretrained_share", 1.5), ("head_learning_rate", -1e-3),
         ("head_learning_rate", float("nan")), ("learning_rate", float("inf")), ("per_device_train_batch_size", 0),
         ("per_device_eval_batch_size", -2), ("gradient_accumulation_steps", 0), ("num_train_epochs", 0),
         ("early_stopping_patience", 0), ("train_sampling_strategy", "batch_rebalance")],
    )  # fmt: skip
    def test_bad_value(self, tmp_path, field, value):
        with pytest.raises(ValueError, match=f"`{field}` is"):
            arguments(tmp_path, **{field: value})

    def test_period(self, tmp_path):
        assert arguments(tmp_path, label_update="step").label_update_period(50) == 1
        assert arguments(tmp_path, label_update="epoch").label_update_period(50) == 50
        assert arguments(tmp_path, label_update="7").label_update_period(50) == 7


class TestEpochs:
    """Hundreds of steps, however few clips there are; data sets of usual size keep their six epochs."""

    @pytest.mark.parametrize(
        ("clips", "epochs"),
        [(1, 300), (16, 300), (100, 48), (368, 14), (600, 8), (799, 7), (800, 6), (1334, 6), (9304, 6)],
    )
    def test_default(self, clips, epochs):
        assert default_epochs(clips) == epochs

    def test_at_least_three_hundred_steps(self):
        assert all(default_epochs(clips) * -(-clips // 16) >= 300 for clips in range(1, 3000))

    @pytest.mark.parametrize("field", ["audio_config", "video_config"])
    def test_convolutions_learn_longer(self, field):
        config = tiny_config(**{field: {"num_conv_layers": 1}})
        assert [default_epochs(clips, config) for clips in (10, 600, 2000, 9304)] == [300, 54, 16, 6]
        assert default_epochs(600, tiny_config()) == 8

    def test_usual_size_is_as_before(self, tmp_path, caplog):
        args = arguments(tmp_path).for_model(tiny_config(), True, 1334)
        assert (args.num_train_epochs, args.eval_strategy, args.save_strategy) == (6, "epoch", "epoch")
        assert not caplog.records

    def test_few_clips(self, tmp_path, caplog):
        args = arguments(tmp_path).for_model(tiny_config(), True, 40)
        assert args.num_train_epochs == 120 and "40 training clips are few: 120 epochs, 360 steps" in caplog.text
        # 30 evaluations in place of 120
        assert (args.eval_strategy, args.eval_steps, args.save_steps) == ("steps", 12, 12)
        assert args.load_best_model_at_end

    @pytest.mark.parametrize("given", [{"num_train_epochs": 2}, {"max_steps": 5}])
    def test_what_is_given_counts(self, tmp_path, given, caplog):
        args = arguments(tmp_path, **given).for_model(tiny_config(), True, 40)
        assert args.num_train_epochs == given.get("num_train_epochs", 6) and args.eval_strategy == "epoch"
        assert not caplog.records


@pytest.mark.parametrize(("width", "rate"), [(32, 2e-4), (384, 2e-4), (768, 1e-4)])
def test_default_learning_rate_falls_with_the_width(width, rate):
    encoder = text_config()
    encoder.hidden_size = width
    assert default_learning_rate(tiny_config(text_config=encoder)) == pytest.approx(rate)


@pytest.fixture
def clips():
    words = "hello thanks late help".split() * 3
    return Dataset.from_list([{"id": str(n), "text": word, "label": n % 4} for n, word in enumerate(words)])


def test_private_methods_of_the_trainer():
    """What an update of transformers may break."""
    own = {name for each in AMESSTrainer.__mro__ if each.__module__.startswith("amess_hf") for name in vars(each)}
    private = {name for name in own & set(dir(Trainer)) if name.startswith("_") and not name.startswith("__")}
    assert private == {"_save", "_save_checkpoint", "_push_from_checkpoint"}


class TestTrainerWithLittle:
    @pytest.fixture
    def saved(self, tokenizer, tmp_path):
        """A model that was loaded from a folder which has a tokenizer."""
        tiny_model(fusion_type="text").save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return AMESSForIntentClassification.from_pretrained(tmp_path / "model")

    def test_nothing_but_a_model(self, saved, clips, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        trainer = AMESSTrainer(saved)
        assert isinstance(trainer.args, AMESSTrainingArguments) and isinstance(
            trainer.processing_class, AMESSProcessor
        )
        assert trainer.args.eval_strategy == "no" and trainer.args.learning_rate == pytest.approx(2e-4)
        assert trainer.predict(clips).metrics["test_accuracy"] >= 0
        # Out-of-scope clips are left out of the metrics.
        logits, labels = np.eye(4)[[0, 1, 2, 3, 0]], np.array([0, 1, 1, -1, -1])
        assert trainer.compute_metrics(EvalPrediction(logits, labels))["accuracy"] == pytest.approx(2 / 3)

    def test_no_model(self):
        with pytest.raises(ValueError, match="`model` is missing"):
            AMESSTrainer()

    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(ValueError, match="pass `processing_class`"):
            AMESSTrainer(tiny_model(), arguments(tmp_path))

    def test_given_arguments_stay_as_they_are(self, saved, tmp_path, caplog):
        args = arguments(tmp_path)
        before = args.to_dict()
        trainer = AMESSTrainer(saved, args)
        assert args.to_dict() == before and args.load_best_model_at_end
        assert not trainer.args.load_best_model_at_end

    def test_stopping_early_needs_clips(self, saved, tmp_path):
        with pytest.raises(ValueError, match="`early_stopping_patience` is 3"):
            AMESSTrainer(saved, arguments(tmp_path, early_stopping_patience=3))

    def test_unknown_metric(self, saved, clips, tmp_path):
        args = arguments(tmp_path, metric_for_best_model="acuracy")
        with pytest.raises(ValueError, match="`metric_for_best_model` is 'acuracy'; it must be one of accuracy, "):
            AMESSTrainer(saved, args, eval_dataset=clips)
        own = {"compute_metrics": lambda prediction: {"acuracy": 1.0}}
        assert AMESSTrainer(saved, args, eval_dataset=clips, **own).args.metric_for_best_model == "acuracy"

    def test_left_out_batches_are_those_of_training(self, saved, clips, tmp_path):
        """Twelve clips in batches of five: training drops two, dev and predictions drop none."""
        sizes = {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 5, "num_train_epochs": 1}
        unsaved = {"save_strategy": "no", "load_best_model_at_end": False}
        args = arguments(tmp_path, dataloader_drop_last=True, **sizes, **unsaved)
        trainer = AMESSTrainer(saved, args, train_dataset=clips, eval_dataset=clips)
        trainer.train()
        assert trainer.state.global_step == 2 and trainer.args.dataloader_drop_last
        assert trainer.predict_clips(clips)[0].ids == clips["id"]
        assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [5, 5, 2]

    def test_streams(self, saved, clips, tmp_path):
        """Clips that come one after another, as from a disk that holds more than fits."""
        stream = clips.to_iterable_dataset()
        steps = {"max_steps": 3, "eval_strategy": "steps", "save_strategy": "no", "load_best_model_at_end": False}
        args = arguments(tmp_path, **steps, eval_steps=3, per_device_train_batch_size=5)
        trainer = AMESSTrainer(saved, args, train_dataset=stream, eval_dataset=stream)
        result = trainer.train()
        assert trainer.state.global_step == 3 and result.training_loss > 0
        outputs, metrics = trainer.predict_clips(stream)
        alone = predict_clips(saved, clips, trainer.data_collator)
        np.testing.assert_allclose(outputs.logits, alone.logits, atol=1e-5)
        assert outputs.ids == alone.ids and metrics["test_accuracy"] == trainer.evaluate()["eval_accuracy"]

    def test_streams_have_no_epochs(self, saved, clips, tmp_path):
        stream = clips.to_iterable_dataset()
        trainer = AMESSTrainer(saved, arguments(tmp_path, max_steps=2, label_update="epoch"), train_dataset=stream)
        with pytest.raises(ValueError, match="give `label_update` as a number of steps"):
            trainer.train()

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_pretrained_share(self, saved, clips, tmp_path, interrupted):
        """What is kept lies between the encoder that came and the one that was trained, also after an interruption."""

        class Interrupt(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if interrupted and state.global_step == 3:
                    raise KeyboardInterrupt

        def train(share):
            model = AMESSForIntentClassification.from_pretrained(saved.config._name_or_path)
            folder = tmp_path / str(share)
            steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False}
            args = arguments(folder, eval_strategy="no", pretrained_share=share, learning_rate=1e-2, **steps)
            trainer = AMESSTrainer(model, args, train_dataset=clips)
            trainer.add_callback(Interrupt())
            try:
                trainer.train()
            except KeyboardInterrupt:
                trainer.remove_callback(Interrupt)
                trainer.train(resume_from_checkpoint=True)
            return model

        mixed, trained = train(0.25), train(0.0)
        moved = 0
        for name, before in saved.named_parameters():
            after = trained.get_parameter(name).detach()
            expected = 0.25 * before.detach() + 0.75 * after if "text_encoder." in name else after
            moved += float((after - before).abs().max())
            torch.testing.assert_close(mixed.get_parameter(name).detach(), expected)
        assert moved > 0.1

    @pytest.mark.parametrize("freeze", [True, False])
    def test_word_embeddings(self, saved, tmp_path, freeze):
        AMESSTrainer(saved, arguments(tmp_path, freeze_word_embeddings=freeze))
        assert saved.get_input_embeddings().weight.requires_grad is not freeze

    def test_a_split_is_predicted_once_with_all_that_is_needed(self, saved, clips, tmp_path):
        trainer = AMESSTrainer(saved, arguments(tmp_path))
        outputs, metrics = trainer.predict_clips(clips, "eval")
        alone = predict_clips(saved, clips, trainer.data_collator)
        for name in ("logits", "pooler_output", "multimodal_embeds", "label_embeds", "labels"):
            np.testing.assert_allclose(getattr(outputs, name), getattr(alone, name), atol=1e-5)
        assert outputs.ids == alone.ids and outputs.anchor_indices is None
        assert metrics["eval_accuracy"] == pytest.approx((outputs.predictions == outputs.labels).mean())


class TestOptionsOfTransformers:
    """Each does what transformers says, or is refused by name."""

    def train(self, tokenizer, folder, clips, *, args=None, model=None, **kwargs):
        short = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_strategy": "steps"}
        args = args if isinstance(args, TrainingArguments) else arguments(folder, **{**short, **(args or {})})
        if model is None and "model_init" not in kwargs:
            model = tiny_model(fusion_type="text")
        kwargs = {"train_dataset": clips, "eval_dataset": clips, "processing_class": tokenizer, **kwargs}
        trainer = AMESSTrainer(model, args, **kwargs)
        trainer.train()
        return trainer

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"args": {"label_smoothing_factor": 0.1}}, "`label_smoothing_factor` is 0.1; it must be 0: .*`label_smoothing`"),
            ({"args": {"fp16": True}}, "`fp16` needs an accelerator"),
            ({"compute_loss_func": len}, "`compute_loss_func` would replace the model's losses"),
            ({"train_dataset": DatasetDict(train=Dataset.from_dict({}))}, "`train_dataset` has the splits train; give one"),
            ({"args": {"prediction_loss_only": True}}, "`metric_for_best_model` is 'accuracy'; it must be one of loss"),
            ({"eval_dataset": {"a": [], "b": []}}, "'accuracy'; it must be one of a_accuracy, .*, b_loss"),
        ],
    )  # fmt: skip
    def test_refused(self, tokenizer, tmp_path, clips, values, message):
        with pytest.raises(ValueError, match=message):
            self.train(tokenizer, tmp_path, clips, **values)

    def test_one_split_of_a_data_set(self):
        with pytest.raises(ValueError, match="`dataset` has the splits train, test; give the one to train on"):
            AMESSForIntentClassification.from_text_pretrained("nowhere", dataset=DatasetDict(train={}, test={}))

    def test_plain_arguments_keep_their_values(self, tokenizer, tmp_path, clips):
        """transformers' own, with the defaults of this package for what they lack; its unused columns are used."""
        args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=2, report_to=[])
        trainer = self.train(tokenizer, tmp_path, clips, args=args)
        assert isinstance(trainer.args, AMESSTrainingArguments) and not isinstance(args, AMESSTrainingArguments)
        assert trainer.args.learning_rate == 5e-5 and trainer.args.weight_averaging == 0.99
        assert trainer.state.log_history[-1]["train_loss"] > 0 and args.remove_unused_columns
        with pytest.raises(ValueError, match="`label_smoothing_factor` is 0.1"):
            AMESSTrainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1))

    def test_unused_columns_stay(self, tokenizer, tmp_path, clips):
        """Training and evaluation read the words, whatever `remove_unused_columns` says."""
        trainers = [
            self.train(tokenizer, tmp_path / str(on), clips, args={"remove_unused_columns": on}) for on in (0, 1)
        ]
        one, other = (trainer.evaluate()["eval_loss"] for trainer in trainers)
        assert one == other

    def test_several_data_sets_to_evaluate_on(self, tokenizer, tmp_path, clips):
        """Each is evaluated with the averaged weights, which are those in use afterwards."""
        halves = {"a": clips.select(range(6)), "b": clips.select(range(6, 12))}
        options = {"args": {"metric_for_best_model": "eval_a_accuracy"}, "eval_dataset": halves}
        trainer = self.train(tokenizer, tmp_path / "both", clips, **options)
        alone = self.train(tokenizer, tmp_path / "one", clips, eval_dataset=halves["b"])
        both, one = (
            [line[name] for line in each.state.log_history if name in line]
            for each, name in ((trainer, "eval_b_loss"), (alone, "eval_loss"))
        )
        assert both == one and len(one) == 2 and trainer.state.best_metric is not None

    def test_only_the_loss(self, tokenizer, tmp_path, clips):
        values = {"prediction_loss_only": True, "metric_for_best_model": "loss"}
        trainer = self.train(tokenizer, tmp_path, clips, args=values)
        assert trainer.state.best_metric > 0 and trainer.predict_clips(clips)[0].logits.shape == (12, 4)

    def test_own_optimizer(self, tokenizer, tmp_path, clips):
        """It has the rates of the recipe."""
        options = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"momentum": 0.5})}
        trainer = self.train(
            tokenizer, tmp_path, clips, args={"lr_scheduler_type": "constant", "warmup_steps": 0}, **options
        )
        assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
        assert {group["lr"] for group in trainer.optimizer.param_groups} > {2e-4, 1e-3}
        assert trainer.optimizer.param_groups[0]["momentum"] == 0.5

    def test_clips_without_labels(self, tokenizer, tmp_path, clips):
        trainer = AMESSTrainer(tiny_model(fusion_type="text"), arguments(tmp_path), processing_class=tokenizer)
        known = trainer.predict_clips(clips)[0]
        for unlabelled in (clips.remove_columns("label"), [{"id": row["id"], "text": row["text"]} for row in clips]):
            outputs, metrics = trainer.predict_clips(unlabelled)
            np.testing.assert_array_equal(outputs.logits, known.logits)
            assert (outputs.labels == IGNORED_LABEL_ID).all() and "test_accuracy" not in metrics

    def test_model_init(self, tokenizer, tmp_path, clips):
        """The same each time, and after an interruption."""
        args = {"load_best_model_at_end": False, "pretrained_share": 0.25}
        make = {"model_init": lambda: tiny_model(fusion_type="text")}
        trainer = self.train(tokenizer, tmp_path, clips, args=args, **make)
        expected = trainer.model.state_dict()
        shutil.rmtree(tmp_path / "checkpoint-4")
        for resume in (True, None):
            trainer.train(resume_from_checkpoint=resume)
            given = trainer.model.state_dict()
            assert all(torch.equal(value, given[name]) for name, value in expected.items())
            trainer = AMESSTrainer(None, trainer.args, train_dataset=clips, processing_class=tokenizer, **make)

    def test_hyperparameter_search(self, tokenizer, tmp_path, clips):
        pytest.importorskip("optuna")
        init, rates = {"model": None, "model_init": lambda: tiny_model(fusion_type="text")}, []

        def space(trial):
            rates.append(trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True))
            return {"learning_rate": rates[-1], "weight_averaging": trial.suggest_float("weight_averaging", 0.5, 0.9)}

        args = arguments(
            tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=4
        )
        args.load_best_model_at_end = False
        trainer = AMESSTrainer(args=args, train_dataset=clips, eval_dataset=clips, processing_class=tokenizer, **init)
        best = trainer.hyperparameter_search(space, n_trials=2, direction="maximize", backend="optuna")
        assert best.hyperparameters["learning_rate"] in rates and len(set(rates)) == 2
        assert sorted(path.name for path in tmp_path.glob("run-*/checkpoint-*")) == ["checkpoint-4", "checkpoint-4"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        tiny_model().save_pretrained(tmp_path)
        WeightAverage(torch.nn.Linear(3, 2), 0.9).save(tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == mode, path.name
