#!/usr/bin/env python3
"""
The same as `run_mir.py`, with a plain accelerate loop in place of the Trainer: to see each step of training, or to change one.

    python examples/run_mir_no_trainer.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/mintrec --do_train --do_eval --do_predict

The arguments and the result are the same. The model is saved once, at the end.
"""

import contextlib
import json
import math
import os
import time
from collections import defaultdict
from itertools import count, islice

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from aggregation import update_results
from command_line import one_line_errors
from run_mir import claim_folder, evaluate, for_each_seed, is_finished, parse_arguments, prepare, what_is_asked
from transformers import get_scheduler, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TrainerState
from transformers.utils import logging

from amess_hf import AMESSDataCollator, AMESSTrainer
from amess_hf.evaluation import calibrate, predict_clips
from amess_hf.evaluation.metrics import CLASSIFICATION_METRICS, in_scope_metrics
from amess_hf.hub import save_for_hub
from amess_hf.modeling_amess import LOSS_PARTS
from amess_hf.training import WeightAverage, parameter_groups
from amess_hf.training.batches import (
    LabelDescriptionSampler,
    count_loss_items,
    mark_dynamic_lengths,
    training_dataloader,
    update_label_embeds,
)
from amess_hf.training.run_state import DivergenceGuard
from amess_hf.training.standardization import standardize_statistics
from amess_hf.training.weights import averaged_weights, encoder_weights, mix_encoder_weights


logger = logging.get_logger("amess_hf.run_mir_no_trainer")

# A loss with zero weight, or a batch without audio, leaves some weights without gradient.
DDP_ARGUMENTS = DistributedDataParallelKwargs(find_unused_parameters=True)


def predict(accelerator, model, collator, split, batch_size):
    """The [`ClipOutputs`] of a split, on every process, without advancing training's random state."""
    with torch.random.fork_rng(devices=[]), accelerator.autocast():
        return predict_clips(model, split, collator, batch_size)


def metrics_of(outputs, prefix):
    """In-scope metrics as `{prefix}_…`."""
    return {f"{prefix}_{name}": value for name, value in in_scope_metrics(outputs.logits, outputs.labels).items()}


