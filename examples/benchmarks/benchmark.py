#!/usr/bin/env python3
"""
What A-MESS costs in addition to its text encoder: time, memory, padding, loading, latency and large label sets.

    python examples/benchmarks/benchmark.py --quick                    # under five minutes on two cores
    python examples/benchmarks/benchmark.py --output_dir results       # more rounds

Everything that is compared is measured in turns within one run, so that other load on the machine affects all alike;
numbers are medians with their spread (half the distance between the quartiles), and ratios of medians with a bootstrap
interval over the rounds. A ratio whose interval is too wide is reported as "not measured", and the page names what
else kept the machine busy. Sizes are those of
the published experiments on MIntRec: 30 tokens, 230 frames of picture (256 wide) and 480 of sound (768 wide), all full,
batch 16, a BERT-base text encoder with random weights. A GPU is used when there is one: timed with events after a
warm-up, also in bf16 and compiled, with the model FLOP utilisation of a training step at batch 64.

Writes `benchmark.json`, `benchmark.md` and `benchmark.png` into `--output_dir`.
"""

import copy
import gc
import json
import os
import pickle
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertTokenizer, HfArgumentParser, Qwen2Config
from transformers.utils import logging

from amess_hf import (
    AMESSConfig,
    AMESSDataCollator,
    AMESSForIntentClassification,
    AMESSTrainingArguments,
    load_mintrec,
)
from amess_hf.data.feature_files import SafetensorsFeatures, read_pickle, write_features
from amess_hf.datasets_amess import DATASETS
from amess_hf.evaluation.tables import markdown_table
from amess_hf.processing_amess import encode_texts, pad_features
from amess_hf.training.batches import ClipBatchSampler, label_turns
from amess_hf.training.weights import add_lora


sys.path.append(str(Path(__file__).parents[1]))

from command_line import ProgressArguments, hide_progress_bars


TEXT_LENGTH, VIDEO_LENGTH, AUDIO_LENGTH = 30, 230, 480
VIDEO_SIZE, AUDIO_SIZE = 256, 768
BATCH_SIZE = 16
GROWTH = ((120, 60), (240, 120), (480, 240), (960, 480))  # frames of sound and picture
SECTIONS = ("step", "memory", "growth", "intents", "latency", "padding", "loading", "decoder", "gpu")

# What a step or an inference is measured with.
VARIANTS = {
    "text": {"fusion_type": "text"},
    "anchor": {"fusion_type": "anchor"},
    "anchor + SS": {"fusion_type": "anchor", "semantic_synchronization": True},
    "mean": {"fusion_type": "mean"},
    "cross_modal": {"fusion_type": "cross_modal"},
}
# Described intents with which the memory of a training step is compared.
INTENTS = (30, 3000)
# A ratio is given if the width of its 95 % interval is at most this share of it.
WIDEST_INTERVAL = 0.25
NOT_MEASURED = "not measured"
RESAMPLES = 2000
# Other processes are named from this many cores on.
BUSY_CORES = 0.05

LABEL_UPDATE = int(AMESSTrainingArguments.label_update)
DESCRIPTION_LENGTH = 22

# Dense bf16 peak of a device, in FLOP per second, by a part of its name (from the manufacturers' data sheets).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "T4": 65e12}


@dataclass
class BenchmarkArguments:
    """What to measure and where to write it."""

    output_dir: str = field(default="benchmark_output", metadata={"help": "Folder for the JSON, Markdown and plots."})
    quick: bool = field(default=False, metadata={"help": "Fewer rounds: under five minutes on two cores."})
    sections: str = field(default=",".join(SECTIONS), metadata={"help": "What to measure, separated by commas."})
    threads: int = field(default=2, metadata={"help": "CPU threads of torch."})
    peak_of: str | None = field(
        default=None, metadata={"help": "Used by the memory section: the variant to run once."}
    )


# ---------------------------------------------------------------------------------------------------- how to measure


