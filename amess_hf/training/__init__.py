"""Training A-MESS: arguments, Trainer, parameter groups, averaged weights and the refreshing of descriptions."""

from .arguments import AMESSTrainingArguments
from .averaging import WeightAverage
from .label_updates import LabelDescriptionSampler
from .optimization import parameter_groups
from .trainer import AMESSTrainer


__all__ = [
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "LabelDescriptionSampler",
    "WeightAverage",
    "parameter_groups",
]
