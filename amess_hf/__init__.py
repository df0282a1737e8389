"""A-MESS for Hugging Face: multimodal intent recognition from words, voice and picture."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .configuration_amess import AMESSConfig
from .modeling_amess import AMESSForIntentClassification, AMESSModel
from .version import __version__


AutoConfig.register("amess", AMESSConfig)
AutoModel.register(AMESSConfig, AMESSModel)
AutoModelForSequenceClassification.register(AMESSConfig, AMESSForIntentClassification)

__all__ = ["AMESSConfig", "AMESSForIntentClassification", "AMESSModel", "__version__"]