def timed(function, device):
    """Seconds that one call takes on `device`."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def in_turns(functions, rounds, device, description, warm_up=1):
    """
    Time functions one after another, in a new order in each round; the time of one with several `steps` is divided by
    them.

    Returns:
        `dict`: for each name `seconds` (median), `spread` (half the distance between the quartiles), `rounds`, and the
        `times` of all rounds.
    """
    times = {name: [] for name in functions}
    draw = random.Random(0)
    for turn in logging.tqdm(range(warm_up + rounds), desc=description, unit="round"):
        for name in draw.sample(list(functions), len(functions)):
            seconds = timed(functions[name], device) / getattr(functions[name], "steps", 1)
            if turn >= warm_up:
                times[name].append(seconds)
    return {name: summary(values) for name, values in times.items()}


def summary(values):
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "seconds": statistics.median(values),
        "spread": (quartiles[2] - quartiles[0]) / 2,
        "rounds": len(values),
        "times": values,
    }


def ratio_of(record, reference):
    """
    The ratio of two medians, and the interval in which it lies in 95 of 100 resamples of the rounds.

    Args:
        record, reference (`dict`): What [`in_turns`] returned for two functions of the same call.

    Returns:
        `dict`: `ratio`, or `None` where the interval is too wide to say; `low` and `high`.
    """
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
        self.begin = time.perf_counter()
        self.before = self.processor_seconds()

    @staticmethod
    def processor_seconds():
        """Process (its id and start time) → name and CPU seconds, for all processes but this one's own."""
        own = {process.pid for process in [psutil.Process(), *psutil.Process().children(recursive=True)]}
        seconds = {}
        for process in psutil.process_iter(["name", "create_time", "cpu_times"]):
            times = process.info["cpu_times"]
            if process.pid not in own and times is not None:
                key = (process.pid, process.info["create_time"])
                seconds[key] = (process.info["name"], times.user + times.system)
        return seconds

    def cores(self):
        """Name of a program → average number of cores used, the busiest first."""
        passed = time.perf_counter() - self.begin
        taken = {}
        for key, (name, seconds) in self.processor_seconds().items():
            before = self.before.get(key, (name, 0.0))[1]
            taken[name] = taken.get(name, 0.0) + (seconds - before) / passed
        busy = {name: round(cores, 2) for name, cores in taken.items() if cores >= BUSY_CORES}
        return dict(sorted(busy.items(), key=lambda item: -item[1]))


# ------------------------------------------------------------------------------------------------------- what to measure


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


def make_models(device, variants=tuple(VARIANTS)):
    """One model for each variant; they share one text encoder, so that memory holds it once."""
    models, text_encoder = {}, None
    for name in variants:
        torch.manual_seed(0)
        model = AMESSForIntentClassification(make_config(**VARIANTS[name]))
        if text_encoder is not None:
            model.amess.text_encoder = text_encoder
        text_encoder = model.amess.text_encoder
        models[name] = model.to(device)
    return models


