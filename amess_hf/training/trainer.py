"""Trainer for A-MESS."""

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    EvalPrediction,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length

from ..configuration_amess import AMESSConfig
from ..data.collator import AMESSDataCollator
from ..evaluation.metrics import CLASSIFICATION_METRICS
from ..evaluation.prediction import CLIP_OUTPUTS, ClipOutputs
from ..hub import PushesToHub
from ..modeling_amess import LOSS_PARTS, AMESSClassifierOutput, AMESSForIntentClassification
from ..processing_amess import AMESSProcessor
from .arguments import AMESSTrainingArguments
from .checkpoint_integrity import (
    begin_checkpoint,
    check_free_space,
    check_output_dir,
    checkpoint_to_resume,
    write_manifest,
)
from .dataloader import mark_dynamic_lengths, training_dataloader
from .description_sampling import description_sampler, start_label_embeds, update_label_embeds
from .divergence import DivergenceGuard
from .parameter_groups import freeze_word_embeddings, parameter_groups
from .preemption import Preemption
from .run_lock import locked
from .run_record import check_checkpoint, training_request, write_record
from .standardisation import standardise_statistics
from .train_loss import TrainLoss
from .weight_averaging import WeightAverage, averaged_weights, encoder_weights, mix_encoder_weights


def prediction_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the in-scope metrics of the predictions; out-of-scope clips are left out.

    Args:
        prediction (`EvalPrediction`):
            Logits (clips, num_labels), alone or first in a tuple, and label ids (clips,).
    """
    from ..evaluation.metrics import in_scope_metrics

    logits = prediction.predictions
    return in_scope_metrics(logits[0] if isinstance(logits, tuple) else logits, prediction.label_ids)


def processor_for(config: AMESSConfig, processing_class: Any = None) -> AMESSProcessor:
    """Return the processor that makes the batches of a model.

    Args:
        config ([`AMESSConfig`]): The model's configuration.
        processing_class ([`AMESSProcessor`] or a tokenizer, *optional*):
            A processor is used as it is; a tokenizer becomes part of one. By default, the tokenizer is loaded from
            where the model or its text encoder was loaded from.

    Raises:
        ValueError: If there is no tokenizer there.
    """
    if isinstance(processing_class, ProcessorMixin):
        return processing_class
    if processing_class is None:
        source = config._name_or_path or config.text_config._name_or_path
        try:
            processing_class = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no tokenizer in {source or 'a model that was not loaded from anywhere'}; pass `processing_class`, a "
                "tokenizer or an `AMESSProcessor`"
            ) from error
    return AMESSProcessor.for_model(config, processing_class)


class _AverageWeights(TrainerCallback):
    """Update the average of the weights after each step."""

    def __init__(self, trainer: "AMESSTrainer"):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.trainer.average.update()


class _RestoreCounts(TrainerCallback):
    """Restore the counts of a checkpoint's callbacks: losses, evaluations without improvement."""

    def __init__(self, trainer: "AMESSTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TrainLoss):
                callback.restore(state)
            elif isinstance(callback, EarlyStoppingCallback):
                kept = state.stateful_callbacks.get(type(callback).__name__, {})
                vars(callback).update(kept.get("attributes", {}))


def check_best_metric(args: AMESSTrainingArguments, known: Sequence[str]) -> None:
    """Check that evaluations compute the metric by which checkpoints are compared.

    Args:
        args ([`AMESSTrainingArguments`]): The arguments.
        known (`Sequence[str]`): The metrics' names.

    Raises:
        ValueError: Naming the metric and the known ones.
    """
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name and args.eval_strategy != "no" and name not in known:
        raise ValueError(f"`metric_for_best_model` is {name!r}; it must be one of {', '.join(known)}")


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
        if model is None:
            raise ValueError("`model` is missing; give an `AMESSForIntentClassification`")
        if type(model).__name__.startswith("PeftModel"):
            raise ValueError(
                f"`model` is a {type(model).__name__}, whose adapters would not carry the label embeddings; give the model "
                "itself, after `amess_hf.training.add_lora(model)`"
            )
        num_clips = len(train_dataset) if has_length(train_dataset) else None
        args = (args or AMESSTrainingArguments()).for_model(model.config, eval_dataset is not None, num_clips)
        if args.should_save:
            check_output_dir(args.output_dir)
        if args.freeze_word_embeddings:
            freeze_word_embeddings(model)
        processor = processor_for(model.config, processing_class)
        if "compute_metrics" not in kwargs:
            check_best_metric(args, (*CLASSIFICATION_METRICS, "loss"))
        kwargs.setdefault("compute_metrics", prediction_metrics)
        super().__init__(
            model=model,
            args=args,
            data_collator=AMESSDataCollator(processor) if data_collator is None else data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            **kwargs,
        )
        self.tokenizer = processor.tokenizer
        for name in ("weight_averaging", "pretrained_share"):
            if getattr(self.args, name) and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)}, but with FSDP and DeepSpeed ZeRO-3 no process has whole "
                    f"weights to average; give `--{name} 0`"
                )
        self.average = None
        self._sampler = None  # of descriptions
        self._parts = defaultdict(list)
        self._guard = DivergenceGuard(self.model, self.args)
        self._preemption = Preemption()
        self._saved_step = None
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer with the parameter groups of the recipe."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_cls(parameter_groups(model, self.args), **optimizer_kwargs)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of training batches, with the same clips per step for any number of processes."""
        if self.train_dataset is None:
            raise ValueError("training needs clips: pass `train_dataset`")
        if not has_length(self.train_dataset):
            # A stream: its next batch is unknown, and accelerate distributes it.
            if self.args.label_update == "epoch":
                raise ValueError("a streamed `train_dataset` has no epochs: give `label_update` as a number of steps")
            return super().get_train_dataloader()
        return training_dataloader(
            self.train_dataset, self.data_collator, self.args, self.accelerator, self.tokenizer, self.model.config
        )

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs):
        # `dataloader_drop_last` is about training: every clip that is to be scored is scored.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_eval_sampler(self, eval_dataset: Any):
        # In the data set's order, unlike in training: predictions are matched with clips by position.
        return SequentialSampler(eval_dataset)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train, as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to resume from; `True` is the last complete one of the output folder, or the beginning if
                there is none yet.
            kwargs: As for [`~transformers.Trainer.train`].

        Raises:
            ValueError: If the given checkpoint was truncated while being written or belongs to a run with other
                settings, another process trains in the output folder, the disk is full, or the loss is no longer
                finite.
            SystemExit: With 143, after SIGTERM; a checkpoint is saved first.
        """
        if self.args.should_save:
            with locked(self.args.output_dir):
                return self._train(resume_from_checkpoint, **kwargs)
        return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs):
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        request = self.request  # created now, before the weights change
        if checkpoint is not None:
            check_checkpoint(checkpoint, request)
        if self.args.should_save:
            check_free_space(self.args, self.model)
        standardise_statistics(self.model, self.train_dataset, self.data_collator)
        if self.args.weight_averaging:
            self.average = WeightAverage(self.model, self.args.weight_averaging)
        pretrained = self._pretrained
        self._guard = DivergenceGuard(self.model, self.args)
        callbacks = [TrainLoss(), _RestoreCounts(self), *([_AverageWeights(self)] if self.average else [])]
        for callback in callbacks:
            self.add_callback(callback)
        start_label_embeds(self.model, self.tokenizer)
        try:
            with Preemption() as self._preemption:
                result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            self._guard.check(self.state.global_step, weights=True)
            if self.average is not None and not self.args.load_best_model_at_end:
                self.average.apply()
        finally:
            self.average = None
            for callback in callbacks:
                self.pop_callback(type(callback))
        if pretrained is not None:
            mix_encoder_weights(self.model, pretrained, self.args.pretrained_share)
        self._update_label_embeds()
        return result._replace(training_loss=result.metrics["train_loss"])

    @cached_property
    def _pretrained(self):
        # Kept from the first training on: after an interruption, training resumes with a half-trained model.
        return encoder_weights(self.model) if self.args.pretrained_share else None

    @cached_property
    def request(self) -> dict[str, Any]:
        """The settings of the training run; checkpoints record them."""
        return training_request(self.model, self.args, self.train_dataset, self.eval_dataset, type(self).__name__)

    @property
    def _train_loss(self):
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, TrainLoss))

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Run a batch's part of a step, and record its loss."""
        loss = super().training_step(*args, **kwargs)
        self._train_loss.add(loss)
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, model: Any, trial: Any, *args, **kwargs):
        step, control = self.state.global_step, self.control
        saves_or_evaluates = control.should_evaluate or control.should_save
        # A GPU is queried only where the host waits for it anyway.
        if control.should_log or saves_or_evaluates or self.args.device.type == "cpu":
            self._guard.check(step, weights=saves_or_evaluates)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self._preemption.is_due(self.accelerator, step):
            self._guard.check(step, weights=True)
            if self._saved_step != step and not self.args.save_only_model:
                self._save_checkpoint(model, trial)
            path = os.path.join(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            self._preemption.stop(None if self.args.save_only_model else path)

    def _save_checkpoint(self, model: Any, trial: Any):
        self._train_loss.collect(self.accelerator)
        super()._save_checkpoint(model, trial)
        self._saved_step = self.state.global_step

    def _save_rng_state(self, output_dir: str | None):
        super()._save_rng_state(output_dir)
        # Every process has written its part of the checkpoint; the Trainer's state follows last.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(output_dir)

    def _update_label_embeds(self):
        if self.model.config.label_descriptions is not None:
            update_label_embeds(self.model, self.tokenizer)

    def _descriptions(self):
        """The description inputs of the current step, on the device."""
        if self._sampler is None:
            loader = self.callback_handler.train_dataloader
            batches = len(loader) if has_length(loader) else 1
            self._sampler = description_sampler(self.model.config, self.tokenizer, self.args, batches)
        return self._prepare_input(self._sampler(self.state.global_step))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of a batch, with the sampled descriptions, and keep its parts for the log."""
        if model.training:
            inputs = mark_dynamic_lengths({**inputs, **self._descriptions()}, self.accelerator)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            self._guard.add(loss, self.state.global_step + 1)
            for name in LOSS_PARTS:
                if outputs.get(name) is not None:
                    self._parts[name].append(outputs[name])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the parts of the loss."""
        # The parts were kept on the device, and are fetched once per log line.
        if "loss" in logs and self._parts:
            for name, values in self._parts.items():
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
            self._parts.clear()
        if "train_loss" in logs:
            self._train_loss.collect(self.accelerator)
            logs["train_loss"] = self._train_loss.mean(self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate the averaged weights, without advancing training's random state."""
        # After an evaluation, training draws the same random numbers as without one.
        with averaged_weights(self.model, self.average, self.tokenizer), torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def predict_clips(self, dataset: Any, metric_key_prefix: str = "test") -> tuple[ClipOutputs, dict[str, float]]:
        """Predict a split once, on all processes, with everything that metrics, detector and report need.

        Args:
            dataset (`datasets.Dataset`): Clips with labels.
            metric_key_prefix (`str`): Prefix of the metrics' names.

        Returns:
            `tuple`: a [`ClipOutputs`], and the metrics as [`~transformers.Trainer.predict`] gives them.
        """
        ignored = [name for name in AMESSClassifierOutput.__dataclass_fields__ if name not in CLIP_OUTPUTS]
        result = self.predict(dataset, ignore_keys=ignored, metric_key_prefix=metric_key_prefix)
        has_anchors = self.model.config.fusion_type == "anchor"
        names = [name for name in AMESSClassifierOutput.__dataclass_fields__ if name in CLIP_OUTPUTS]
        names = [name for name in names if has_anchors or not name.startswith("anchor_")]
        outputs = dict(zip(names, result.predictions, strict=True))
        described = self.model.config.label_descriptions is not None
        label_embeds = self.model.label_embeds.float().cpu().numpy() if described else None
        return ClipOutputs.from_predictions(dataset, label_embeds=label_embeds, **outputs), result.metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and in a checkpoint also the average of its weights."""
        if _internal_call and self.is_in_train and output_dir is not None and self.args.should_save:
            begin_checkpoint(output_dir)
            write_record(output_dir, self.request)
        super().save_model(output_dir, _internal_call)
        # A checkpoint holds the weights to resume from, and next to them the average.
        if _internal_call and self.average is not None and self.args.should_save:
            self.average.save(output_dir)

    def _load_best_model(self):
        super()._load_best_model()
        if self.average is not None:
            self.average.load(self.state.best_model_checkpoint)
            self.average.apply()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(resume_from_checkpoint)
