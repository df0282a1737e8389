#!/usr/bin/env python3
"""
What A-MESS costs in addition to its text encoder: time, memory, padding, latency, large label sets; where the time of raw
clips goes; and how much memory features take.

    python examples/benchmarks/benchmark.py --quick                              # some four minutes on two cores
    python examples/benchmarks/benchmark.py --sections clips,data                # raw clips; memory of stored features
    python examples/benchmarks/benchmark.py --output_dir results                 # everything, more rounds

Everything that is compared is measured in turns within one run, so that other load on the machine affects all alike;
numbers are medians with their spread (half the distance between the quartiles), and ratios of medians with a bootstrap
interval over the rounds. A ratio whose interval is too wide is reported as "not measured", and the page names what
else kept the machine busy. A column says what a ratio may be at most. Sizes are those of the published experiments on MIntRec:
30 tokens, 230 frames of video (256 wide) and 480 of audio (768 wide), all full, batch 16, a BERT-base text encoder with
random weights. A GPU is used when there is one, also in bf16 and compiled.

A section is a function that returns title → row → measured values; `COLUMNS` says how a value is written. Writes
`benchmark.json`, `benchmark.md` and `benchmark.png` into `--output_dir`.
"""

import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import BertConfig, BertTokenizer
from transformers.utils import logging

from amess_hf import AMESSConfig, AMESSDataCollator, AMESSForIntentClassification, AMESSProcessor, load_mintrec
from amess_hf.data.feature_files import write_features
from amess_hf.datasets_amess import DATASETS
from amess_hf.encoders_amess import load_encoder
from amess_hf.evaluation.tables import markdown_table
from amess_hf.training import AMESSTrainingArguments
from amess_hf.training.batches import ClipBatchSampler, label_turns


EXAMPLES = Path(__file__).parents[1]
sys.path += [str(EXAMPLES), str(EXAMPLES / "demo")]

from command_line import parse
from demo_clips import Scene, write_scene


TEXT_LENGTH, VIDEO_LENGTH, AUDIO_LENGTH, DESCRIPTION_LENGTH = 30, 230, 480, 22
VIDEO_SIZE, AUDIO_SIZE, BATCH_SIZE = 256, 768, 16
GROWTH = ((120, 60), (240, 120), (480, 240), (960, 480))  # frames of audio and video
INTENTS = (30, 300, 3000)
LABEL_UPDATE = int(AMESSTrainingArguments.label_update)

# What a step or an inference is measured with.
VARIANTS = {
    "text": {"fusion_type": "text"},
    "anchor": {"fusion_type": "anchor"},
    "anchor + SS": {"fusion_type": "anchor", "semantic_synchronization": True},
    "mean": {"fusion_type": "mean"},
    "cross_modal": {"fusion_type": "cross_modal"},
}
# Ratios to text alone that A-MESS is to keep; a doubling of the frames must not take more than double the time.
BOUNDS = {
    "Training step": {"anchor": 1.12, "anchor + SS": 1.25},
    "Inference": {"anchor": 1.12, "anchor + SS": 1.12},
    "Peak memory of a training step": {"anchor": 1.15},
}
DOUBLING = 2.0
# A ratio is given if the width of its 95 % interval is at most this share of it; other programs are named from this many cores on.
WIDEST_INTERVAL, RESAMPLES, BUSY_CORES = 0.25, 2000, 0.05
NOT_MEASURED = "not measured"


# How to measure


def timed(function, device):
    """Seconds that one call takes on `device`, and what it returns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    returned = function()
    wait()
    return time.perf_counter() - begin, returned


def in_turns(functions, rounds, device, description, warm_up=1):
    """
    Time functions one after another, in a new order in each round; the time of one with several `steps` is divided by
    them. Returns what `summary` makes of each.
    """
    times = {name: [] for name in functions}
    draw = random.Random(0)
    for turn in logging.tqdm(range(warm_up + rounds), desc=description, unit="round"):
        for name in draw.sample(list(functions), len(functions)):
            seconds, _ = timed(functions[name], device)
            if turn >= warm_up:
                times[name].append(seconds / getattr(functions[name], "steps", 1))
    return {name: summary(values) for name, values in times.items()}


def summary(times):
    """Median, and half the distance between the quartiles."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"seconds": statistics.median(times), "spread": (high - low) / 2, "rounds": len(times), "times": times}