def make_batch(device, batch_size=BATCH_SIZE):
    """A batch in which every clip has the maximum length."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 20000, (batch_size, TEXT_LENGTH), generator=generator),
        "attention_mask": torch.ones(batch_size, TEXT_LENGTH, dtype=torch.long),
        "audio_features": torch.randn(batch_size, AUDIO_LENGTH, AUDIO_SIZE, generator=generator),
        "audio_attention_mask": torch.ones(batch_size, AUDIO_LENGTH, dtype=torch.long),
        "video_features": torch.randn(batch_size, VIDEO_LENGTH, VIDEO_SIZE, generator=generator),
        "video_attention_mask": torch.ones(batch_size, VIDEO_LENGTH, dtype=torch.long),
        "labels": torch.randint(0, 20, (batch_size,), generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def add_descriptions(batch, indices):
    """The batch of a step at which the labels `indices` are encoded."""
    device, shape = batch["input_ids"].device, (len(indices), DESCRIPTION_LENGTH)
    if not indices:
        return batch
    return {
        **batch,
        "description_input_ids": torch.randint(1000, 20000, shape, device=device),
        "description_attention_mask": torch.ones(shape, dtype=torch.long, device=device),
        "description_indices": torch.tensor(indices, device=device),
    }


def batches_of_cycle(model, batch):
    """The batches of the steps until the labels are encoded again; only the batch if the model has no descriptions."""
    if model.config.label_descriptions is None:
        return [batch]
    turns = label_turns(model.config.num_labels, LABEL_UPDATE)
    at_step = [[index for index, turn in enumerate(turns) if turn == step] for step in range(LABEL_UPDATE)]
    # a cycle repeats one pattern: a step that encodes labels, and the steps before the next one
    length = LABEL_UPDATE // len(set(turns))
    return [add_descriptions(batch, indices) for indices in at_step[:length]]


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


def inference(model, batch):
    batch = {name: value for name, value in batch.items() if name != "labels"}

    @torch.no_grad()
    def infer():
        model.eval()
        model(**batch)

    return infer


def make_optimizer(models):
    """One optimizer for all models; weights without a gradient are skipped in a step."""
    parameters = {id(parameter): parameter for model in models.values() for parameter in model.parameters()}
    return torch.optim.AdamW(parameters.values(), lr=1e-5, fused=True)


def section_step(arguments, device):
    """Training step and inference of the text encoder alone and with each fusion."""
    models = make_models(device)
    batch = make_batch(device)
    # Separately: the text padded to the longest of a batch of MIntRec-like lengths instead of to 30 tokens.
    shorter = {name: value[:, :18] if value.dim() == 2 and name in ("input_ids", "attention_mask") else value
               for name, value in batch.items()}  # fmt: skip
    optimizer = make_optimizer(models)
    rounds = 6 if arguments.quick else 15
    steps = {name: training_step(model, optimizer, batch) for name, model in models.items()}
    steps["text, batch's longest"] = training_step(models["text"], optimizer, shorter)
    training = with_ratios(in_turns(steps, rounds, device, "Training steps"), "text")
    calls = {name: inference(model, batch) for name, model in models.items() if name != "anchor + SS"}
    calls["text, batch's longest"] = inference(models["text"], shorter)
    calls["anchor + SS"] = inference(models["anchor + SS"], batch)
    return {
        "training": training,
        "inference": with_ratios(in_turns(calls, 2 * rounds, device, "Inference"), "text"),
    }


def section_memory(arguments, device):
    """Peak memory of a training step, each in its own process."""
    peaks = {}
    intents = [f"{count} described intents" for count in INTENTS]
    for name in ("text", "anchor", *(() if arguments.quick else ("anchor + SS", "cross_modal", *intents))):
        command = [sys.executable, __file__, "--peak_of", name, "--threads", str(arguments.threads)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[name] = json.loads(output.splitlines()[-1])
    return {name: {"bytes": peak, "ratio": peak / peaks["text"]} for name, peak in peaks.items()}


def peak_of(name, device):
    """Peak bytes of a process that takes three training steps of a variant."""
    if name in VARIANTS:
        models = make_models(device, [name])
    else:
        config = make_config(semantic_synchronization=True, num_labels=int(name.split()[0]))
        models = {name: AMESSForIntentClassification(config).to(device)}
    step = training_step(models[name], make_optimizer(models), make_batch(device))
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: peak memory is measured on Linux or on a GPU")


def section_growth(arguments, device):
    """Time of the fusion alone, forward and backward, as sound and picture double three times."""
    results = {}
    for fusion_type in ("anchor", "cross_modal"):
        config = make_config(fusion_type)
        config.text_config.num_hidden_layers = 0
        fusion = AMESSForIntentClassification(config).amess.fusion.to(device).train()
        functions = {}
        # The pairwise fusion's last doubling takes longer than everything else.
        for audio, video in GROWTH[:-1] if fusion_type == "cross_modal" and arguments.quick else GROWTH:
            features = {
                "audio": torch.randn(BATCH_SIZE, audio, AUDIO_SIZE, device=device),
                "video": torch.randn(BATCH_SIZE, video, VIDEO_SIZE, device=device),
                "text": torch.randn(BATCH_SIZE, TEXT_LENGTH, config.text_config.hidden_size, device=device),
            }
            masks = {
                name: torch.ones(value.shape[:2], dtype=torch.bool, device=device) for name, value in features.items()
            }
            functions[f"{audio}/{video}"] = fusion_step(fusion, features, masks)
        rounds = (3 if fusion_type == "cross_modal" else 9) if arguments.quick else 15
        records = in_turns(functions, rounds, device, f"Growth, {fusion_type}")
        previous = None
        for record in records.values():
            record["growth"] = None if previous is None else ratio_of(record, previous)
            previous = record
        results[fusion_type] = records
    return results


def fusion_step(fusion, features, masks):
    summary_of_text = features["text"].mean(1)

    def step():
        fusion(features, masks, summary_of_text).state.sum().backward()
        fusion.zero_grad()

    return step


def section_intents(arguments, device):
    """Inference with 30, 300 and 3,000 described intents, scored by classifier and descriptions together."""
    calls, text_encoder = {}, None
    batch = make_batch(device)
    for count in (30, 300, 3000):
        config = make_config("anchor", True, num_labels=count, label_similarity_weight=0.5)
        model = AMESSForIntentClassification(config)
        if text_encoder is not None:
            model.amess.text_encoder = text_encoder
        text_encoder = model.amess.text_encoder
        model.label_embeds.copy_(torch.nn.functional.normalize(torch.randn(model.label_embeds.shape), dim=-1))
        calls[str(count)] = inference(model.to(device), batch)
    return with_ratios(in_turns(calls, 5 if arguments.quick else 15, device, "Described intents"), "30")


def section_latency(arguments, device):
    """One clip at a time: where the time goes."""
    model = make_models(device, ["anchor + SS"])["anchor + SS"].eval()
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary())})
    text = " ".join(vocabulary()[-TEXT_LENGTH + 2 :])
    audio = np.random.default_rng(0).standard_normal((AUDIO_LENGTH, AUDIO_SIZE), dtype=np.float32)
    video = np.random.default_rng(0).standard_normal((VIDEO_LENGTH, VIDEO_SIZE), dtype=np.float32)
    parts = {"input": [], "text encoder": [], "fusion": [], "rest of the model": [], "answer": []}
    clock = PartClock(device, {"text encoder": model.amess.text_encoder, "fusion": model.amess.fusion})
    rounds = 15 if arguments.quick else 50
    for turn in range(3 + rounds):
        clock.start()
        batch = dict(encode_texts(tokenizer, [text], max_length=TEXT_LENGTH))
        for name, frames, size in (("audio", audio, AUDIO_SIZE), ("video", video, VIDEO_SIZE)):
            batch[f"{name}_features"], batch[f"{name}_attention_mask"] = pad_features([frames], size, AUDIO_LENGTH)
        batch = {name: value.to(device) for name, value in batch.items()}
        made = clock.lap()
        with torch.no_grad():
            logits = model(**batch).logits
        whole = clock.lap()
        logits.softmax(-1).topk(5)[0].tolist()
        answered = clock.lap()
        if turn >= 3:
            inner = {name: clock.inside[name] for name in ("text encoder", "fusion")}
            times = {"input": made, **inner, "rest of the model": whole - sum(inner.values()), "answer": answered}
            for name, seconds in times.items():
                parts[name].append(seconds)
    clock.remove()
    records = {name: summary(values) for name, values in parts.items()}
    total = sum(record["seconds"] for record in records.values())
    for record in records.values():
        record["share"] = record["seconds"] / total
    return records


class PartClock:
    """A stopwatch with laps, and the time inside some modules of a model."""

    def __init__(self, device, modules):
        self.device, self.inside, self.begun, self.handles = device, {}, {}, []
        for name, module in modules.items():
            self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            self.handles.append(module.register_forward_hook(lambda *_, name=name: self._leave(name)))

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _enter(self, name):
        self.begun[name] = self._now()

    def _leave(self, name):
        self.inside[name] = self._now() - self.begun[name]

    def start(self):
        self.last = self._now()

    def lap(self):
        last, self.last = self.last, self._now()
        return self.last - last

    def remove(self):
        for handle in self.handles:
            handle.remove()


def vocabulary():
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(first + second for first in letters for second in letters)]


def clip_frames(count):
    """Frames of sound and picture of `count` clips: 2.4 s in the median, as in MIntRec, at 50 and 25 frames a second."""
    seconds = np.random.default_rng(0).lognormal(np.log(2.2), 0.45, count)
    audio = np.clip((seconds * 50).astype(int), 1, AUDIO_LENGTH)
    return audio, np.clip((seconds * 25).astype(int), 1, VIDEO_LENGTH)


def section_padding(arguments, device):
    """Share of padding among the frames: to the maximum, to the batch's longest, and grouped by length."""
    audio, video = clip_frames(1334)
    held = audio.sum() * AUDIO_SIZE + video.sum() * VIDEO_SIZE
    results = {"to the maximum": len(audio) * (AUDIO_LENGTH * AUDIO_SIZE + VIDEO_LENGTH * VIDEO_SIZE)}
    for name, lengths in (("to the batch's longest", None), ("grouped by length", audio + video)):
        sampler = ClipBatchSampler(len(audio), BATCH_SIZE, 0, lengths=lengths)
        results[name] = sum(
            len(batch) * (audio[batch].max() * AUDIO_SIZE + video[batch].max() * VIDEO_SIZE) for batch in sampler
        )
    return {name: {"padding": float(1 - held / padded)} for name, padded in results.items()}


