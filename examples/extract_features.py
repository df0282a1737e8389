#!/usr/bin/env python3
"""
Turn raw clips into feature files that `load_mintrec` reads, with frozen encoders, in parallel.

    python examples/extract_features.py --data_dir path/to/MIntRec --dataset_name mintrec \
        --audio_encoder microsoft/wavlm-base-plus --video_encoder microsoft/swin-tiny-patch4-window7-224

Writes `audio_data/<encoder>/` and `video_data/<encoder>/` (safetensors shards with an index). If it is killed at any
point and started again, it continues where it stopped. Clips that cannot be read are listed with the reason in
`failed_clips.tsv`.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from accelerate import PartialState
from command_line import one_line_errors, parse
from transformers.hf_argparser import HfArg

from amess_hf.data.clip_features import extract_features
from amess_hf.data.feature_files import DTYPES
from amess_hf.datasets_amess import DATASET_NAMES


@dataclass
class ExtractionArguments:
    """What to encode, with which encoders, and where to write it."""

    data_dir: str = HfArg(help="Folder of the data set, with the clips below it.")
    dataset_name: Literal[DATASET_NAMES] = HfArg(default="mintrec", help="How to read its tables.")
    table: str | None = HfArg(
        default=None,
        help="Instead of the data set's tables: a csv, tsv, jsonl or parquet file with columns id and clip (or audio, "
        "video), and start, end (seconds) where a clip is a span of its file. Paths are relative to `data_dir`.",
    )
    output_dir: str | None = HfArg(default=None, help="Where to write; `data_dir` if not given.")
    audio_encoder: str | None = HfArg(default=None, help="A WavLM, wav2vec 2.0, HuBERT or Whisper model, or log-mel.")
    audio_encoder_layer: int | None = HfArg(
        default=None, help="Take the states after this layer, 1 for the first; the model's output if not given."
    )
    video_encoder: str | None = HfArg(default=None, help="A Swin, ViT, ResNet or VideoMAE model, hog or hog-grid.")
    video_frame_rate: float | None = HfArg(default=None, help="Frames per second; the encoder's own if not given.")
    dtype: Literal[DTYPES] = HfArg(default="float32", help="How features are stored.")
    on_error: Literal["raise", "skip"] = HfArg(default="raise", help="What to do about a clip that cannot be read.")


def main(arguments: list[str] | None = None) -> int:
    """Extract the features; returns the number of clips that could not be read."""
    (args,) = parse([ExtractionArguments], __doc__, arguments)
    failures = extract_features(**asdict(args))
    PartialState().destroy_process_group()
    return len(failures)


if __name__ == "__main__":
    with one_line_errors():
        main()