def ratio_of(record, reference):
    """The `ratio` of two medians (`None` where its interval is too wide), and its 95 % interval over the rounds."""
    above, below = np.array(record["times"]), np.array(reference["times"])
    rounds = np.random.default_rng(0).integers(0, len(above), (RESAMPLES, len(above)))
    low, high = np.quantile(np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1), (0.025, 0.975))
    ratio = record["seconds"] / reference["seconds"]
    is_measured = high - low <= WIDEST_INTERVAL * ratio
    return {"ratio": ratio if is_measured else None, "low": float(low), "high": float(high)}


def with_ratios(records, reference):
    """Add to each record the ratio of its median to that of `reference`, and the interval of the ratio."""
    for record in records.values():
        record.update(ratio_of(record, records[reference]))
    return records


class OtherWork:
    """Measures other processes' CPU time from now on; those that end meanwhile are not counted."""

    def __init__(self):
        self.begin, self.before = time.perf_counter(), self.processor_seconds()

    @staticmethod
    def processor_seconds():
        """Process (its id and start time) → name and CPU seconds, for all processes but this one's own."""
        own = {process.pid for process in [psutil.Process(), *psutil.Process().children(recursive=True)]}
        return {
            (process.pid, process.info["create_time"]): (process.info["name"], sum(process.info["cpu_times"][:2]))
            for process in psutil.process_iter(["name", "create_time", "cpu_times"])
            if process.pid not in own and process.info["cpu_times"] is not None
        }

    def cores(self):
        """Name of a program → average number of cores used, the busiest first."""
        passed, taken = time.perf_counter() - self.begin, {}
        for key, (name, seconds) in self.processor_seconds().items():
            taken[name] = taken.get(name, 0.0) + (seconds - self.before.get(key, (name, 0.0))[1]) / passed
        busy = {name: round(cores, 2) for name, cores in taken.items() if cores >= BUSY_CORES}
        return dict(sorted(busy.items(), key=lambda item: -item[1]))


def peaks_of(tasks, arguments, folder="."):
    """Task → peak bytes of a process of its own, sampled: `own`, and `bytes` with the pages of mapped files."""
    peaks = {}
    for task in tasks:
        options = ["--peak_of", task, "--folder", str(folder), "--threads", str(arguments.threads), "--disable_tqdm"]
        process = psutil.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True)
        own = peak = 0
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                own, peak = max(own, memory.rss - getattr(memory, "shared", 0)), max(peak, memory.rss)
            time.sleep(0.005)
        if process.returncode:
            raise OSError(f"the process that measures {task} ended with status {process.returncode}")
        peaks[task] = {"own": own, "bytes": int(process.stdout.read() or peak)}
    return peaks


def run_task(task, folder, device):
    """Take a variant's or a number of intents' training steps, or a task on stored features; print a GPU's peak bytes."""
    if task in DATA_TASKS:
        DATA_TASKS[task](folder)
    else:
        take_steps(task, device)
        if device.type == "cuda":
            print(torch.cuda.max_memory_allocated())


# What to measure


def make_config(fusion_type="anchor", semantic_synchronization=False, num_labels=20, **values):
    labels = [f"intent {number}" for number in range(num_labels)]
    return AMESSConfig(
        text_config=BertConfig(),
        audio_config={"feature_size": AUDIO_SIZE},
        video_config={"feature_size": VIDEO_SIZE},
        fusion_type=fusion_type,
        id2label=dict(enumerate(labels)),
        label_descriptions={label: ["described"] for label in labels} if semantic_synchronization else None,
        batch_triplet_loss_weight=0.1 if semantic_synchronization else 0.0,
        **values,
    )