class Training:
    """A training run: `run()` trains the model, which then has its best or its last weights."""

    def __init__(self, accelerator, model, args, train_dataset, eval_dataset, processor):
        args.check_best_metric(CLASSIFICATION_METRICS)
        if args.freeze_word_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        self.accelerator, self.args, self.eval_dataset = accelerator, args, eval_dataset
        self.model, self.tokenizer, self.collator = model, processor.tokenizer, AMESSDataCollator(processor)
        model.to(accelerator.device)
        self.pretrained = encoder_weights(model) if args.pretrained_share else None
        update_label_embeds(model, self.tokenizer, missing_only=True)
        standardize_statistics(model, train_dataset, self.collator)
        loader = training_dataloader(train_dataset, self.collator, args, accelerator, self.tokenizer, model.config)
        self.loader, self.steps_per_epoch = loader, math.ceil(len(loader) / args.gradient_accumulation_steps)
        self.max_steps = args.max_steps
        if self.max_steps <= 0:
            self.max_steps = math.ceil(args.num_train_epochs * self.steps_per_epoch)
        self.descriptions = LabelDescriptionSampler.for_model(model.config, self.tokenizer, args, len(loader))
        optimizer_class, settings = AMESSTrainer.get_optimizer_cls_and_kwargs(args, model)
        optimizer = optimizer_class(parameter_groups(model, args), **settings)
        warmup_steps, settings = args.get_warmup_steps(self.max_steps), args.lr_scheduler_kwargs
        self.average = WeightAverage(model, args.weight_averaging) if args.weight_averaging else None
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        # Not prepared: accelerate would step it once for each process.
        self.scheduler = get_scheduler(
            args.lr_scheduler_type, optimizer, warmup_steps, self.max_steps, scheduler_specific_kwargs=settings
        )
        self.guard, self.state = DivergenceGuard(model, args), TrainerState()
        self.parts, self.total_loss, self.best_weights = defaultdict(list), 0.0, None

    def run(self):
        """Train to the end. Returns metrics."""
        start, args = time.perf_counter(), self.args
        interval = self.steps_per_epoch if args.eval_strategy == "epoch" else args.eval_steps or math.inf
        interval = math.ceil(interval * self.max_steps) if interval < 1 else interval
        self.wrapped.train()
        steps, hidden = islice(self.steps(), self.max_steps), not self.accelerator.is_main_process
        for batches in logging.tqdm(steps, desc="Training", total=self.max_steps, disable=hidden):
            self.step(batches)
            is_last = self.state.global_step == self.max_steps
            if args.eval_strategy != "no" and (is_last or self.state.global_step % interval == 0):
                self.evaluate()
        self.guard.check(self.max_steps, weights=True)
        self.finish()
        seconds = time.perf_counter() - start
        return {
            "train_loss": self.accelerator.reduce(self.total_loss / self.max_steps, "mean").item(),
            "train_runtime": round(seconds, 4),
            "train_steps_per_second": round(self.max_steps / seconds, 3),
            "epoch": self.state.epoch,
        }

    def steps(self):
        """The batches of each step: as many as gradients are accumulated over."""
        for epoch in count():
            self.loader.set_epoch(epoch)
            batches = iter(self.loader)
            while group := list(islice(batches, self.args.gradient_accumulation_steps)):
                yield group

    def step(self, batches):
        """One step of the optimizer, and a line in the log if one is due."""
        accelerator, args, state = self.accelerator, self.args, self.state
        descriptions = self.descriptions(state.global_step).items()
        descriptions = {name: value.to(accelerator.device) for name, value in descriptions}
        learning_rate, num_items = self.scheduler.get_last_lr()[0], count_loss_items(batches, accelerator)
        for batch in batches:
            inputs = mark_dynamic_lengths({**batch, **descriptions}, accelerator)
            # Processes exchange gradients once, with the last batch.
            with contextlib.nullcontext() if batch is batches[-1] else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    outputs = self.wrapped(**inputs, num_items_in_batch=num_items)
                accelerator.backward(outputs.loss / len(batches))
            self.total_loss += outputs.loss.detach().double() / len(batches)
            self.guard.add(outputs.loss, state.global_step + 1)
            for name in ("loss", *LOSS_PARTS):
                if outputs.get(name) is not None:
                    self.parts[name].append(outputs[name].detach())
        if args.max_grad_norm > 0:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        state.global_step += 1
        state.epoch = state.global_step / self.steps_per_epoch
        if state.global_step % max(1, int(args.logging_steps)) == 0:
            self.guard.check(state.global_step)
            means = {name: torch.stack(values).mean() for name, values in self.parts.items()}
            means = {name: accelerator.reduce(mean, "mean").item() for name, mean in means.items()}
            self.parts.clear()
            self.log({**means, "learning_rate": learning_rate})

    def log(self, metrics):
        self.state.log_history.append({**metrics, "epoch": self.state.epoch, "step": self.state.global_step})
        if self.accelerator.is_main_process:
            logger.info(json.dumps(self.state.log_history[-1]))

    def evaluate(self):
        """Score dev with the averaged weights, and keep them if they are the best."""
        args, state = self.args, self.state
        with averaged_weights(self.model, self.average, self.tokenizer):
            where = (self.collator, self.eval_dataset, args.per_device_eval_batch_size)
            metrics = metrics_of(predict(self.accelerator, self.model, *where), "eval")
            value = metrics.get(f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}")
            if args.load_best_model_at_end and (state.best_metric is None or value > state.best_metric):
                state.best_metric, weights = value, self.model.state_dict().items()
                self.best_weights = {name: weight.to("cpu", copy=True) for name, weight in weights}
        self.log(metrics)
        self.wrapped.train()

    def finish(self):
        """Give the model the weights to keep: averaged, of the best evaluation, mixed with the pretrained ones."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        elif self.average is not None:
            self.average.apply()
        if self.pretrained is not None:
            mix_encoder_weights(self.model, self.pretrained, self.args.pretrained_share)
        update_label_embeds(self.model, self.tokenizer)
        if self.eval_dataset is not None:
            where = self.collator, self.eval_dataset, self.args.per_device_eval_batch_size
            calibrate(self.model, predict(self.accelerator, self.model, *where))


def train_and_evaluate(*arguments):
    """One training and evaluation. Returns the content of `all_results.json`."""
    run = prepare(*arguments)
    args, folder, request = run.training_args, run.training_args.output_dir, what_is_asked(run, "run_mir_no_trainer")
    if is_finished(run, request):
        return update_results(folder, {})
    claim_folder(run, request)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[DDP_ARGUMENTS])
    if args.do_train:
        set_seed(args.seed)
        clips, dev = run.seen["train"], run.seen.get("validation")
        training = Training(accelerator, run.model, args, clips, dev, run.processor)
        metrics = {**training.run(), "train_samples": len(clips)}
        if accelerator.is_main_process:
            save_for_hub(folder, run.model, run.processor, training_args=args)
            training.state.save_to_json(os.path.join(folder, TRAINER_STATE_NAME))
            update_results(folder, metrics, "train")
    run.model.to(accelerator.device)

    def predict_and_record(split, prefix):
        batch_size = args.per_device_eval_batch_size
        outputs = predict(accelerator, run.model, AMESSDataCollator(run.processor), split, batch_size)
        if prefix is not None and accelerator.is_main_process:
            update_results(folder, metrics_of(outputs, prefix), prefix)
        return outputs

    return evaluate(run, predict_and_record)


def main(arguments=None):
    parsed = parse_arguments(arguments, description=__doc__)
    for option in ("resume_from_checkpoint", "push_to_hub", "early_stopping_patience"):
        if getattr(parsed[-1], option):
            raise ValueError(f"`--{option}` is for run_mir.py; this loop trains to the end and saves once")
    return for_each_seed(train_and_evaluate, *parsed)


if __name__ == "__main__":
    with one_line_errors():
        main()
