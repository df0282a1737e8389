"""Trainer for A-MESS."""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, EvalPrediction, ProcessorMixin, Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length

from ..configuration_amess import AMESSConfig
from ..data.collator import AMESSDataCollator
from ..evaluation.calibration import calibrate
from ..evaluation.metrics import CLASSIFICATION_METRICS
from ..evaluation.prediction import CLIP_OUTPUTS, ClipOutputs
from ..hub import PushesToHub
from ..modeling_amess import LOSS_PARTS, AMESSClassifierOutput, AMESSForIntentClassification
from ..processing_amess import AMESSProcessor
from . import run_state
from .arguments import AMESSTrainingArguments
from .batches import (
    LabelDescriptionSampler,
    count_loss_items,
    mark_dynamic_lengths,
    training_dataloader,
    update_label_embeds,
    warn_of_cuts,
)
from .standardization import standardize_statistics
from .weights import WeightAverage, averaged_weights, encoder_weights, mix_encoder_weights, parameter_groups


def _in_scope_metrics(prediction: EvalPrediction):
    """The metrics of the predictions; out-of-scope clips are left out."""
    from ..evaluation.metrics import in_scope_metrics

    logits = prediction.predictions
    return in_scope_metrics(logits[0] if isinstance(logits, tuple) else logits, prediction.label_ids)


def _processor_for(config: AMESSConfig, processing_class: Any):
    """The given processor, or one with the given tokenizer or that of where the model or its text encoder was loaded from."""
    if isinstance(processing_class, ProcessorMixin):
        return processing_class
    if processing_class is None:
        source = config._name_or_path or config.text_config._name_or_path
        try:
            processing_class = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no tokenizer in {source!r}; pass `processing_class`, a tokenizer or a processor"
            ) from error
    return AMESSProcessor.for_model(config, processing_class)


def _check_given(model: Any, train_dataset: Any, compute_loss_func: Any = None, **kwargs: Any):
    """Refuse what would lose the method in silence."""
    if model is None or type(model).__name__.startswith("PeftModel"):
        given = "missing" if model is None else f"a {type(model).__name__}, without the label embeddings"
        raise ValueError(
            f"`model` is {given}; give an `AMESSForIntentClassification`, adapted by `add_lora` if at all"
        )
    if isinstance(train_dataset, dict):
        raise ValueError(f"`train_dataset` has the splits {', '.join(train_dataset)}; give one of them")
    if compute_loss_func is not None:
        raise ValueError("`compute_loss_func` would replace the model's losses; override `compute_loss` instead")