def make_models(device, configs):
    """One model for each configuration; they share one text encoder, so that memory holds it once."""
    models, text_encoder = {}, None
    for name, config in configs.items():
        torch.manual_seed(0)
        model = AMESSForIntentClassification(config)
        text_encoder = model.amess.text_encoder = text_encoder or model.amess.text_encoder
        models[name] = model.to(device)
    return models


def variant_models(device, names=tuple(VARIANTS)):
    return make_models(device, {name: make_config(**VARIANTS[name]) for name in names})


def make_batch(device, batch_size=BATCH_SIZE):
    """A batch in which every clip has the maximum length."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 20000, (batch_size, TEXT_LENGTH), generator=generator),
        "attention_mask": torch.ones(batch_size, TEXT_LENGTH, dtype=torch.long),
        "labels": torch.randint(0, 20, (batch_size,), generator=generator),
    }
    for name, length, size in (("audio", AUDIO_LENGTH, AUDIO_SIZE), ("video", VIDEO_LENGTH, VIDEO_SIZE)):
        batch[f"{name}_features"] = torch.randn(batch_size, length, size, generator=generator)
        batch[f"{name}_attention_mask"] = torch.ones(batch_size, length, dtype=torch.long)
    return {name: value.to(device) for name, value in batch.items()}


def batches_of_cycle(model, batch):
    """The batches of the steps until the labels are encoded again; only the batch if the model has no descriptions."""
    if model.config.label_descriptions is None:
        return [batch]
    turns, batches = torch.tensor(label_turns(model.config.num_labels, LABEL_UPDATE)), []
    # A cycle repeats one pattern: a step that encodes labels, and the steps before the next one.
    for step in range(LABEL_UPDATE // len(turns.unique())):
        indices = (turns == step).nonzero().flatten()
        words = torch.randint(1000, 20000, (len(indices), DESCRIPTION_LENGTH))
        values = {"input_ids": words, "attention_mask": torch.ones_like(words), "indices": indices}
        given = {f"description_{name}": value.to(batch["labels"].device) for name, value in values.items()}
        batches.append({**batch, **given} if len(indices) else batch)
    return batches


def training_step(model, optimizer, batch, autocast=nullcontext):
    """
    One whole step: forward, backward, optimizer. A model with descriptions takes the steps between two encodings of
    its labels; `steps` of the returned function says how many.
    """
    batches = batches_of_cycle(model, batch)
    model.train()

    def step():
        for one in batches:
            with autocast():
                loss = model(**one).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    step.steps = len(batches)
    return step


def take_steps(name, device):
    """Three training steps of a variant, or with a number of described intents."""
    config = VARIANTS.get(name) or {"semantic_synchronization": True, "num_labels": int(name.split()[0])}
    models = make_models(device, {name: make_config(**config)})
    step = training_step(models[name], make_optimizer(models), make_batch(device))
    for _ in range(3):
        step()


def inference(model, batch):
    batch = {name: value for name, value in batch.items() if name != "labels"}
    return torch.no_grad()(lambda: model.eval()(**batch))


def make_optimizer(models):
    """One optimizer for all models; weights without a gradient are skipped in a step."""
    return torch.optim.AdamW(torch.nn.ModuleList(models.values()).parameters(), lr=1e-5, fused=True)


def section_step(arguments, device):
    """Training step and inference with each fusion, as ratios to the text encoder alone, all clips full."""
    models, batch = variant_models(device), make_batch(device)
    # The text padded to the longest of a batch of MIntRec-like lengths instead of to 30 tokens.
    shorter = batch | {name: batch[name][:, :18] for name in ("input_ids", "attention_mask")}
    optimizer, rounds = make_optimizer(models), 6 if arguments.quick else 15
    given = {name: (model, batch) for name, model in models.items()}
    given["text, batch's longest"] = models["text"], shorter
    steps = {name: training_step(model, optimizer, its_batch) for name, (model, its_batch) in given.items()}
    calls = {name: inference(model, its_batch) for name, (model, its_batch) in given.items()}
    return {
        "Training step": with_ratios(in_turns(steps, rounds, device, "Training steps"), "text"),
        "Inference": with_ratios(in_turns(calls, 2 * rounds, device, "Inference"), "text"),
    }


def section_memory(arguments, device):
    """AdamW included, each in a process of its own."""
    more = ["anchor + SS", "cross_modal", *(f"{count} described intents" for count in (INTENTS[0], INTENTS[-1]))]
    peaks = peaks_of(["text", "anchor", *(() if arguments.quick else more)], arguments)
    ratios = {name: {"bytes": p["bytes"], "ratio": p["bytes"] / peaks["text"]["bytes"]} for name, p in peaks.items()}
    return {"Peak memory of a training step": ratios}


def section_growth(arguments, device):
    """Forward and backward of the fusion alone; frames of audio / video, ratios to the line above."""
    results = {}
    for fusion_type in ("anchor", "cross_modal"):
        config = make_config(fusion_type)
        config.text_config.num_hidden_layers = 0
        fusion = AMESSForIntentClassification(config).amess.fusion.to(device).train()
        is_anchor = fusion_type == "anchor"
        # The pairwise fusion's last doubling takes longer than everything else.
        frames = GROWTH if is_anchor or not arguments.quick else GROWTH[:-1]
        steps = {f"{audio}/{video}": fusion_step(fusion, audio, video, config, device) for audio, video in frames}
        rounds = (9 if is_anchor else 3) if arguments.quick else 15
        records = in_turns(steps, rounds, device, f"Growth, {fusion_type}")
        for before, record in itertools.pairwise(records.values()):
            record |= ratio_of(record, before) | ({"bound": DOUBLING} if is_anchor else {})
        results[f"Growth of the fusion: {fusion_type}"] = records
    return results


def fusion_step(fusion, audio, video, config, device):
    """Forward and backward of the fusion with so many frames."""
    text_size = config.text_config.hidden_size
    sizes = {"audio": (audio, AUDIO_SIZE), "video": (video, VIDEO_SIZE), "text": (TEXT_LENGTH, text_size)}
    features = {name: torch.randn(BATCH_SIZE, *size, device=device) for name, size in sizes.items()}
    masks = {name: torch.ones(value.shape[:2], dtype=torch.bool, device=device) for name, value in features.items()}

    def step():
        fusion(features, masks, features["text"].mean(1)).state.sum().backward()
        fusion.zero_grad()

    return step


def section_intents(arguments, device):
    """Classifier and stored descriptions together; ratios to 30 intents."""
    configs = {str(n): make_config("anchor", True, num_labels=n, label_similarity_weight=0.5) for n in INTENTS}
    calls = {}
    for count, model in make_models(device, configs).items():
        model.label_embeds.copy_(torch.nn.functional.normalize(torch.randn_like(model.label_embeds), dim=-1))
        calls[count] = inference(model, make_batch(device))
    records = in_turns(calls, 5 if arguments.quick else 15, device, "Described intents")
    return {"Inference with described intents": with_ratios(records, str(INTENTS[0]))}


def section_latency(arguments, device):
    """One clip at a time, as a page or a server answers; ratios to the text encoder alone."""
    calls = {name: inference(model, make_batch(device, 1)) for name, model in variant_models(device).items()}
    return {"One clip": with_ratios(in_turns(calls, 15 if arguments.quick else 50, device, "One clip", 3), "text")}


def section_padding(arguments, device):
    """Share of padding among all numbers of the frames, 1,334 clips with lengths drawn as in MIntRec."""
    seconds = np.random.default_rng(0).lognormal(np.log(2.2), 0.45, 1334)
    audio, video = (seconds * 50).astype(int).clip(1, AUDIO_LENGTH), (seconds * 25).astype(int).clip(1, VIDEO_LENGTH)

    def size(audio_frames, video_frames):
        return audio_frames * AUDIO_SIZE + video_frames * VIDEO_SIZE

    padded = {"to the maximum": len(audio) * size(AUDIO_LENGTH, VIDEO_LENGTH)}
    for name, lengths in (("to the batch's longest", None), ("grouped by length", audio + video)):
        batches = ClipBatchSampler(len(audio), BATCH_SIZE, 0, lengths=lengths)
        padded[name] = sum(len(batch) * size(audio[batch].max(), video[batch].max()) for batch in batches)
    held = size(audio.sum(), video.sum())
    return {"Padding": {name: {"share": float(1 - held / numbers)} for name, numbers in padded.items()}}


# Raw clips

CLIPS = 8
WORDS = "we they you can not will see that this now here open close the a door window well and or".split()


def make_tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def section_clips(arguments, device):
    """Clips of 3 s (640 x 360, H.264 and AAC), one at a time, with `--audio_encoder` and `--video_encoder` as they are."""
    encoders = {"audio": arguments.audio_encoder, "video": arguments.video_encoder}
    configs = {
        f"{name}_config": {"encoder": encoder, "feature_size": load_encoder(name, encoder, device).feature_size}
        for name, encoder in encoders.items()
    }
    config = AMESSConfig(text_config=BertConfig(), id2label=dict(enumerate("abcd")), **configs)
    model = AMESSForIntentClassification(config).eval().to(device)
    processor = AMESSProcessor.for_model(config, make_tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        scenes = [Scene(n, 3.0, None, (0, 1), None, (0, 1), seed=n) for n in range(CLIPS)]
        clips = [write_scene(Path(folder, f"{n}.mp4"), scene, (640, 360), 25) for n, scene in enumerate(scenes)]
        calls = {
            "decode": lambda clip: processor.read({"clip": clip, "text": "we can see that now"}),
            "encode": lambda row: processor.encode([row], device)[0],
            "answer": torch.no_grad()(lambda row: model(**processor.collate([row]).to(device)).logits.cpu()),
        }
        times = {name: [] for name in calls}
        for _ in logging.tqdm(range(4), desc="Clips", unit="round"):
            rows = clips
            for name, call in calls.items():
                seconds, rows = timed(lambda: [call(row) for row in rows], device)  # noqa: B023
                times[name].append(seconds / CLIPS)
    records = {name: summary(seconds[1:]) for name, seconds in times.items()}
    total = sum(record["seconds"] for record in records.values())
    return {"From clips to intents": {name: r | {"share": r["seconds"] / total} for name, r in records.items()}}


# Memory of stored features

FEATURES = Path("data") / "audio_data" / "wavlm_feats"


def write_data(folder, num_clips):
    """Write a MIntRec folder of noise with so many training clips of 3 s on average; returns the bytes of its features."""
    draw, labels = np.random.default_rng(0), DATASETS["mintrec"].labels
    rows = [f"S01\tE01\t{n}\twe can see that now\t{labels[n % len(labels)]}\n" for n in range(num_clips)]
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.tsv").write_text("season\tepisode\tclip\ttext\tlabel\n" + "".join(rows))
    lengths = np.clip(50 * draw.lognormal(np.log(3.0) - 0.1, 0.45, num_clips), 25, 400).astype(int)
    noise = (draw.standard_normal((length, AUDIO_SIZE), dtype=np.float32) for length in lengths)
    write_features(((f"S01_E01_{n}", clip) for n, clip in enumerate(noise)), folder / FEATURES, source=folder)
    return sum(path.stat().st_size for path in (folder / FEATURES).iterdir())


def load_data(folder, **options):
    return load_mintrec(Path(folder) / "data", cache_dir=Path(folder) / "cache", **options)["train"]


def train_small(rows, audio=True):
    """Train a small model for one epoch."""
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    config = AMESSConfig(
        text_config=BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2),
        audio_config={"feature_size": AUDIO_SIZE, "max_length": 400} if audio else None,
        **sizes,
        num_fusion_layers=1,
        id2label=dict(enumerate(DATASETS["mintrec"].labels)),
    )
    collator = AMESSDataCollator(make_tokenizer(), config)
    model = AMESSForIntentClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in torch.utils.data.DataLoader(rows, BATCH_SIZE, shuffle=True, collate_fn=collator):
        training_step(model, optimizer, batch)()


DATA_TASKS = {
    "train on text alone": lambda folder: train_small(load_data(folder, audio_features="none"), audio=False),
    "build the data set from safetensors": load_data,
    "train from the built data set (Arrow)": lambda folder: train_small(load_data(folder)),
}


def section_data(arguments, device):
    """Peak of a process each, without and with the pages of mapped files, which the system reclaims when memory is short."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_data(Path(folder), arguments.clips)
        peaks = peaks_of(DATA_TASKS, arguments, folder)
    text = peaks["train on text alone"]["own"]
    rows = {task: {"own": p["own"], "above": p["own"] - text, "mapped": p["bytes"]} for task, p in peaks.items()}
    return {f"Memory of features, {size / 2**20:,.0f} MiB on disk": rows}


