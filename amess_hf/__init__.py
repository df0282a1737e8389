"""A-MESS for Hugging Face: multimodal intent recognition from text, audio and video."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_amess import AMESSConfig, AMESSFeatureConfig
from .data.collator import AMESSDataCollator
from .data.mintrec import load_mintrec
from .discovery import discover_intents
from .hub import push_to_hub, save_for_hub
from .modeling_amess import AMESSForIntentClassification, AMESSModel
from .oos_amess import OutOfScopeDetector
from .pipeline_amess import IntentRecognitionPipeline
from .processing_amess import AMESSProcessor
from .training import AMESSTrainer, AMESSTrainingArguments
from .version import __version__


AutoConfig.register("amess", AMESSConfig)
AutoModel.register(AMESSConfig, AMESSModel)
AutoModelForSequenceClassification.register(AMESSConfig, AMESSForIntentClassification)
AutoProcessor.register(AMESSConfig, AMESSProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "intent-recognition", pipeline_class=IntentRecognitionPipeline, pt_model=AutoModelForSequenceClassification
)

__all__ = [
    "AMESSConfig",
    "AMESSDataCollator",
    "AMESSFeatureConfig",
    "AMESSForIntentClassification",
    "AMESSModel",
    "AMESSProcessor",
    "AMESSTrainer",
    "AMESSTrainingArguments",
    "IntentRecognitionPipeline",
    "OutOfScopeDetector",
    "__version__",
    "discover_intents",
    "load_mintrec",
    "push_to_hub",
    "save_for_hub",
]


def __dir__() -> list[str]:
    return __all__
