#!/usr/bin/env python3
"""
A small model that asks a large one where it is unsure: accuracy on dev against milliseconds, by the threshold.

    python examples/experiments/cascade.py --data_dir path/to/MIntRec --small runs/minilm --large runs/mpnet \
        --output_dir runs/cascade --dtype bfloat16

Each clip is answered alone, by both models' pipelines; the small one's answer counts where its calibrated probability reaches
the threshold. Times are those of the processor (on several threads, of all), medians over the clips. `--dtype int8` quantizes
the weights of the linear layers, and computes their products in 8 bits.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from runner import DataArguments, one_line_errors, parse, write_results
from transformers import pipeline
from transformers.utils import logging

import amess_hf  # noqa: F401  (registers the pipeline)
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation.tables import percent


THRESHOLDS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


@dataclass(kw_only=True)
class CascadeArguments(DataArguments):
    """Which models, and how they compute."""

    small: str = field(metadata={"help": "The model that is asked first."})
    large: str = field(metadata={"help": "The model that it asks."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or int8."})


def answers_of(folder, split, dtype):
    """Whether each answer is right, its probability, and the milliseconds that it took."""
    quantized = dtype == "int8"
    pipe = pipeline(
        "intent-recognition", folder, dtype="float32" if quantized else dtype, device="cpu", detector=False
    )
    if quantized:
        torch.ao.quantization.quantize_dynamic(pipe.model.amess.text_encoder, {torch.nn.Linear}, inplace=True)
    found = []
    for row in logging.tqdm(split, desc=folder, unit="clip"):
        start = time.process_time()
        best = pipe({"text": row["text"]}, top_k=1)[0]
        found.append((best["label"] == row["label_name"], best["score"], 1e3 * (time.process_time() - start)))
    return np.array(found).T


def main(arguments=None):
    (own,) = parse([CascadeArguments], __doc__, arguments)
    split = load_mintrec(own.data_dir, name=own.dataset_name)["validation"]
    (small, sure, time_small), (large, _, time_large) = (
        answers_of(folder, split, own.dtype) for folder in (own.small, own.large)
    )
    rows = []
    for threshold in THRESHOLDS:
        asks = sure < threshold
        milliseconds = np.median(time_small) + asks.mean() * np.median(time_large)
        rows.append((threshold, np.where(asks, large, small).mean(), asks.mean(), milliseconds))
    cells = [[f"{row[0]:.1f}", percent(row[1]), percent(row[2]), f"{row[3]:.0f}"] for row in rows]
    header = ["threshold", "accuracy (%)", "asked (%)", "ms"]
    columns = ["dtype", "threshold", "accuracy", "asked", "milliseconds"]
    rows = [[own.dtype, *(round(float(value), 6) for value in row)] for row in rows]
    write_results(own.output_dir, "cascade", columns, rows, header, cells)
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