# On a GPU


def section_gpu(arguments, device):
    """bf16 next to float32, and compiled next to eager; ratios to the text encoder alone."""
    results, precisions = {}, {"float32": nullcontext, "bf16": lambda: torch.autocast("cuda", torch.bfloat16)}
    for precision, batch_size in itertools.product(precisions, (BATCH_SIZE, 64) if device.type == "cuda" else ()):
        batch, models = make_batch(device, batch_size), variant_models(device, ["text", "anchor", "anchor + SS"])
        compiled = {f"{name}, compiled": torch.compile(model) for name, model in models.items()}
        optimizer, autocast = make_optimizer(models), precisions[precision]
        steps = {name: training_step(model, optimizer, batch, autocast) for name, model in (models | compiled).items()}
        title = f"{precision}, batch {batch_size}"
        results[f"Training step on the GPU: {title}"] = with_ratios(in_turns(steps, 20, device, title, 5), "text")
    return results


QUICK = ("step", "memory", "growth", "intents", "latency", "padding", "gpu")
SECTIONS = {name: globals()[f"section_{name}"] for name in (*QUICK, "clips", "data")}


# What to write


def ratio_text(record):
    """The ratio with its interval where it has one, or "not measured"."""
    ratio = NOT_MEASURED if record["ratio"] is None else f"{record['ratio']:.2f}"
    return f"{ratio} ({record['low']:.2f} to {record['high']:.2f})" if "low" in record else ratio


