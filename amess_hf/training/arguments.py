"""Training arguments: transformers' own, with this project's recipe as defaults, and a few more."""

import copy
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..configuration_amess import AMESSConfig


logger = logging.get_logger(__name__)

# The recipe's epochs for a data set of usual size, and the minimum number of clips that training sees: 300 steps of
# 16. From 800 clips on the former decides.
USUAL_EPOCHS = 6.0
CLIPS_SEEN_AT_LEAST = 4800
# The same where convolutions learn to hear and see from nothing: 2,000 steps. On 600 clips of spoken words and hand signs,
# 1,000 steps answered 85 % of 800 other clips, 2,000 steps 89 %.
CLIPS_SEEN_BY_CONVOLUTIONS = 32_000
# Maximum for a few clips: the number of steps where an epoch is a single step.
EPOCHS_AT_MOST = 300
# Evaluations (and checkpoints) while training on few clips: one after every short epoch would mostly evaluate and
# save.
EVALUATIONS_AT_MOST = 30
# Low-rank adapters start from zero and need a higher rate than the weights that they are added to. On MIntRec's dev
# split, rank 16 and one seed, 3.5 times the rate gave 66.3 % after five epochs, and 10 times 64.3 %.
LORA_RATE_FACTOR = 3.5


def default_epochs(num_clips: int, config: AMESSConfig | None = None) -> float:
    """Return 6 epochs, and more for few clips, so that training takes hundreds of steps: 300, or 2,000 with convolutions.

    Args:
        num_clips (`int`): Training clips.
        config ([`AMESSConfig`], *optional*): Says whether there are convolutions.
    """
    convolutions = config and any(one.num_conv_layers or one.grid_side for one in config.feature_configs.values())
    clips_seen = CLIPS_SEEN_BY_CONVOLUTIONS if convolutions else CLIPS_SEEN_AT_LEAST
    return max(USUAL_EPOCHS, min(float(math.ceil(clips_seen / max(1, num_clips))), float(EPOCHS_AT_MOST)))


def default_learning_rate(config: AMESSConfig) -> float:
    """Return 2e-4 for a text encoder up to 384 wide, and less in proportion to the width beyond; for adapters more.

    Chosen on MIntRec's dev split: 2e-4 with MiniLM (384 wide), 1e-4 with all-mpnet-base-v2 (768).
    """
    rate = 2e-4 * min(1.0, 384 / config.text_config.hidden_size)
    return rate if config.text_adapter is None else LORA_RATE_FACTOR * rate


def _argument(default: Any, description: str, **metadata: Any):
    return field(default=default, metadata={"help": description, **metadata})


_AT_LEAST_ONE = (lambda value: value >= 1, "at least 1")
_ZERO = (lambda value: value == 0, "0: the model has its own losses; set `label_smoothing` of its configuration")
_SAMPLING = ("random", "sequential", "group_by_length")
# Argument -> whether a value is allowed, and which are.
_ALLOWED = {
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "early_stopping_patience": _AT_LEAST_ONE,
    "num_train_epochs": (lambda value: value > 0, "above 0"),
    "learning_rate": (math.isfinite, "a finite number"),
    "head_learning_rate": (lambda value: 0 <= value < math.inf, "finite and at least 0"),
    "head_weight_decay": (lambda value: value >= 0, "at least 0"),
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "weight_averaging": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "pretrained_share": (lambda value: 0 <= value <= 1, "at least 0 and at most 1"),
    "label_update": (
        lambda value: value in ("step", "epoch") or value.isdigit() and int(value) > 0,
        "'step', 'epoch' or a number of steps of at least 1",
    ),
    "label_smoothing_factor": _ZERO,
    "train_sampling_strategy": (lambda value: value in _SAMPLING, f"one of {', '.join(_SAMPLING)}"),
}


