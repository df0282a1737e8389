#!/usr/bin/env python3
"""
How fast clips become intents, and where the time goes: decoding, encoders, model.

    python examples/benchmarks/benchmark_clips.py --output_dir runs/benchmark_clips

The encoders have the shapes of WavLM-base and Swin-tiny and the text encoder that of BERT-base, with random weights, so that
nothing is downloaded. Clips are synthetic: 3 s, 640 x 360, H.264 and AAC. Each part of each clip is timed, several
times; the report gives medians and the spread between the runs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    SwinConfig,
    SwinModel,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
)
from transformers.utils import logging

from amess_hf import AMESSConfig, AMESSForIntentClassification, AMESSProcessor, IntentRecognitionPipeline
from amess_hf.evaluation.tables import markdown_table


sys.path.append(str(Path(__file__).parents[1] / "demo"))

from clip_writer import write_clip


LABELS = [f"intent {number}" for number in range(20)]
TEXT = "well that is just great is it not"
PARTS = ("decode sound", "decode picture", "encode sound", "encode picture", "model")
FRAME_RATE, SAMPLING_RATE = 25, 44100


def draw_clip(path: Path, seconds: float, size: tuple[int, int], seed: int) -> None:
    """A moving bright square on a textured ground, and a voice-like sound."""
    generator = np.random.default_rng(seed)
    height, width = size
    ground = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
    count, side = round(seconds * FRAME_RATE), height // 4

    def frames():
        for index in range(count):
            frame = np.roll(ground, 2 * index, axis=1)
            left = (width - side) * index // count
            frame[side : 2 * side, left : left + side] = 240
            yield frame

    times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    voice = sum(np.sin(2 * np.pi * 120 * harmonic * times) / harmonic for harmonic in range(1, 8))
    write_clip(path, frames(), 0.2 * voice * (1 + np.sin(8 * times)), FRAME_RATE, SAMPLING_RATE)


def build(folder: Path, small: bool, device: str) -> tuple[AMESSForIntentClassification, AMESSProcessor]:
    """A model with its processor, encoders of the published shapes (or tiny ones) saved below `folder`."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    wavlm = WavLMConfig(**tiny, conv_dim=[16] * 7, num_conv_pos_embedding_groups=2) if small else WavLMConfig()
    swin = SwinConfig(embed_dim=24, depths=[1, 1], num_heads=[2, 2]) if small else SwinConfig()
    WavLMModel(wavlm).save_pretrained(folder / "wavlm-base")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / "wavlm-base")
    SwinModel(swin).save_pretrained(folder / "swin-tiny")
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / "swin-tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()]
    config = AMESSConfig(
        text_config=BertConfig(**tiny) if small else BertConfig(),
        audio_config={"feature_size": wavlm.hidden_size, "encoder": str(folder / "wavlm-base")},
        video_config={"feature_size": swin.hidden_size, "encoder": str(folder / "swin-tiny")},
        id2label=dict(enumerate(LABELS)),
    )
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))})
    return AMESSForIntentClassification(config).eval().to(device), AMESSProcessor.for_model(config, tokenizer)


def timed(times: dict[str, float], part: str, work: Callable[[], Any]) -> Any:
    """Runs `work` and adds its seconds to `times[part]`; waits for the GPU where there is one."""
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times[part] = times.get(part, 0.0) + time.perf_counter() - began
    return result


@torch.no_grad()
def time_parts(model: Any, processor: AMESSProcessor, clips: list[Path], device: str) -> dict[str, float]:
    """Seconds per clip of each part, clips one at a time."""
    audio, video = processor.load_encoder("audio", device), processor.load_encoder("video", device)
    times: dict[str, float] = {}
    for clip in clips:
        sound = timed(times, "decode sound", lambda clip=clip: processor.read({"audio": clip})["audio"])
        frames = timed(times, "decode picture", lambda clip=clip: processor.read({"frames": clip})["video"])
        heard = timed(times, "encode sound", lambda sound=sound: audio([sound]))
        seen = timed(times, "encode picture", lambda frames=frames: video([frames]))
        row = {"text": TEXT, "audio_features": heard[0], "video_features": seen[0]}
        batch = processor.collate([row]).to(device)
        timed(times, "model", lambda batch=batch: model(**batch).logits.cpu())
    return {part: times[part] / len(clips) for part in PARTS}


def time_pipeline(recogniser: IntentRecognitionPipeline, clips: list[Path], batch_size: int) -> float:
    """Clips per second through the pipeline."""
    began = time.perf_counter()
    recogniser([{"clip": str(clip), "text": TEXT} for clip in clips], batch_size=batch_size)
    return len(clips) / (time.perf_counter() - began)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = build(folder, args.small, device)
    clips = [folder / f"clip{number}.mp4" for number in range(args.num_clips)]
    for number, clip in enumerate(clips):
        draw_clip(clip, args.seconds, (360, 640), number)
    recogniser = IntentRecognitionPipeline(model, processor=processor, detector=False, device=device)
    time_parts(model, processor, clips[:1], device)  # warm-up
    runs, rates = [], []
    for _ in range(args.repeats):
        runs.append(time_parts(model, processor, clips, device))
        rates.append(time_pipeline(recogniser, clips, args.batch_size))
    totals = [sum(run.values()) for run in runs]
    extraction = [total - run["model"] for total, run in zip(totals, runs, strict=True)]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "clips": args.num_clips,
        "seconds_of_a_clip": args.seconds,
        "encoder_shapes": "tiny" if args.small else "WavLM-base, Swin-tiny, BERT-base",
        "seconds_per_clip": {part: summary([run[part] for run in runs]) for part in PARTS},
        "share": {part: statistics.median(r[part] / t for r, t in zip(runs, totals, strict=True)) for part in PARTS},
        "decoding_share": statistics.median(
            (run["decode sound"] + run["decode picture"]) / total for run, total in zip(runs, totals, strict=True)
        ),
        "extraction_clips_per_second": summary([1 / seconds for seconds in extraction]),
        "pipeline_clips_per_second": summary(rates),
    }


def markdown(results: dict[str, Any]) -> str:
    lines = [
        f"# From clips to intents: {results['device']}",
        "",
        f"{results['clips']} clips of {results['seconds_of_a_clip']:g} s; {results['encoder_shapes']}; random weights.",
        "",
    ]
    rows = []
    for part in PARTS:
        times = results["seconds_per_clip"][part]
        spread = f"{1e3 * times['min']:.1f} to {1e3 * times['max']:.1f}"
        rows.append([part, f"{1e3 * times['median']:.1f}", spread, f"{results['share'][part]:.1%}"])
    lines.append(markdown_table(["part", "ms per clip (median)", "min to max", "share"], rows))
    lines += [f"Decoding takes {results['decoding_share']:.1%} of the time.", ""]
    for name, key in (("Extraction", "extraction_clips_per_second"), ("The pipeline", "pipeline_clips_per_second")):
        rate = results[key]
        lines.append(f"{name}: {rate['median']:.2f} clips per second ({rate['min']:.2f} to {rate['max']:.2f}).")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark_clips"), help="where the report goes")
    parser.add_argument("--num_clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=3, help="runs over all clips")
    parser.add_argument("--batch_size", type=int, default=4, help="clips at a time in the pipeline")
    parser.add_argument("--small", action="store_true", help="tiny encoders: checks the script in seconds")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "clips.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (args.output_dir / "clips.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    return results


if __name__ == "__main__":
    main()