def bound_text(record):
    """What the ratio may be at most, and whether it is."""
    is_held = record.get("ratio") and record["ratio"] <= record["bound"]
    return f"{record['bound']:.2f}" + {None: "", True: " (held)", False: " **(exceeded)**"}[is_held]


# Value → its column, and how it is written.
COLUMNS = {
    "seconds": ("ms", lambda r: f"{1000 * r['seconds']:,.1f} ± {1000 * r['spread']:,.1f}"),
    "bytes": ("GiB", lambda r: f"{r['bytes'] / 2**30:.2f}"),
    "own": ("peak, MiB", lambda r: f"{r['own'] / 2**20:,.0f}"),
    "above": ("above text, MiB", lambda r: f"{r['above'] / 2**20:,.0f}"),
    "mapped": ("with mapped files, MiB", lambda r: f"{r['mapped'] / 2**20:,.0f}"),
    "ratio": ("ratio", ratio_text),
    "bound": ("at most", bound_text),
    "share": ("share", lambda r: f"{r['share']:.0%}"),
}


def other_work_text(cores):
    """Other load on the machine, in a sentence."""
    if not cores:
        return "No other process took a twentieth of a core meanwhile."
    programs = ", ".join(f"{name} {share:.1f}" for name, share in cores.items())
    return f"**Disturbed**: other processes took {sum(cores.values()):.1f} cores on average ({programs})."