@contextmanager
def _replaced(args: TrainingArguments, **values: Any) -> Iterator[None]:
    """Context in which arguments have other values."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


# All clips, in the order of the data set: predictions are matched with clips by position.
_WHOLE = {"dataloader_drop_last": False, "train_sampling_strategy": "sequential"}


class _AfterStep(TrainerCallback):
    """After each step: update the average of the weights, stop what has diverged, and end with a checkpoint after SIGTERM."""

    def __init__(self, trainer: "AMESSTrainer"):
        self.trainer = trainer
        self.ends = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer.average is not None and self.trainer._resumed is not None:
            self.trainer.average.load(self.trainer._resumed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update()
        # After the last step of an epoch, what is due at its end comes first.
        self._check_and_end(args, state, control, may_end=state.epoch != int(state.epoch))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._check_and_end(args, state, control, may_end=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.ends:
            self.trainer._preemption.stop(self.trainer._checkpoint(self.trainer._trial))

    def _check_and_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, may_end: bool):
        self.ends = may_end and self.trainer._preemption.is_due(self.trainer.accelerator, state.global_step)
        control.should_save = control.should_save or self.ends
        saves_or_evaluates = control.should_evaluate or control.should_save
        # A GPU is queried only where the host waits for it anyway.
        if control.should_log or saves_or_evaluates or args.device.type == "cpu":
            self.trainer._guard.check(state.global_step, weights=saves_or_evaluates)
        if self.ends and args.save_only_model:
            self.trainer._preemption.stop(None)


class AMESSTrainer(PushesToHub, Trainer):
    """[`~transformers.Trainer`] for [`AMESSForIntentClassification`], with the recipe of the project.

    That is: learning rates of the text encoder and the rest, the sampled descriptions, an average of the weights that
    is evaluated and kept, and the parts of the loss in the log (`classification_loss`, `label_triplet_loss`, …).
    Only a model is required; all defaults follow from it.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`], *optional*): The arguments; they are copied and not changed.
        data_collator (`Callable`, *optional*): Defaults to [`AMESSDataCollator`] with the processor.
        train_dataset (`datasets.Dataset`, *optional*): Clips as [`load_mintrec`] gives them.
        eval_dataset (`datasets.Dataset`, *optional*):
            Clips to evaluate on; without them nothing is evaluated while training, and the last weights are kept.
        processing_class ([`AMESSProcessor`] or a tokenizer, *optional*):
            Makes the batches, and is saved with the model. By default loaded from where the model or its text encoder
            was loaded from.
        kwargs: As for [`~transformers.Trainer`]. `compute_metrics` defaults to the in-scope metrics.

    Raises:
        ValueError: If no model is given, its tokenizer cannot be found, or the arguments contradict one another.

    Example:
        ```python
        >>> trainer = AMESSTrainer(model, train_dataset=dataset["train"], eval_dataset=dataset["validation"])
        >>> trainer.train()
        ```
    """

    def __init__(
        self,
        model: AMESSForIntentClassification | None = None,
        args: AMESSTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        args = AMESSTrainingArguments.of(args)
        model_init = self.model_init = kwargs.pop("model_init", None) if model is None else None
        if model_init is not None:
            set_seed(args.seed)
            model = super().call_model_init()
        _check_given(model, train_dataset, **kwargs)
        num_clips = len(train_dataset) if has_length(train_dataset) else None
        args = args.for_model(model.config, eval_dataset is not None, num_clips)
        if args.freeze_word_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        processor = _processor_for(model.config, processing_class)
        if "compute_metrics" not in kwargs:
            prefixes = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
            metrics = (*CLASSIFICATION_METRICS, "loss")
            args.check_best_metric([prefix + metric for prefix in prefixes for metric in metrics])
        kwargs.setdefault("compute_metrics", _in_scope_metrics)
        data_collator = data_collator or AMESSDataCollator(processor)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processor, **kwargs)
        self.model_init = model_init
        self.tokenizer = processor.tokenizer
        shards = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        for name in ("weight_averaging", "pretrained_share") if shards else ():
            if getattr(args, name):
                raise ValueError(
                    f"`{name}` needs whole weights, which FSDP and DeepSpeed ZeRO-3 shard; give `--{name} 0`"
                )
        self.average = None
        self._request = None  # what the training was asked for; checkpoints record it
        self._pretrained = None
        self._resumed = None  # checkpoint
        self._sampler = None  # of descriptions
        self._parts = defaultdict(list)
        self._guard = run_state.DivergenceGuard(self.model, self.args)
        self._preemption, self._trial = run_state.Preemption(), None
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer with the parameter groups of the recipe."""
        if self.optimizer is None:
            model = self.model if model is None else model
            given = self.optimizer_cls_and_kwargs
            optimizer_cls, optimizer_kwargs = given or self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_cls(parameter_groups(model, self.args), **optimizer_kwargs)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, with the same clips per step for any number of processes."""
        if not has_length(self.train_dataset):
            # A stream: its next batch is unknown, and accelerate distributes it.
            if self.args.label_update == "epoch":
                raise ValueError("a streamed `train_dataset` has no epochs: give `label_update` as a number of steps")
            return super().get_train_dataloader()
        return training_dataloader(
            self.train_dataset, self.data_collator, self.args, self.accelerator, self.tokenizer, self.model.config
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of all clips to evaluate on, in their order, whatever the options for training."""
        with _replaced(self.args, **_WHOLE):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the loader of all clips to predict, in their order, whatever the options for training."""
        with _replaced(self.args, **_WHOLE):
            return super().get_test_dataloader(test_dataset)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train, as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to resume from; `True` is the last complete one of the output folder, or the beginning if
                there is none yet.
            kwargs: As for [`~transformers.Trainer.train`].

        Raises:
            ValueError: If the given checkpoint was truncated while being written or created with different
                arguments, another process trains in the output folder, the disk is full, or the loss is no longer
                finite.
            SystemExit: With 143, after SIGTERM; a checkpoint is saved first.
        """
        with run_state.locked(self.args.output_dir) if self.args.should_save else nullcontext():
            return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs):
        args = self.args
        self._resumed = checkpoint = run_state.checkpoint_to_resume(resume_from_checkpoint, args.output_dir)
        if self.model_init is None:
            self._make_ready(self.model)
        callbacks = [run_state.TrainLoss(), _AfterStep(self)]
        for callback in callbacks:
            self.add_callback(callback)
        try:
            with run_state.Preemption() as self._preemption:
                result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            self._guard.check(self.state.global_step, weights=True)
            if self.average is not None:
                if args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                    self.average.load(self.state.best_model_checkpoint)
                self.average.apply()
        finally:
            self.average = None
            for callback in callbacks:
                self.pop_callback(type(callback))
        if self._pretrained is not None:
            mix_encoder_weights(self.model, self._pretrained, args.pretrained_share)
        update_label_embeds(self.model, self.tokenizer)
        self._calibrate()
        return result._replace(training_loss=result.metrics["train_loss"])

    def _calibrate(self):
        """Fit the temperatures of the trained model on dev, if there are clips with intents."""
        if has_length(self.eval_dataset) and not isinstance(self.eval_dataset, dict):
            outputs, _ = self.predict_clips(self.eval_dataset)
            if (outputs.labels >= 0).any():
                calibrate(self.model, outputs)

    def _make_ready(self, model: AMESSForIntentClassification):
        """Prepare a model for training, and what watches and averages it."""
        args = self.args
        # What the training was asked for is known before the first, which may be interrupted in this process.
        if self._request is None or self.model_init is not None:
            written_by = type(self).__name__
            self._request = run_state.training_request(model, args, self.train_dataset, self.eval_dataset, written_by)
        if self._resumed is not None:
            run_state.checkpoint_to_resume(self._resumed, args.output_dir, self._request)
        if args.should_save:
            run_state.check_free_space(args, model)
            if has_length(self.train_dataset) and len(self.train_dataset):
                warn_of_cuts(self.train_dataset, self.tokenizer, model.config)
        standardize_statistics(model, self.train_dataset, self.data_collator)
        update_label_embeds(model, self.tokenizer, missing_only=True)
        self._sampler, self._guard = None, run_state.DivergenceGuard(model, args)
        self.average = WeightAverage(model, args.weight_averaging) if args.weight_averaging else None
        if args.pretrained_share and (self._pretrained is None or self.model_init is not None):
            self._pretrained = encoder_weights(model)

    def call_model_init(self, trial: Any = None) -> AMESSForIntentClassification:
        """Make the model of a training or of a trial of `hyperparameter_search`, whose arguments count from here on."""
        model = super().call_model_init(trial)
        model = model.to(self.args.device) if self.place_model_on_device else model
        self._hp_search_setup(trial)
        if self.args.freeze_word_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        self._make_ready(model)
        return model

    @property
    def _train_loss(self):
        return next(
            callback for callback in self.callback_handler.callbacks if isinstance(callback, run_state.TrainLoss)
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list, torch.Tensor | None]:
        """Take the batches of an update, and count the clips of all of them for the losses."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, count_loss_items(batches, self.accelerator)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Run a batch's part of a step, and record its loss."""
        loss = super().training_step(*args, **kwargs)
        self._train_loss.add(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch, with the sampled descriptions, and keep its parts for the log."""
        if model.training:
            inputs = mark_dynamic_lengths({**inputs, **self._descriptions()}, self.accelerator)
            inputs["num_items_in_batch"] = num_items_in_batch
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            self._guard.add(loss, self.state.global_step + 1)
            for name in LOSS_PARTS:
                if outputs.get(name) is not None:
                    self._parts[name].append(outputs[name])
        return (loss, outputs) if return_outputs else loss

    def _descriptions(self):
        """The description inputs of the current step, on the device."""
        if self._sampler is None:
            loader = self.callback_handler.train_dataloader
            batches = len(loader) if has_length(loader) else 1
            self._sampler = LabelDescriptionSampler.for_model(self.model.config, self.tokenizer, self.args, batches)
        return self._prepare_input(self._sampler(self.state.global_step))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the parts of the loss."""
        # The parts were kept on the device, and are fetched once per log line.
        if "loss" in logs and self._parts:
            for name, values in self._parts.items():
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
            self._parts.clear()
        if "train_loss" in logs:
            self._train_loss.collect(self.accelerator)
            logs["train_loss"] = self._train_loss.total / max(1, self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate the averaged weights, without advancing training's random state."""
        average, self.average = self.average, None  # for each of several data sets, this is called once more
        try:
            # After an evaluation, training draws the same random numbers as without one.
            with averaged_weights(self.model, average, self.tokenizer), torch.random.fork_rng(devices=[]):
                return super().evaluate(*args, **kwargs)
        finally:
            self.average = average

    def predict_clips(self, dataset: Any, metric_key_prefix: str = "test") -> tuple[ClipOutputs, dict[str, float]]:
        """Predict a split once, on all processes, with everything that metrics, detector and report need.

        Args:
            dataset (`datasets.Dataset`): Clips, for metrics with labels.
            metric_key_prefix (`str`): Prefix of the metrics' names.

        Returns:
            `tuple`: a [`ClipOutputs`], and the metrics as [`~transformers.Trainer.predict`] gives them.
        """
        fields, config = AMESSClassifierOutput.__dataclass_fields__, self.model.config
        ignored = [name for name in fields if name not in CLIP_OUTPUTS]
        with _replaced(self.args, prediction_loss_only=False):
            result = self.predict(dataset, ignore_keys=ignored, metric_key_prefix=metric_key_prefix)
        absent = {"anchor": (), "late": ("anchor_indices", "anchor_scores")}
        absent = absent.get(config.fusion_type, ("anchor_indices", "anchor_scores", "evidence"))
        names = [name for name in fields if name in CLIP_OUTPUTS and name not in absent]
        outputs = dict(zip(names, result.predictions, strict=True))
        label_embeds = None if config.label_descriptions is None else self.model.label_embeds.float().cpu().numpy()
        return ClipOutputs.from_predictions(dataset, label_embeds=label_embeds, **outputs), result.metrics

    def _checkpoint(self, trial: Any = None):
        """The folder of the current step's checkpoint."""
        return os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _save_checkpoint(self, model: Any, trial: Any):
        # A checkpoint also holds the average of the weights and the run's arguments, and is pushed and makes others
        # superfluous only when it is complete, after all processes have written their part.
        checkpoint, args = self._checkpoint(trial), self.args
        self._train_loss.collect(self.accelerator)
        writing = run_state.writing_checkpoint(checkpoint, self._request, resumable=not args.save_only_model)
        with writing if args.should_save else nullcontext():
            with _replaced(args, push_to_hub=False, save_total_limit=None):
                super()._save_checkpoint(model, trial)
            if self.average is not None and args.should_save:
                self.average.save(checkpoint)
            self.accelerator.wait_for_everyone()
        if args.push_to_hub:
            self._push_from_checkpoint(checkpoint)
        if args.should_save:
            run_state.rotate_checkpoints(checkpoint, self.state.best_model_checkpoint, args.save_total_limit)
