"""Training arguments: transformers' own, with this project's recipe as defaults, and a few more."""

import copy
import math
import os
from dataclasses import dataclass, field

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


def default_epochs(num_clips: int, config: AMESSConfig | None = None) -> float:
    """Return 6 epochs, and more for few clips, so that training takes hundreds of steps: 300, or 2,000 with convolutions.

    Args:
        num_clips (`int`): Training clips.
        config ([`AMESSConfig`], *optional*): The model's configuration.
    """
    convolutions = config and any(one.num_conv_layers or one.grid_side for one in config.feature_configs.values())
    clips_seen = CLIPS_SEEN_BY_CONVOLUTIONS if convolutions else CLIPS_SEEN_AT_LEAST
    return max(USUAL_EPOCHS, min(float(math.ceil(clips_seen / max(1, num_clips))), float(EPOCHS_AT_MOST)))


# Low-rank adapters start from zero and need a higher rate than the weights that they are added to. On MIntRec's dev
# split, rank 16 and one seed, 3.5 times the rate gave 66.3 % after five epochs, and 10 times 64.3 %.
LORA_RATE_FACTOR = 3.5


def default_learning_rate(config: AMESSConfig) -> float:
    """Return 2e-4 for a text encoder up to 384 wide, and less in proportion to the square of the width beyond; for adapters more.

    2e-4 was chosen on MIntRec's dev split with MiniLM; at 768 the rule gives 5e-5, the usual rate for BERT-base.
    """
    rate = 2e-4 * min(1.0, 384 / config.text_config.hidden_size) ** 2
    return rate if config.text_adapter is None else LORA_RATE_FACTOR * rate


@dataclass
class AMESSTrainingArguments(TrainingArguments):
    r"""[`~transformers.TrainingArguments`] with the recommended recipe as defaults, and a few more.

    Args:
        learning_rate (`float`, *optional*):
            Learning rate of the text encoder's last layer. By default 2e-4 for an encoder up to 384 wide, and less in
            proportion to the square of the width beyond (5e-5 at 768); see [`default_learning_rate`].
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
            for models that are to recognise intents that are only described; it costs a little accuracy on the trained
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

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the model, the metrics and checkpoints."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the text encoder's last layer; by default it depends on its width."},
    )
    head_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of everything but the text encoder."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of the text encoder."})
    head_weight_decay: float = field(
        default=0.01, metadata={"help": "Weight decay of everything but the text encoder."}
    )
    freeze_word_embeddings: bool = field(
        default=True, metadata={"help": "Keep the text encoder's word embeddings as they were pretrained."}
    )
    layer_decay: float = field(
        default=0.8, metadata={"help": "Learning rate of a text encoder layer, relative to the layer above it."}
    )
    label_update: str = field(
        default="10",
        metadata={"help": "How often each description is encoded with gradient: step, epoch, or a number of steps."},
    )
    weight_averaging: float = field(
        default=0.99, metadata={"help": "Decay per step of the moving average of the weights; 0 disables it."}
    )
    pretrained_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the pretrained text encoder in the weights that are kept; 0.5 for unseen intents."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without improvement after which training stops."}
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Epochs; by default 6, and more for few clips."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Clips per step and device, in training."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Clips per step and device, in evaluation."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, their share of all steps."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch, best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    load_best_model_at_end: bool = field(
        default=True,
        metadata={"help": "Whether to load the checkpoint with the best `metric_for_best_model` at the end."},
    )
    metric_for_best_model: str | None = field(
        default="accuracy", metadata={"help": "Metric that selects the best checkpoint: accuracy, weighted_f1, f1 ..."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to resume from; without a value, the last complete one in `output_dir`.",
            "nargs": "?",
            "const": "True",
        },
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "random, sequential, or group_by_length: clips of similar length together, which pads less."
        },
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that make batches; by default up to 4, and none on a CPU."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Check each step's loss for NaN, for which the host waits for the device."}
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "The collator reads the columns by name; leave this off."}
    )
    hub_private_repo: bool = field(
        default=False, metadata={"help": "Make the repository private if pushing creates it."}
    )
    logging_steps: float = field(default=20, metadata={"help": "Steps between log lines."})

    def __post_init__(self):
        choose_workers = self.dataloader_num_workers is None
        self.dataloader_num_workers = self.dataloader_num_workers or 0
        # transformers takes "evaluate while training" to mean "evaluate afterwards"; here `do_eval` means the latter.
        do_eval = self.do_eval
        super().__post_init__()
        self.do_eval = do_eval
        # False would mean "public" even where an organisation's default is private.
        self.hub_private_repo = self.hub_private_repo or None
        # Pinned memory is for copies to an accelerator; without one, torch only warns.
        on_cpu = self.device.type == "cpu"
        self.dataloader_pin_memory = self.dataloader_pin_memory and not on_cpu
        if choose_workers and not on_cpu:
            self.dataloader_num_workers = min(4, (os.cpu_count() or 1) // self.world_size)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if self.num_train_epochs is not None and not self.num_train_epochs > 0:
            raise ValueError(f"`num_train_epochs` is {self.num_train_epochs}; it must be above 0")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"`early_stopping_patience` is {self.early_stopping_patience}; it must be at least 1")
        for name in ("learning_rate", "head_learning_rate"):
            if getattr(self, name) is not None and not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be a finite number")
        for name in ("head_learning_rate", "head_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` is {self.layer_decay}; it must be above 0 and at most 1")
        if not 0 <= self.weight_averaging < 1:
            raise ValueError(f"`weight_averaging` is {self.weight_averaging}; it must be at least 0 and below 1")
        if not 0 <= self.pretrained_share <= 1:
            raise ValueError(f"`pretrained_share` is {self.pretrained_share}; it must be at least 0 and at most 1")
        self.label_update = str(self.label_update)
        if self.label_update not in ("step", "epoch") and not (
            self.label_update.isdigit() and int(self.label_update) > 0
        ):
            raise ValueError(
                f"`label_update` is {self.label_update!r}; it must be 'step', 'epoch' or a number of steps of at least 1"
            )

    def label_update_period(self, steps_per_epoch: int) -> int:
        """Return the steps between two encodings of the same label's description.

        Args:
            steps_per_epoch (`int`): Optimizer steps of an epoch.
        """
        return {"step": 1, "epoch": max(1, steps_per_epoch)}.get(self.label_update) or int(self.label_update)

    def for_model(
        self, config: AMESSConfig, has_eval_dataset: bool, num_clips: int | None = None
    ) -> "AMESSTrainingArguments":
        """Return a copy for training a model on a data set.

        It has a learning rate and a number of epochs, and evaluation is off where there is nothing to evaluate on.

        Args:
            config ([`AMESSConfig`]): The model's configuration.
            has_eval_dataset (`bool`): Whether there are clips to evaluate on while training.
            num_clips (`int`, *optional*): Training clips; `None` where there are none, or their number is unknown.

        Raises:
            ValueError: If early stopping is requested without clips to evaluate on.
        """
        args = copy.copy(self)
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
