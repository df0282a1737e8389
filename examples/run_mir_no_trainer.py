#!/usr/bin/env python3
"""
The same as `run_mir.py`, with a plain accelerate loop instead of the Trainer: the same arguments, the same result.

    accelerate launch examples/run_mir_no_trainer.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/mintrec --do_train --do_eval --do_predict

Use it to see each step of training, or to change one.
"""

import contextlib
import json
import math
import os
import time
from collections import defaultdict
from itertools import islice

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, skip_first_batches
from mir_common import (
    is_finished,
    note_finished,
    one_line_errors,
    parse_arguments,
    prepare,
    run_for_each_seed,
    score,
)
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import get_scheduler, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TrainerState
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from amess_hf import AMESSDataCollator, AMESSTrainer
from amess_hf.evaluation.aggregation import update_results
from amess_hf.evaluation.metrics import CLASSIFICATION_METRICS, in_scope_metrics
from amess_hf.evaluation.prediction import CLIP_OUTPUTS, ClipOutputs
from amess_hf.hub import push_folder, save_for_hub, save_training_arguments
from amess_hf.modeling_amess import LOSS_PARTS
from amess_hf.training import WeightAverage, parameter_groups
from amess_hf.training.batches import (
    LabelDescriptionSampler,
    mark_dynamic_lengths,
    training_dataloader,
    update_label_embeds,
)
from amess_hf.training.run_state import (
    DivergenceGuard,
    Preemption,
    TrainLoss,
    check_free_space,
    checkpoint_to_resume,
    training_request,
    writing_checkpoint,
)
from amess_hf.training.standardization import standardize_statistics
from amess_hf.training.weights import averaged_weights, encoder_weights, mix_encoder_weights


logger = logging.get_logger("amess_hf.run_mir_no_trainer")

# Marks checkpoints of this loop.
WRITTEN_BY = "run_mir_no_trainer.py"
# A loss with zero weight, or a batch without sound, leaves some weights without gradient.
DDP_ARGUMENTS = DistributedDataParallelKwargs(find_unused_parameters=True)


def is_due(strategy, interval, step, updates_per_epoch, max_steps):
    """Whether an action of every `interval` steps, or every epoch, is due after `step`; at the end it always is."""
    if strategy == "no":
        return False
    if step == max_steps:
        return True
    interval = math.ceil(max_steps * interval) if interval < 1 else int(interval)
    return step % (updates_per_epoch if strategy == "epoch" else interval) == 0


def predict(accelerator, model, collator, split, batch_size):
    """The [`ClipOutputs`] of a split, on every process, without advancing training's random state."""
    loader = accelerator.prepare_data_loader(DataLoader(split, batch_size, collate_fn=collator))
    was_training = model.training
    model.eval()
    gathered = defaultdict(list)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for batch in logging.tqdm(loader, desc="Predicting", leave=False, disable=not accelerator.is_main_process):
            with accelerator.autocast():
                outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
            for name in CLIP_OUTPUTS:
                if outputs.get(name) is not None:
                    value = outputs[name].float() if outputs[name].is_floating_point() else outputs[name]
                    gathered[name].append(accelerator.gather_for_metrics(value).cpu())
    model.train(was_training)
    described = model.config.label_descriptions is not None
    label_embeds = model.label_embeds.float().cpu().numpy() if described else None
    arrays = {name: torch.cat(values).numpy() for name, values in gathered.items()}
    return ClipOutputs.from_predictions(split, label_embeds=label_embeds, **arrays)


def metrics_of(outputs, prefix):
    """In-scope metrics as `{prefix}_…`."""
    metrics = in_scope_metrics(outputs.logits, outputs.labels)
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


