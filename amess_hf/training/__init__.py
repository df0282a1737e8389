"""Training A-MESS: arguments, Trainer, parameter groups, averaged weights and the sampling of descriptions."""

from .adapters import add_lora, merge_lora
from .arguments import AMESSTrainingArguments
from .description_sampling import LabelDescriptionSampler
from .distillation import add_teacher_logits, save_teacher_logits
from .parameter_groups import parameter_groups
from .trainer import AMESSTrainer
from .weight_averaging import WeightAverage


__all__ = [
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "LabelDescriptionSampler",
    "WeightAverage",
    "add_lora",
    "add_teacher_logits",
    "merge_lora",
    "parameter_groups",
    "save_teacher_logits",
]
