"""Trainer for A-MESS."""

import math
from collections import defaultdict
from contextlib import contextmanager

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from ..evaluation.metrics import compute_classification_metrics
from ..hub import PushesToHub
from .averaging import WeightAverage
from .label_updates import LabelDescriptionSampler
from .optimization import parameter_groups


LOSS_PARTS = (
    "classification_loss",
    "triplet_loss",
    "label_contrastive_loss",
    "clip_contrastive_loss",
    "consistency_loss",
    "outlier_exposure_loss",
)


def prediction_metrics(prediction):
    """Metrics of an `EvalPrediction` with logits (clips, labels) and label ids (clips,); out-of-scope clips are left out."""
    in_scope = prediction.label_ids >= 0
    return compute_classification_metrics(
        predictions=prediction.predictions[in_scope].argmax(-1), references=prediction.label_ids[in_scope]
    )


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
    the log (`classification_loss`, `triplet_loss`, …).

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): The arguments.
        processing_class ([`AMESSProcessor`] or a tokenizer):
            Saved with the model; its tokenizer encodes the descriptions.
        kwargs: As for [`~transformers.Trainer`]. `compute_metrics` defaults to the in-scope metrics.
    """

    def __init__(self, model=None, args=None, processing_class=None, **kwargs):
        kwargs.setdefault("compute_metrics", prediction_metrics)
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.average = None
        self._sampler = None
        self._parts = defaultdict(list)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_cls(parameter_groups(model, self.args), **optimizer_kwargs)
        return self.optimizer

    def train(self, *args, **kwargs):
        if self.args.weight_averaging and self.average is None:
            self.average = WeightAverage(self.model, self.args.weight_averaging)
            self.add_callback(_AverageWeights(self))
        result = super().train(*args, **kwargs)
        if self.average is not None:
            if not self.args.load_best_model_at_end:
                self.average.apply()
            self.pop_callback(_AverageWeights)
            self.average = None
        self._update_label_embeds()
        return result

    def _update_label_embeds(self):
        if self.model.config.label_descriptions is not None:
            self.model.update_label_embeds(self.tokenizer)

    def _descriptions(self):
        """The description inputs of the present step, on the device."""
        config = self.model.config
        weights = config.triplet_loss_weight, config.label_contrastive_loss_weight
        if config.label_descriptions is None or not any(weights):
            return {}
        if self._sampler is None:
            names = [config.id2label[index] for index in range(config.num_labels)]
            steps = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
            self._sampler = LabelDescriptionSampler(
                {name: config.label_descriptions[name] for name in names},
                self.tokenizer,
                self.args.label_update_period(steps),
                self.args.seed,
            )
        return self._prepare_inputs(self._sampler(self.state.global_step))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            inputs = {**inputs, **self._descriptions()}
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
        with self._averaged_weights():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _averaged_weights(self):
        """While training, the model has the averaged weights and their label embeddings within it."""
        if self.average is None:
            yield
            return
        memory = self.model.label_embeds.clone()
        with self.average.applied():
            self._update_label_embeds()
            yield
        self.model.label_embeds.copy_(memory)

    def save_model(self, output_dir=None, _internal_call=False):
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