class Training:
    """The state of a training run, and its loop."""

    def __init__(self, accelerator, model, args, train_dataset, eval_dataset, processor):
        self.accelerator, self.args, self.eval_dataset = accelerator, args, eval_dataset
        self.model, self.tokenizer = model.to(accelerator.device), processor.tokenizer
        self.collator = AMESSDataCollator(processor)
        self.pretrained = encoder_weights(self.model) if args.pretrained_share else None
        self.request = training_request(model, args, train_dataset, eval_dataset, WRITTEN_BY)
        update_label_embeds(self.model, self.tokenizer, missing_only=True)
        standardize_statistics(self.model, train_dataset, self.collator)
        self.loader = training_dataloader(
            train_dataset, self.collator, args, accelerator, self.tokenizer, self.model.config
        )
        self.updates_per_epoch = math.ceil(len(self.loader) / args.gradient_accumulation_steps)
        whole = math.ceil(args.num_train_epochs * self.updates_per_epoch)
        self.max_steps = args.max_steps if args.max_steps > 0 else whole
        batches = len(self.loader)
        self.descriptions = LabelDescriptionSampler.for_model(self.model.config, self.tokenizer, args, batches)
        optimizer_class, optimizer_kwargs = AMESSTrainer.get_optimizer_cls_and_kwargs(args, self.model)
        optimizer = optimizer_class(parameter_groups(self.model, args), **optimizer_kwargs)
        self.average = WeightAverage(self.model, args.weight_averaging) if args.weight_averaging else None
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        # Not prepared: accelerate would step it once for each process.
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            args.get_warmup_steps(self.max_steps),
            self.max_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        accelerator.register_for_checkpointing(self.scheduler)
        self.state = TrainerState()
        self.learning_rate = 0.0  # of the last step
        self.loss_parts = defaultdict(list)
        self.train_loss = TrainLoss()
        self.guard = DivergenceGuard(self.model, args)
        self.preemption = Preemption()

    def run(self):
        """Train to the end; the model then has its best or its last weights. Returns metrics."""
        start = time.perf_counter()
        checkpoint = checkpoint_to_resume(self.args.resume_from_checkpoint, self.args.output_dir, self.request)
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self.wrapped.train()
        progress = logging.tqdm(
            total=self.max_steps,
            initial=self.state.global_step,
            desc="Training",
            disable=not self.accelerator.is_main_process,
        )
        first_step = self.state.global_step
        with self.preemption:
            while self.state.global_step < self.max_steps and not self.has_stopped_improving():
                for batches in self.rest_of_epoch():
                    self.update(batches)
                    progress.update()
                    self.after_update()
                    if self.state.global_step == self.max_steps or self.has_stopped_improving():
                        break
        progress.close()
        self.guard.check(self.state.global_step, weights=True)
        self.train_loss.collect(self.accelerator)
        self.finish()
        seconds = time.perf_counter() - start
        steps = self.state.global_step - first_step
        return {
            "train_loss": self.train_loss.total / max(1, self.state.global_step),
            "train_runtime": round(seconds, 4),
            "train_steps_per_second": round(steps / seconds, 3),
        }

    def rest_of_epoch(self):
        """The batches of each remaining update of the current epoch."""
        epoch, done = divmod(self.state.global_step, self.updates_per_epoch)
        accumulation = self.args.gradient_accumulation_steps
        self.loader.set_epoch(epoch)
        batches = iter(skip_first_batches(self.loader, done * accumulation) if done else self.loader)
        while group := list(islice(batches, accumulation)):
            yield group

    def update(self, batches):
        """One step of the optimizer, on one or several batches whose gradients are accumulated."""
        descriptions = {
            name: value.to(self.accelerator.device)
            for name, value in self.descriptions(self.state.global_step).items()
        }
        for number, batch in enumerate(batches, start=1):
            # Processes exchange gradients once, with the last batch.
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    outputs = self.wrapped(**mark_dynamic_lengths({**batch, **descriptions}, self.accelerator))
                self.accelerator.backward(outputs.loss / len(batches))
            self.guard.add(outputs.loss, self.state.global_step + 1)
            self.train_loss.add(outputs.loss / len(batches))
            for name in ("loss", *LOSS_PARTS):
                if outputs.get(name) is not None:
                    self.loss_parts[name].append(outputs[name].detach())
        if self.args.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.learning_rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        self.state.global_step += 1
        self.state.epoch = self.state.global_step / self.updates_per_epoch

    def after_update(self):
        """Log, evaluate and save, if due."""
        args, step = self.args, self.state.global_step
        logs = step % max(1, int(args.logging_steps)) == 0
        evaluates = is_due(args.eval_strategy, args.eval_steps or 1, step, self.updates_per_epoch, self.max_steps)
        saves = is_due(args.save_strategy, args.save_steps, step, self.updates_per_epoch, self.max_steps)
        # A GPU is queried only where the host waits for it anyway.
        if logs or evaluates or saves or self.accelerator.device.type == "cpu":
            self.guard.check(step, weights=evaluates or saves)
        if logs:
            self.log()
        if evaluates:
            self.evaluate()
        if saves:
            self.save_checkpoint()
        if self.preemption.is_due(self.accelerator, step):
            self.guard.check(step, weights=True)
            if not saves:
                self.save_checkpoint()
            self.preemption.stop(os.path.join(args.output_dir, f"checkpoint-{step}"))

    def log(self):
        # The parts were kept on the device, and are fetched once per log line.
        line = {
            name: self.accelerator.reduce(torch.stack(values).mean(), "mean").item()
            for name, values in self.loss_parts.items()
        }
        self.loss_parts.clear()
        self.record({**line, "learning_rate": self.learning_rate})

    def record(self, metrics):
        self.state.log_history.append({**metrics, "epoch": self.state.epoch, "step": self.state.global_step})
        if self.accelerator.is_main_process:
            logger.info(json.dumps(self.state.log_history[-1]))

    def evaluate(self):
        """Score dev with the averaged weights, and record whether it is the best so far."""
        batch_size = self.args.per_device_eval_batch_size
        with averaged_weights(self.model, self.average, self.tokenizer):
            outputs = predict(self.accelerator, self.model, self.collator, self.eval_dataset, batch_size)
        self.wrapped.train()
        metrics = metrics_of(outputs, "eval")
        self.record(metrics)
        if self.args.metric_for_best_model is None:
            return
        name = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        if self.state.best_metric is None or metrics[name] > self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = metrics[name], self.state.global_step

    def has_stopped_improving(self):
        """Whether `early_stopping_patience` evaluations have brought no improvement."""
        evaluations = [line["step"] for line in self.state.log_history if "eval_accuracy" in line]
        since_best = sum(step > (self.state.best_global_step or 0) for step in evaluations)
        return self.args.early_stopping_patience is not None and since_best >= self.args.early_stopping_patience

    def save_checkpoint(self):
        """Save everything that the rest of the run depends on; the state last, so that only complete checkpoints have it."""
        path = os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        main = self.accelerator.is_main_process
        self.train_loss.collect(self.accelerator)
        self.state.stateful_callbacks[TrainLoss.__name__] = self.train_loss.state()
        with writing_checkpoint(path, self.request) if main else contextlib.nullcontext():
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(path)
            self.accelerator.wait_for_everyone()
            best = os.path.join(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = best if os.path.isdir(best) else None
            if main:
                if self.average is not None:
                    self.average.save(path)
                self.state.save_to_json(os.path.join(path, TRAINER_STATE_NAME))
        if main:
            rotate_checkpoints(
                self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()

    def load_checkpoint(self, path):
        self.accelerator.load_state(path)
        if self.average is not None:
            self.average.load(path)
        self.state = TrainerState.load_from_json(os.path.join(path, TRAINER_STATE_NAME))
        self.train_loss.total = self.state.stateful_callbacks[TrainLoss.__name__]["attributes"]["total"]

    def finish(self):
        """Load the weights to keep into the model: averaged if enabled, of the best checkpoint if requested."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if best is not None:
            self.model.load_state_dict(load_file(os.path.join(best, "model.safetensors"), device="cpu"))
            if self.average is not None:
                self.average.load(best)
        if self.average is not None:
            self.average.apply()
        if self.pretrained is not None:
            mix_encoder_weights(self.model, self.pretrained, self.args.pretrained_share)
        if self.model.config.label_descriptions is not None:
            self.model.update_label_embeds(self.tokenizer)


def run(model_args, data_args, training_args):
    """One training and evaluation, as the arguments specify. Returns the content of `all_results.json`."""
    run = prepare(model_args, data_args, training_args)
    training_args = run.training_args
    if training_args.do_train:
        training_args.check_best_metric(CLASSIFICATION_METRICS)
    if is_finished(run, model_args, data_args, WRITTEN_BY):
        return update_results(training_args.output_dir, {})
    accelerator = Accelerator(
        mixed_precision=training_args.mixed_precision,
        kwargs_handlers=[DDP_ARGUMENTS],
    )
    output_dir, main = training_args.output_dir, accelerator.is_main_process
    if training_args.do_train:
        args = training_args
        check_free_space(args, run.model)
        if args.freeze_word_embeddings:
            run.model.get_input_embeddings().requires_grad_(False)
        set_seed(args.seed)
        clips = run.split("train", "--do_train")
        training = Training(accelerator, run.model, args, clips, run.seen.get("validation"), run.processor)
        metrics = {**training.run(), "epoch": training.state.epoch, "train_samples": len(clips)}
        if main:
            save_for_hub(output_dir, run.model, run.processor)
            save_training_arguments(output_dir, args)
            training.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))
            update_results(output_dir, metrics, "train")
    run.model.to(accelerator.device)

    def predict_and_record(split, prefix):
        collator = AMESSDataCollator(run.processor)
        outputs = predict(accelerator, run.model, collator, split, training_args.per_device_eval_batch_size)
        if prefix is not None and main:
            update_results(output_dir, metrics_of(outputs, prefix), prefix)
        return outputs

    results = score(run, data_args, training_args, predict_and_record, main, model_args.model_name_or_path)
    note_finished(run, data_args)
    if training_args.push_to_hub and main:
        push_folder(output_dir, training_args.hub_model_id, training_args.hub_token, training_args.hub_revision)
    return results


if __name__ == "__main__":
    with one_line_errors():
        run_for_each_seed(run, *parse_arguments(description=__doc__))
