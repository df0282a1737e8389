"""Training A-MESS: arguments, Trainer, what a step sees, which weights are trained and kept, and what a run leaves on disk."""

from .arguments import AMESSTrainingArguments
from .batches import LabelDescriptionSampler
from .distillation import add_teacher_logits
from .trainer import AMESSTrainer
from .weights import WeightAverage, add_lora, merge_lora, parameter_groups


__all__ = [
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "LabelDescriptionSampler",
    "WeightAverage",
    "add_lora",
    "add_teacher_logits",
    "merge_lora",
    "parameter_groups",
]