def as_markdown(results):
    """The results as a page of tables."""
    lines = [
        f"# Benchmark\n\n{results['device']}; {results['software']}; {results['settings']}.\n",
        f"{other_work_text(results['other_processes'])} Ratios are given with their 95 % interval over the rounds; one whose "
        f"interval is wider than {WIDEST_INTERVAL:.0%} of it is {NOT_MEASURED}.\n",
    ]
    for title, table in results["tables"].items():
        chosen = [name for name in COLUMNS if any(name in record for record in table["rows"].values())]
        cells = [
            [row, *(COLUMNS[name][1](record) if name in record else "" for name in chosen)]
            for row, record in table["rows"].items()
        ]
        header = ["", *(COLUMNS[name][0] for name in chosen)]
        lines.append(f"## {title}\n\n{table['note']}\n\n{markdown_table(header, cells)}")
    return "\n".join(lines)


def draw(tables, path):
    """The main numbers as bars and lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    kinds = [kind for kind in ("Training step", "Inference", "One clip") if kind in tables]
    for place, kind in enumerate(kinds):
        ratios = [tables[kind]["rows"][name]["ratio"] for name in VARIANTS]
        drawn = bars.bar(np.arange(len(ratios)) + 0.3 * place, [ratio or 0 for ratio in ratios], 0.28, label=kind)
        labels = [NOT_MEASURED if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        bars.bar_label(drawn, labels, fontsize=8, padding=2)
    bars.set_xticks(np.arange(len(VARIANTS)) + 0.15 * (len(kinds) - 1), VARIANTS)
    bars.set(title=f"Time, batch {BATCH_SIZE}", ylabel="ratio to text alone")
    for fusion, style in (("anchor", "o-"), ("cross_modal", "s--")):
        if table := tables.get(f"Growth of the fusion: {fusion}"):
            frames = [int(name.split("/")[0]) for name in table["rows"]]
            times = [1000 * row["seconds"] for row in table["rows"].values()]
            lines.loglog(frames, times, style, label=fusion, subs=[])
    ticks = [audio for audio, _ in GROWTH]
    lines.set_xticks(ticks, ticks)
    lines.set(title="The fusion alone, forward and backward", xlabel="frames of audio (video: half)", ylabel="ms")
    for axes in (bars, lines):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(path, dpi=120)


@dataclass
class BenchmarkArguments:
    """What to measure and where to write it."""

    output_dir: str = field(default="benchmark_output", metadata={"help": "Folder for the JSON, Markdown and plots."})
    quick: bool = field(default=False, metadata={"help": f"Fewer rounds, of {', '.join(QUICK)}."})
    sections: str | None = field(default=None, metadata={"help": f"Separated by commas: {', '.join(SECTIONS)}."})
    clips: int = field(default=450, metadata={"help": "Clips of the section `data`; MIntRec2.0 has 9,304, 4 GB."})
    audio_encoder: str = field(default="log-mel", metadata={"help": "For the section `clips`."})
    video_encoder: str = field(default="hog", metadata={"help": "For the section `clips`."})
    threads: int = field(default=2, metadata={"help": "CPU threads of torch."})
    peak_of: str | None = field(default=None, metadata={"help": "Only run this task, whose memory is measured."})
    folder: str | None = field(default=None, metadata={"help": "Of the data of the task."})


def measure(arguments, device):
    """Title → note and rows of each table, of the chosen sections."""
    names = arguments.sections.split(",") if arguments.sections else QUICK if arguments.quick else list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        sys.exit(f"benchmark.py: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    tables = {}
    for name in names:
        for title, rows in SECTIONS[name](arguments, device).items():
            for row in BOUNDS.get(title, {}).keys() & rows.keys():
                rows[row]["bound"] = BOUNDS[title][row]
            tables[title] = {"note": SECTIONS[name].__doc__, "rows": rows}
    return tables


def main(arguments=None):
    (arguments,) = parse([BenchmarkArguments], __doc__, arguments)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.peak_of is not None:
        return run_task(arguments.peak_of, arguments.folder, device)
    begin, others = time.perf_counter(), OtherWork()
    cpu = f"CPU ({platform.machine()}, {arguments.threads} threads of {os.cpu_count()} cores)"
    results = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "software": f"torch {torch.__version__}, Python {platform.python_version()}",
        "settings": "quick" if arguments.quick else "full",
        "tables": measure(arguments, device),
    }
    results |= {"seconds": time.perf_counter() - begin, "other_processes": others.cores()}
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "benchmark.md").write_text(as_markdown(results), encoding="utf-8")
    draw(results["tables"], folder / "benchmark.png")
    print(as_markdown(results))
    return results


if __name__ == "__main__":
    main()
