"""Tiny encoders with random weights that stand in for those of the Hub, saved as theirs are."""

import torch
from transformers import (
    HubertConfig,
    HubertModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


SPEECH_MODELS = {
    "wavlm": (WavLMConfig, WavLMModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIDE = 32


def save_speech_model(folder, kind="wavlm", norm="group", layers=1):
    """A speech model 32 wide; `norm` as in `feat_extract_norm`."""
    torch.manual_seed(0)
    config_class, model_class = SPEECH_MODELS[kind]
    config = config_class(
        **{**ENCODER, "num_hidden_layers": layers},
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    model_class(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=norm == "layer").save_pretrained(folder)
    return str(folder)


def save_whisper(folder, layers=3):
    """A Whisper 32 wide, with the spectrogram of the real one and random weights of some size."""
    torch.manual_seed(0)
    names = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = dict(zip(names, (layers, 2, 2, 2), strict=True))
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            **sizes, vocab_size=64, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, max_target_positions=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, init_std=0.2,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


def save_vision_model(folder, kind="swin"):
    """A vision model: swin is 24 wide, vit and videomae 32, resnet 16."""
    torch.manual_seed(0)
    square = {"height": SIDE, "width": SIDE}
    if kind == "swin":
        config = SwinConfig(image_size=SIDE, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4)
        model, processor = SwinModel(config), ViTImageProcessorPil(size=square)
    elif kind == "vit":
        config = ViTConfig(**ENCODER, image_size=SIDE, patch_size=8)
        model, processor = ViTModel(config), ViTImageProcessorPil(size=square)
    elif kind == "resnet":
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        model, processor = ResNetModel(config), ConvNextImageProcessorPil(size={"shortest_edge": SIDE})
    else:
        config = VideoMAEConfig(**ENCODER, image_size=SIDE, patch_size=8, num_frames=8, tubelet_size=2)
        model = VideoMAEModel(config)
        processor = VideoMAEImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
