"""A-MESS for Hugging Face: multimodal intent recognition from words, voice and picture."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_amess import AMESSConfig
from .data.collator import AMESSDataCollator
from .data.mintrec import load_mintrec
from .modeling_amess import AMESSForIntentClassification, AMESSModel
from .oos_amess import OutOfScopeDetector
from .training import AMESSTrainer, AMESSTrainingArguments
from .version import __version__


AutoConfig.register("amess", AMESSConfig)
AutoModel.register(AMESSConfig, AMESSModel)
AutoModelForSequenceClassification.register(AMESSConfig, AMESSForIntentClassification)

__all__ = [
    "AMESSConfig",
    "AMESSDataCollator",
    "AMESSForIntentClassification",
    "AMESSModel",
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "OutOfScopeDetector",
    "__version__",
    "load_mintrec",
]