@dataclass
class AMESSTrainingArguments(TrainingArguments):
    r"""[`~transformers.TrainingArguments`] with the recommended recipe as defaults, and a few more.

    Args:
        learning_rate (`float`, *optional*):
            Learning rate of the text encoder's last layer. By default 2e-4 for an encoder up to 384 wide, and less in
            proportion to the width beyond (1e-4 at 768); see [`default_learning_rate`].
        head_learning_rate (`float`, *optional*, defaults to 1e-3):
            Learning rate of everything but the text encoder.
        head_weight_decay (`float`, *optional*, defaults to 0.01):
            Weight decay of everything but the text encoder.
        freeze_word_embeddings (`bool`, *optional*, defaults to `True`):
            Keep the text encoder's word embeddings as they were pretrained.
        layer_decay (`float`, *optional*, defaults to 0.8):
            Factor between the learning rates of a text encoder layer and the one above it; 1 is the same for all.
        label_update (`str`, *optional*, defaults to `"10"`):
            How often each label's description is encoded with gradient: `"step"`, `"epoch"` or a number of steps. In
            between, its stored embedding is used. About ten labels are encoded at a time.
        weight_averaging (`float`, *optional*, defaults to 0.99):
            Decay per step of the moving average of the weights that is evaluated and kept; 0 disables it.
        pretrained_share (`float`, *optional*, defaults to 0.0):
            Share of the text encoder's pretrained weights in those that are kept when training ends (WiSE-FT). Use 0.5
            for models that are to recognize intents that are only described; it costs a little accuracy on the trained
            ones.
        num_train_epochs (`float`, *optional*):
            Epochs. By default 6, and more for fewer than 800 training clips, or with convolutions fewer than 5,334;
            see [`default_epochs`].
        early_stopping_patience (`int`, *optional*):
            Evaluations without a better `metric_for_best_model` after which training stops.
        dataloader_num_workers (`int`, *optional*):
            Processes that make batches. By default up to four with an accelerator, and none on a CPU, whose cores are
            all busy with training.

    Raises:
        ValueError: Naming the argument, its value and what is allowed.
    """

    _argument_group_name = "training (transformers' TrainingArguments, with our defaults)"

    output_dir: str | None = _argument(None, "Folder for the model, the metrics and checkpoints.")
    learning_rate: float | None = _argument(None, "Rate of the text encoder's last layer; by default by its width.")
    head_learning_rate: float = _argument(1e-3, "Learning rate of everything but the text encoder.")
    weight_decay: float = _argument(0.01, "Weight decay of the text encoder.")
    head_weight_decay: float = _argument(0.01, "Weight decay of everything but the text encoder.")
    freeze_word_embeddings: bool = _argument(True, "Keep the text encoder's word embeddings as they were pretrained.")
    layer_decay: float = _argument(0.8, "Learning rate of a text encoder layer, relative to the layer above it.")
    label_update: str = _argument("10", "How often each description is encoded with gradient: step, epoch or steps.")
    weight_averaging: float = _argument(0.99, "Decay per step of the moving average of the weights; 0 disables it.")
    pretrained_share: float = _argument(
        0.0, "Share of the pretrained encoder that is kept; 0.5 for described intents."
    )
    early_stopping_patience: int | None = _argument(None, "Evaluations without improvement before training stops.")
    num_train_epochs: float | None = _argument(None, "Epochs; by default 6, and more for few clips.")
    per_device_train_batch_size: int = _argument(16, "Clips per step and device, in training.")
    per_device_eval_batch_size: int = _argument(64, "Clips per step and device, in evaluation.")
    warmup_steps: float = _argument(0.1, "Steps of linear warm-up; below 1, their share of all steps.")
    eval_strategy: str = _argument("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = _argument("epoch", "When to save a checkpoint: no, steps, epoch, best.")
    save_total_limit: int | None = _argument(2, "Checkpoints to keep.")
    load_best_model_at_end: bool = _argument(True, "Load the checkpoint with the best metric at the end.")
    metric_for_best_model: str | None = _argument("accuracy", "Metric of the best checkpoint: accuracy, f1, loss ...")
    resume_from_checkpoint: str | None = _argument(
        None, "Checkpoint to resume from; without a value, the last one in `output_dir`.", nargs="?", const="True"
    )
    restore_callback_states_from_checkpoint: bool = _argument(True, "Resume the counts of losses and evaluations too.")
    train_sampling_strategy: str = _argument("random", "random, sequential or group_by_length, which pads less.")
    dataloader_num_workers: int | None = _argument(
        None, "Processes that make batches; by default up to 4, none on a CPU."
    )
    logging_nan_inf_filter: bool = _argument(False, "Check each step's loss for NaN, waiting for the device.")
    remove_unused_columns: bool | None = _argument(False, "Leave this off: the collator reads the columns by name.")
    hub_private_repo: bool = _argument(False, "Make the repository private if pushing creates it.")
    logging_steps: float = _argument(20, "Steps between log lines.")

    def __post_init__(self):
        choose_workers = self.dataloader_num_workers is None
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        # transformers takes "evaluate while training" to mean "evaluate afterwards"; here `do_eval` means the latter.
        do_eval = self.do_eval
        super().__post_init__()
        self.do_eval = do_eval
        # False would mean "public" even where an organization's default is private.
        self.hub_private_repo = self.hub_private_repo or None
        # Pinned memory is for copies to an accelerator; without one, torch only warns.
        on_cpu = self.device.type == "cpu"
        self.dataloader_pin_memory = self.dataloader_pin_memory and not on_cpu
        if choose_workers and not on_cpu:
            self.dataloader_num_workers = min(4, (os.cpu_count() or 1) // self.world_size)
        self.label_update = str(self.label_update)
        self._check_values()

    def _check_values(self):
        for name, (allows, allowed) in _ALLOWED.items():
            value = getattr(self, name)
            if value is not None and not allows(value):
                raise ValueError(f"`{name}` is {value!r}; it must be {allowed}")
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("`fp16` needs an accelerator; on a CPU, train in float32 or with `bf16`")

    @classmethod
    def of(cls, args: TrainingArguments | None) -> "AMESSTrainingArguments":
        """Return the arguments as this class; plain ones keep their values, and have the defaults of what they lack.

        Raises:
            ValueError: Naming an argument whose value is not supported.
        """
        if args is not None and not isinstance(args, cls):
            args, plain = cls.__new__(cls), args
            # What it lacks are attributes of the class.
            vars(args).update(vars(plain), restore_callback_states_from_checkpoint=True)
            args._check_values()
        return cls() if args is None else args

    def label_update_period(self, steps_per_epoch: int) -> int:
        """Return the steps between two encodings of the same label's description.

        Args:
            steps_per_epoch (`int`): Optimizer steps of an epoch.
        """
        return {"step": 1, "epoch": max(1, steps_per_epoch)}.get(self.label_update) or int(self.label_update)

    def check_best_metric(self, known: Iterable[str]) -> None:
        """Check that evaluations compute the metric by which checkpoints are compared.

        Args:
            known (`Iterable[str]`): The metrics' names.

        Raises:
            ValueError: Naming the metric and the known ones.
        """
        name = (self.metric_for_best_model or "").removeprefix("eval_")
        known = [metric for metric in known if metric.endswith("loss") or not self.prediction_loss_only]
        if name and self.eval_strategy != "no" and name not in known:
            raise ValueError(f"`metric_for_best_model` is {name!r}; it must be one of {', '.join(known)}")

    def for_model(
        self, config: AMESSConfig, has_eval_dataset: bool, num_clips: int | None = None
    ) -> "AMESSTrainingArguments":
        """Return a copy for training a model on a data set.

        It has a learning rate and a number of epochs, all columns, and evaluation is off where there is nothing to evaluate
        on.

        Args:
            config ([`AMESSConfig`]): The model's configuration.
            has_eval_dataset (`bool`): Whether there are clips to evaluate on while training.
            num_clips (`int`, *optional*): Training clips; `None` where there are none, or their number is unknown.

        Raises:
            ValueError: If early stopping is requested without clips to evaluate on.
        """
        args = copy.copy(self)
        args.remove_unused_columns = False  # the collator reads the columns by name
        if args.learning_rate is None:
            args.learning_rate = default_learning_rate(config)
        if args.num_train_epochs is None:
            args._choose_epochs(num_clips, config)
        if has_eval_dataset or args.eval_strategy == IntervalStrategy.NO:
            return args
        if args.early_stopping_patience is not None:
            raise ValueError(
                f"`early_stopping_patience` is {args.early_stopping_patience}, but there are no clips to evaluate on; "
                "add a dev split (`eval_dataset`) or leave it out"
            )
        logger.warning("no dev split: nothing is evaluated while training, and the last weights are kept")
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
        return args

    def _choose_epochs(self, num_clips: int | None, config: AMESSConfig):
        self.num_train_epochs = USUAL_EPOCHS
        if num_clips is None or self.max_steps > 0 or default_epochs(num_clips, config) == USUAL_EPOCHS:
            return
        self.num_train_epochs = default_epochs(num_clips, config)
        batch = self.train_batch_size * self.world_size * self.gradient_accumulation_steps
        steps = math.ceil(num_clips / batch)
        epochs_between = math.ceil(self.num_train_epochs / EVALUATIONS_AT_MOST)
        if epochs_between > 1 and self.eval_strategy == self.save_strategy == "epoch":
            self.eval_strategy, self.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
            self.eval_steps = self.save_steps = steps * epochs_between
        if self.process_index == 0:
            logger.warning(
                f"{num_clips} training clips are few: {self.num_train_epochs:.0f} epochs, "
                f"{steps * self.num_train_epochs:.0f} steps (set `--num_train_epochs` to change that)"
            )
