#!/usr/bin/env python3
"""How much more memory training takes than training on words alone, for features larger than it should hold.

    python examples/benchmarks/benchmark_memory.py            # about 200 MB of features, two minutes on two cores
    python examples/benchmarks/benchmark_memory.py --full     # the size of MIntRec2.0: 9,304 clips, about 4 GB

A folder in the layout of MIntRec2.0 is simulated (noise; 50 audio frames a second, 3 s on average, 768 wide). Each
line of the table is a separate process that trains a small A-MESS for one epoch, or builds the data set, and samples
its resident memory: its own, and with the pages of mapped files. The system takes those pages back when memory is
short, so the first column says what a machine needs. Linux only (psutil tells the two apart there).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import BertConfig, BertTokenizer

from amess_hf import AMESSConfig, AMESSDataCollator, AMESSForIntentClassification, load_mintrec
from amess_hf.data.feature_files import SafetensorsFeatures, write_features
from amess_hf.datasets_amess import DATASETS
from amess_hf.evaluation.tables import markdown_table


FRAMES_PER_SECOND, MEAN_SECONDS, FEATURE_SIZE = 50, 3.0, 768
MAX_FRAMES = 400
BATCH_SIZE = 16
WORDS = "we they you can not will see that this now here open close the a door window well and or".split()
FEATURES = Path("audio_data") / "wavlm_feats"

TASKS = {
    "text": "train on words alone",
    "build": "build the data set from safetensors",
    "arrow": "train from the built data set (Arrow)",
    "safetensors": "train from safetensors",
}


def simulate(folder: Path, num_clips: int) -> int:
    """Write a MIntRec2.0 folder of noise with `num_clips` training clips; returns the bytes of its features."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Dialogue_id\tUtterance_id\tText\tLabel\tspeakername"]
    for number in range(num_clips):
        text = " ".join(rng.choice(WORDS, size=8))
        label = DATASETS["mintrec2.0"].labels[number % len(DATASETS["mintrec2.0"].labels)]
        lines.append(f"{number // 8}\t{number % 8}\t{text}\t{label}\tsomebody")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    clips = ((f"dia{number // 8}_utt{number % 8}", _noise(rng)) for number in range(num_clips))
    write_features(clips, folder / FEATURES, source=folder / "simulated")
    return sum(path.stat().st_size for path in (folder / FEATURES).iterdir())


def _noise(rng: np.random.Generator) -> np.ndarray:
    seconds = float(np.clip(rng.lognormal(np.log(MEAN_SECONDS) - 0.1, 0.45), 0.5, 9.6))
    return rng.standard_normal((max(1, int(seconds * FRAMES_PER_SECOND)), FEATURE_SIZE), dtype=np.float32)


class LazyRows(torch.utils.data.Dataset):
    """Rows of a text data set with the features of each clip read from safetensors on demand."""

    def __init__(self, rows, features: SafetensorsFeatures):
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        return {**row, "audio_features": self.features[row["id"]]}


def batches(rows, audio_feature_size: int | None) -> torch.utils.data.DataLoader:
    """Batches of `rows` in random order, padded and masked for a small model, whose configuration the collator has."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    text_config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config = AMESSConfig(
        text_config=text_config,
        audio_config=audio_feature_size and {"feature_size": audio_feature_size, "max_length": MAX_FRAMES},
        hidden_size=32,
        intermediate_size=64,
        num_fusion_layers=1,
        id2label=dict(enumerate(DATASETS["mintrec2.0"].labels)),
    )
    collator = AMESSDataCollator(tokenizer, config)
    return torch.utils.data.DataLoader(rows, BATCH_SIZE, shuffle=True, collate_fn=collator)


def train(rows, audio_feature_size: int | None) -> None:
    """Train a small model for one epoch."""
    torch.manual_seed(0)
    loader = batches(rows, audio_feature_size)
    model = AMESSForIntentClassification(loader.collate_fn.config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run_task(task: str, folder: Path, cache: Path) -> None:
    """Run one line of the table."""
    if task == "build":
        load_mintrec(folder, "mintrec2.0", cache_dir=cache)
    elif task == "arrow":
        train(load_mintrec(folder, "mintrec2.0", cache_dir=cache)["train"], FEATURE_SIZE)
    else:
        rows = load_mintrec(folder, "mintrec2.0", audio_features="none", cache_dir=cache)["train"]
        if task == "safetensors":
            train(LazyRows(rows, SafetensorsFeatures(folder / FEATURES)), FEATURE_SIZE)
        else:
            train(rows, None)


class PeakMemory:
    """Samples the resident memory of this process every few milliseconds of its `with` block, and at its end.

    Attributes:
        own (`int`): Peak bytes that are not pages of files.
        resident (`int`): Peak bytes, including pages of mapped files.
    """

    def __init__(self):
        self.own, self.resident = 0, 0

    def __enter__(self) -> "PeakMemory":
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        process = psutil.Process()
        running = True
        while running:
            running = not self._stopped.wait(0.005)
            memory = process.memory_info()
            self.own = max(self.own, memory.rss - memory.shared)
            self.resident = max(self.resident, memory.rss)

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join()


def measure(folder: Path, cache: Path) -> dict[str, dict[str, int]]:
    """Return {task: {"own": peak bytes, "resident": peak bytes}}, each measured in a fresh process."""
    peaks = {}
    for task in TASKS:
        command = [sys.executable, __file__, "--task", task, "--folder", str(folder), "--cache", str(cache)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[task] = json.loads(output.splitlines()[-1])
        print(f"{TASKS[task]}: {peaks[task]['own'] / 2**20:,.0f} MiB", file=sys.stderr)
    return peaks


def table(peaks: dict[str, dict[str, int]], feature_bytes: int) -> str:
    """Return the peaks as Markdown, with the difference to training on words."""
    rows = []
    for task, peak in peaks.items():
        above = peak["own"] - peaks["text"]["own"]
        mebibytes = [f"{number / 2**20:,.0f}" for number in (peak["own"], above, peak["resident"])]
        rows.append([TASKS[task], *mebibytes[:2], f"{above / feature_bytes:.2f}", mebibytes[2]])
    header = ["", "peak, MiB", "above words, MiB", "above words / features", "with mapped files, MiB"]
    return markdown_table(header, rows).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="9,304 clips, about 4 GB (needs 10 GB of disk)")
    parser.add_argument("--output", type=Path, help="file for the numbers as JSON")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        with PeakMemory() as peak:
            run_task(options.task, options.folder, options.cache)
        print(json.dumps({"own": peak.own, "resident": peak.resident}))
        return
    num_clips = 9304 if options.full else 450
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        feature_bytes = simulate(root / "data", num_clips)
        peaks = measure(root / "data", root / "cache")
    padded = 8 * num_clips * MAX_FRAMES * FEATURE_SIZE
    print(
        f"Features: {feature_bytes / 2**20:,.0f} MiB on disk; padded as float64 they would be {padded / 2**20:,.0f}."
    )
    print(table(peaks, feature_bytes))
    if options.output:
        options.output.write_text(json.dumps({"feature_bytes": feature_bytes, "peak_bytes": peaks}, indent=2) + "\n")


if __name__ == "__main__":
    main()
