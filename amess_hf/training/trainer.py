"""Trainer for A-MESS."""

from collections import defaultdict

import torch
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import has_length

from ..evaluation.metrics import in_scope_metrics
from ..hub import PushesToHub
from .checkpoint_integrity import (
    begin_checkpoint,
    check_free_space,
    check_output_dir,
    checkpoint_to_resume,
    write_manifest,
)
from .dataloader import mark_dynamic_lengths, training_dataloader
from .description_sampling import description_sampler, start_label_embeds, update_label_embeds
from .parameter_groups import default_learning_rate, parameter_groups
from .weight_averaging import WeightAverage, averaged_weights


LOSS_PARTS = (
    "classification_loss",
    "label_triplet_loss",
    "label_contrastive_loss",
    "batch_triplet_loss",
    "consistency_loss",
    "outlier_exposure_loss",
)


def prediction_metrics(prediction):
    """Metrics of an `EvalPrediction` with logits (clips, labels) and label ids (clips,); out-of-scope clips are left out."""
    return in_scope_metrics(prediction.predictions, prediction.label_ids)


class _AverageWeights(TrainerCallback):
    """Take the weights into the average after each step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.average.update()


class AMESSTrainer(PushesToHub, Trainer):
    """
    [`~transformers.Trainer`] for [`AMESSForIntentClassification`]: learning rates of the text encoder and the rest, the
    descriptions whose turn it is, an average of the weights that is evaluated and kept, and the parts of the loss in
    the log (`classification_loss`, `label_triplet_loss`, …).

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): The arguments.
        processing_class ([`AMESSProcessor`] or a tokenizer):
            Saved with the model; its tokenizer encodes the descriptions.
        kwargs: As for [`~transformers.Trainer`]. `compute_metrics` defaults to the in-scope metrics.
    """

    def __init__(self, model=None, args=None, processing_class=None, **kwargs):
        kwargs.setdefault("compute_metrics", prediction_metrics)
        if args.should_save:
            check_output_dir(args.output_dir)
        if args.learning_rate is None:
            args.learning_rate = default_learning_rate(model.config)
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if self.args.weight_averaging and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise ValueError(
                f"`weight_averaging` is {self.args.weight_averaging}, but with FSDP and DeepSpeed ZeRO-3 no process has the "
                "weights whole to average; give `--weight_averaging 0`"
            )
        self.average = None
        self._sampler = None  # of descriptions
        self._parts = defaultdict(list)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_cls(parameter_groups(model, self.args), **optimizer_kwargs)
        return self.optimizer

    def get_train_dataloader(self):
        if self.train_dataset is None:
            raise ValueError("training needs clips: pass `train_dataset`")
        if not has_length(self.train_dataset):
            # A stream: what the next batch is nobody knows, and accelerate shares it out.
            return super().get_train_dataloader()
        return training_dataloader(
            self.train_dataset, self.data_collator, self.args, self.accelerator, self.tokenizer, self.model.config
        )

    def _get_eval_sampler(self, eval_dataset):
        # In the data set's order, whatever training does: predictions are matched with clips by their place.
        return SequentialSampler(eval_dataset)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """
        [`~transformers.Trainer.train`]; `resume_from_checkpoint=True` goes on from the last whole checkpoint of the
        output folder, and begins from the start where there is none yet.

        Raises:
            `ValueError`: if the named checkpoint was cut while being written, or the disk has no room for the run.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self.args.should_save:
            check_free_space(self.args, self.model)
        if self.args.weight_averaging and self.average is None:
            self.average = WeightAverage(self.model, self.args.weight_averaging)
            self.add_callback(_AverageWeights(self))
        start_label_embeds(self.model, self.tokenizer)
        result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if self.average is not None:
            if not self.args.load_best_model_at_end:
                self.average.apply()
            self.pop_callback(_AverageWeights)
            self.average = None
        self._update_label_embeds()
        return result

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # Every process has written its part of the checkpoint now; the state of the Trainer follows, last of all.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(output_dir)

    def _update_label_embeds(self):
        if self.model.config.label_descriptions is not None:
            update_label_embeds(self.model, self.tokenizer)

    def _descriptions(self):
        """The description inputs of the present step, on the device."""
        if self._sampler is None:
            batches = len(self.callback_handler.train_dataloader)
            self._sampler = description_sampler(self.model.config, self.tokenizer, self.args, batches)
        return self._prepare_input(self._sampler(self.state.global_step))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            inputs = mark_dynamic_lengths({**inputs, **self._descriptions()}, self.accelerator)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            for name in LOSS_PARTS:
                if outputs.get(name) is not None:
                    self._parts[name].append(outputs[name])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        # The parts were kept on the device, and are fetched once a log line.
        if "loss" in logs and self._parts:
            for name, values in self._parts.items():
                logs[name] = self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
            self._parts.clear()
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        # What training draws after an evaluation is what it would have drawn without one.
        with averaged_weights(self.model, self.average, self.tokenizer), torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        if _internal_call and self.is_in_train and output_dir is not None and self.args.should_save:
            begin_checkpoint(output_dir)
        super().save_model(output_dir, _internal_call)
        # A checkpoint holds the weights to go on from, and beside them the average.
        if _internal_call and self.average is not None and self.args.should_save:
            self.average.save(output_dir)

    def _load_best_model(self):
        super()._load_best_model()
        if self.average is not None:
            self.average.load(self.state.best_model_checkpoint)
            self.average.apply()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(resume_from_checkpoint)