def section_loading(arguments, device):
    """Clips per second turned into batches, from each form of the features."""
    count = 300 if arguments.quick else 1334
    audio, _ = clip_frames(count)
    draw = np.random.default_rng(0)
    features = {f"S01_E01_{n}": draw.standard_normal((frames, AUDIO_SIZE), dtype=np.float32)
                for n, frames in enumerate(audio)}  # fmt: skip
    ids = list(features)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary())})
    config = make_config()
    config.video_config = None
    collator = AMESSDataCollator(tokenizer, config)
    sampler = list(ClipBatchSampler(count, BATCH_SIZE, 0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "audio_data").mkdir()
        labels = DATASETS["mintrec"].labels
        lines = ["season\tepisode\tclip\ttext\tlabel"]
        lines += [f"S01\tE01\t{n}\tab cd ef\t{labels[n % 20]}" for n in range(count)]
        (root / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        official = root / "audio_data" / "wavlm_feats.pkl"
        official.write_bytes(pickle.dumps(features))
        write_features(features.items(), root / "safetensors", source=official)
        stored = SafetensorsFeatures(root / "safetensors")
        built = load_mintrec(root, "mintrec", cache_dir=root / "cache")["train"]

        def from_safetensors():
            for batch in sampler:
                collator([{"text": "ab cd ef", "label": 0, "audio_features": stored[ids[n]]} for n in batch])

        def from_arrow():
            for batch in sampler:
                collator(built.__getitems__(batch))

        def from_pickle():
            everything = dict(read_pickle(official))
            for batch in sampler:
                collator([{"text": "ab cd ef", "label": 0, "audio_features": everything[ids[n]]} for n in batch])

        sources = {"safetensors": from_safetensors, "Arrow": from_arrow, "official pickle": from_pickle}
        records = in_turns(sources, 3 if arguments.quick else 7, torch.device("cpu"), "Loading")
    for record in records.values():
        record["clips_per_second"] = count / record["seconds"]
    return records


def decoder_config():
    """A decoder of half a billion weights, as in Qwen2.5-0.5B."""
    return Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


def section_decoder(arguments, device):
    """Training step and inference with a decoder as text encoder, in bf16; `None` with `--quick`."""
    if arguments.quick:
        return None
    config = make_config(text_pooling="last")
    config.text_config = decoder_config()
    batch = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in make_batch(device).items()
    }
    model = AMESSForIntentClassification(config).to(device, torch.bfloat16)
    model.get_input_embeddings().requires_grad_(False)
    adapted = add_lora(copy.deepcopy(model), rank=16)
    calls = {
        "all weights": decoder_step(model, batch, False),
        "LoRA, rank 16": decoder_step(adapted, batch, False),
        "LoRA, gradient checkpointing": decoder_step(adapted, batch, True),
        "inference": inference(model, batch),
    }
    return with_ratios(in_turns(calls, 6, device, "Decoder"), "all weights")


def decoder_step(model, batch, checkpointing):
    """A training step, with gradient checkpointing or without."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    step = training_step(model, optimizer, batch)

    def run():
        (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
        step()

    run.steps = step.steps
    return run


def section_gpu(arguments, device):
    """bf16 against float32, compiled against eager, and FLOP utilisation; `None` without a GPU."""
    if device.type != "cuda":
        return None
    results = {}
    for precision, autocast in (
        ("float32", nullcontext),
        ("bf16", lambda: torch.autocast("cuda", torch.bfloat16)),
    ):
        for batch_size in (BATCH_SIZE, 64):
            batch = make_batch(device, batch_size)
            models = make_models(device, ["text", "anchor", "anchor + SS"])
            optimizer = make_optimizer(models)
            compiled = {f"{name}, compiled": torch.compile(model) for name, model in models.items()}
            steps = {
                name: training_step(model, optimizer, batch, autocast)
                for name, model in {**models, **compiled}.items()
            }
            records = with_ratios(in_turns(steps, 20, device, f"{precision}, batch {batch_size}", warm_up=5), "text")
            for name, model in models.items():
                flops = flops_of_step(model, batch)
                for variant in (name, f"{name}, compiled"):
                    rate = flops / records[variant]["seconds"]
                    peak = next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name()), None)
                    records[variant]["tflops"] = rate / 1e12
                    if precision == "bf16" and peak:
                        records[variant]["utilisation"] = rate / peak
            results[f"{precision}, batch {batch_size}"] = records
            del models, optimizer, compiled, steps
            gc.collect()
            torch.cuda.empty_cache()
    return results


def flops_of_step(model, batch):
    """Floating-point operations of the matrix products of a training step."""
    step = training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), batch)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / step.steps


# --------------------------------------------------------------------------------------------------------- what to write


def milliseconds(record):
    return f"{1000 * record['seconds']:,.1f} ± {1000 * record['spread']:,.1f}"


def ratio_text(record):
    """The ratio with its interval, or "not measured"."""
    interval = f"{record['low']:.2f} to {record['high']:.2f}"
    return f"{NOT_MEASURED} ({interval})" if record["ratio"] is None else f"{record['ratio']:.2f} ({interval})"


def other_work_text(cores):
    """Other load on the machine, in a sentence."""
    if not cores:
        return "No other process took a twentieth of a core meanwhile."
    programs = ", ".join(f"{name} {share:.1f}" for name, share in cores.items())
    return f"**Disturbed**: other processes took {sum(cores.values()):.1f} cores on average ({programs})."


def as_markdown(results):
    """The results as a page of tables."""
    lines = ["# Benchmark", "", f"{results['device']}; {results['software']}; {results['settings']}.", ""]
    lines += [
        f"{other_work_text(results['other_processes'])} Ratios are given with their 95 % interval over the rounds; one whose "
        f"interval is wider than {WIDEST_INTERVAL:.0%} of it is {NOT_MEASURED}.",
        "",
    ]

    def table(title, note, head, rows):
        lines.extend([f"## {title}", "", note, "", markdown_table(head, rows)])

    sections = results["sections"]
    for kind in ("training", "inference") if "step" in sections else ():
        table(
            f"{kind.capitalize()}, batch {BATCH_SIZE}",
            f"Text {TEXT_LENGTH}, picture {VIDEO_LENGTH}, sound {AUDIO_LENGTH}, all full; ratios to the text encoder alone.",
            ("", "ms", "ratio"),
            [(name, milliseconds(r), ratio_text(r)) for name, r in sections["step"][kind].items()],
        )
    if "memory" in sections:
        table(
            "Peak memory of a training step",
            "AdamW included; each in its own process.",
            ("", "GiB", "ratio"),
            [(name, f"{r['bytes'] / 2**30:.2f}", f"{r['ratio']:.2f}") for name, r in sections["memory"].items()],
        )
    for fusion, records in sections.get("growth", {}).items():
        table(
            f"Growth of the fusion: {fusion}",
            "Forward and backward of the fusion alone; frames of sound / picture.",
            ("", "ms", "to the line above"),
            [
                (name, milliseconds(r), "" if r["growth"] is None else ratio_text(r["growth"]))
                for name, r in records.items()
            ],
        )
    if "intents" in sections:
        table(
            "Described intents, inference",
            "Classifier and stored descriptions together; ratios to 30.",
            ("intents", "ms", "ratio"),
            [(name, milliseconds(r), ratio_text(r)) for name, r in sections["intents"].items()],
        )
    if "latency" in sections:
        table(
            "One clip at a time",
            "From text and features to the five best intents.",
            ("part", "ms", "share"),
            [(name, milliseconds(r), f"{r['share']:.0%}") for name, r in sections["latency"].items()],
        )
    if "padding" in sections:
        table(
            "Padding",
            "Share of padding among all numbers of the frames, 1,334 clips with lengths drawn as in MIntRec.",
            ("", "padding"),
            [(name, f"{r['padding']:.0%}") for name, r in sections["padding"].items()],
        )
    if "loading" in sections:
        table(
            "Loading",
            "From stored features (sound, 768 wide) to padded batches, in random order; the pickle is read whole each time.",
            ("", "clips per second"),
            [(name, f"{r['clips_per_second']:,.0f}") for name, r in sections["loading"].items()],
        )
    if "decoder" in sections:
        table(
            "A decoder of half a billion weights as text encoder",
            f"bf16, batch {BATCH_SIZE}, last token; ratios to the training step of all weights but the word embeddings'.",
            ("", "ms", "ratio"),
            [(name, milliseconds(r), ratio_text(r)) for name, r in sections["decoder"].items()],
        )
    for setting, records in (sections.get("gpu") or {}).items():
        table(
            f"Training step on the GPU: {setting}",
            "Utilisation: FLOP of the matrix products over the device's dense bf16 peak.",
            ("", "ms", "ratio", "TFLOP/s", "utilisation"),
            [
                (
                    name,
                    milliseconds(r),
                    ratio_text(r),
                    f"{r['tflops']:.1f}",
                    f"{r['utilisation']:.0%}" if "utilisation" in r else "",
                )
                for name, r in records.items()
            ],
        )
    return "\n".join(lines)


def draw(results, path):
    """The main numbers as bars and lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sections = results["sections"]
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    if "step" in sections:
        names = [name for name in VARIANTS if name in sections["step"]["training"]]
        for offset, (kind, colour) in enumerate((("training", "#0072B2"), ("inference", "#E69F00"))):
            ratios = [sections["step"][kind][name]["ratio"] for name in names]
            places = np.arange(len(names)) + 0.4 * offset
            bars = axes[0].bar(places, [ratio or 0 for ratio in ratios], 0.38, label=kind, color=colour)
            labels = [NOT_MEASURED if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            axes[0].bar_label(bars, labels, fontsize=9, padding=2)
        axes[0].set_xticks(np.arange(len(names)) + 0.2, names)
        axes[0].set(title=f"Time compared with the text encoder's, batch {BATCH_SIZE}", ylabel="ratio to text alone")
        axes[0].margins(y=0.15)
        axes[0].legend()
    for (fusion, records), marker, colour in zip(
        sections.get("growth", {}).items(), "os", ("#0072B2", "#D55E00"), strict=False
    ):
        frames = [int(name.split("/")[0]) for name in records]
        axes[1].plot(
            frames, [1000 * r["seconds"] for r in records.values()], marker=marker, color=colour, label=fusion
        )
        axes[1].set(
            title="The fusion alone, forward and backward", xlabel="frames of sound (picture: half)", ylabel="ms"
        )
        axes[1].set_xscale("log", base=2)
        axes[1].set_yscale("log")
        axes[1].set_xticks(frames, frames)
        axes[1].legend()
    if "latency" in sections:
        shares = {name: 100 * record["share"] for name, record in sections["latency"].items()}
        bars = axes[2].barh(list(shares), list(shares.values()), color="#009E73")
        axes[2].bar_label(bars, [f"{share:.0f} %" for share in shares.values()], padding=3)
        axes[2].invert_yaxis()
        axes[2].margins(x=0.15)
        axes[2].set(title="One clip at a time", xlabel="share of the time, per cent")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine(device, threads):
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {threads} threads of {os.cpu_count()} cores)"


def main(arguments=None):
    parser = HfArgumentParser((BenchmarkArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.peak_of is not None:
        print(peak_of(arguments.peak_of, device))
        return None
    chosen = [name.strip() for name in arguments.sections.split(",")]
    unknown = set(chosen) - set(SECTIONS)
    if unknown:
        sys.exit(f"benchmark.py: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    begin, others = time.perf_counter(), OtherWork()
    results = {
        "device": machine(device, arguments.threads),
        "software": f"torch {torch.__version__}, Python {platform.python_version()}",
        "settings": "quick" if arguments.quick else "full",
        "sections": {},
    }
    for name in chosen:
        measured = globals()[f"section_{name}"](arguments, device)
        if measured is not None:
            results["sections"][name] = measured
        gc.collect()
    results["seconds"] = time.perf_counter() - begin
    results["other_processes"] = others.cores()
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "benchmark.md").write_text(as_markdown(results), encoding="utf-8")
    draw(results, folder / "benchmark.png")
    print(as_markdown(results))
    return results


if __name__ == "__main__":
    main()
