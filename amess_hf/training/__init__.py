"""Training A-MESS: arguments, Trainer, parameter groups, averaged weights and the refreshing of descriptions."""

from .arguments import AMESSTrainingArguments
from .description_sampling import LabelDescriptionSampler
from .parameter_groups import parameter_groups
from .trainer import AMESSTrainer
from .weight_averaging import WeightAverage


__all__ = [
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "LabelDescriptionSampler",
    "WeightAverage",
    "parameter_groups",
]
