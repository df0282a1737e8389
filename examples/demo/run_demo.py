#!/usr/bin/env python
"""The main job in a few minutes, without a download: `make demo`, or

    python examples/demo/run_demo.py --output_dir demo_output

writes the demo corpus, mp4 files of drawn faces and made-up voices (clip_corpus.py says how they are made), turns them into
features (log-mel and histograms of oriented gradients), builds a vocabulary from the training split, trains A-MESS with a
small text encoder from scratch, and shows what each modality adds. Then it saves the model with an out-of-scope detector
and its card, loads it back as the pipeline, shows three clear clips with the anchors that decided (words, and times in audio
and video), and writes the evaluation report with its plots. `app.py` and `predict_clip.py` take the same model.
"""

import math
import os
import re
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import datasets
import torch


sys.path.append(str(Path(__file__).parents[1]))

from clip_corpus import CLEAR, CLIPS_PER_SPLIT, CorpusClip, corpus_clips, write_clip_corpus
from command_line import ProgressArguments, hide_progress_bars, progress_bars
from demo_corpus import best_attainable_accuracy, demo_label_descriptions
from predict_clip import merged_spans
from transformers import BertConfig, BertTokenizer, HfArgumentParser, pipeline, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from amess_hf import AMESSConfig, AMESSForIntentClassification, AMESSProcessor
from amess_hf.data.clip_features import add_clip_features
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.dataset_files import NO_FEATURES
from amess_hf.data.mintrec import load_mintrec
from amess_hf.datasets_amess import front_end_fields, merge_fields
from amess_hf.encoders_amess import encoder_class, load_encoder
from amess_hf.evaluation import (
    calibrate,
    compute_anchor_metrics,
    create_model_card,
    fit_detectors,
    modality_table,
    predict_clips,
    predict_masked,
    report,
)
from amess_hf.hub import save_for_hub
from amess_hf.processing_amess import write_json
from amess_hf.training import AMESSTrainer, AMESSTrainingArguments


LOG_MEL, HOG = "log-mel", "hog"
# Frames of audio and video that the model takes: those of the longest clip, and some more.
MAX_AUDIO_LENGTH, MAX_VIDEO_LENGTH = 130, 26
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANCHOR_COLUMNS = {"best_anchor": 9, "all_anchors": 9, "chance": 5}


@dataclass
class DemoArguments:
    """What the demo writes and how long it trains."""

    output_dir: Path = field(default=Path("demo_output"), metadata={"help": "Folder for corpus and model."})
    num_train_epochs: int = field(default=16, metadata={"help": "Passes over the training clips."})
    train_clips: int = field(default=CLIPS_PER_SPLIT["train"], metadata={"help": "Clips to train on."})
    test_clips: int = field(
        default=CLIPS_PER_SPLIT["test"], metadata={"help": "Clips to score; as many are set aside for dev."}
    )
    hidden_size: int = field(default=64, metadata={"help": "Width of the text encoder and of the fusion."})
    seed: int = field(default=0, metadata={"help": "Seed of the corpus and of the training."})


def prepare_corpus(arguments: DemoArguments) -> tuple[Path, list[CorpusClip]]:
    """Write the corpus unless an earlier run has; its folder, and the test clips with what is known about them."""
    counts = {"train": arguments.train_clips, "dev": arguments.test_clips, "test": arguments.test_clips}
    folder = arguments.output_dir / f"clips-{arguments.seed}-{arguments.train_clips}-{arguments.test_clips}"
    if not folder.exists():
        write_clip_corpus(folder, seed=arguments.seed, clips_per_split=counts)
    return folder, [clip for split, clip in corpus_clips(arguments.seed, counts) if split == "test"]


def load_features(folder: Path, cache: Path) -> datasets.DatasetDict:
    """The corpus with the features of its clips, as `--audio_encoder log-mel --video_encoder hog` of run_mir.py makes them."""
    dataset = load_mintrec(folder, cache_dir=cache, audio_features=NO_FEATURES, video_features=NO_FEATURES)
    return add_clip_features(
        dataset, LOG_MEL, HOG, folder, max_audio_length=MAX_AUDIO_LENGTH, max_video_length=MAX_VIDEO_LENGTH
    )


def build_tokenizer(texts: list[str]) -> BertTokenizer:
    """A WordPiece tokenizer that has every word of `texts` whole, and letters for the words that it has not seen."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    vocabulary = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words])
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})


def build_model(arguments: DemoArguments, labels: list[str], tokenizer: BertTokenizer) -> AMESSForIntentClassification:
    """A-MESS with new weights everywhere: two small text layers, and the fusion as wide as they are."""
    width = arguments.hidden_size
    text_config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    sizes = {
        "audio_config": {
            "feature_size": encoder_class("audio", LOG_MEL).feature_size,
            "max_length": MAX_AUDIO_LENGTH,
            # Over the frames of a clip, a raised tone would change the level of all the others too.
            "norm": "frame",
            "max_shift": 0,
        },
        "video_config": {"feature_size": encoder_class("video", HOG).feature_size, "max_length": MAX_VIDEO_LENGTH},
    }
    config = AMESSConfig(
        text_config=text_config,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_anchors=4,
        id2label=dict(enumerate(labels)),
        label_descriptions=demo_label_descriptions(),
        **merge_fields(front_end_fields(audio=LOG_MEL, video=HOG), sizes),
    )
    return AMESSForIntentClassification(config)


class TrainingBar(ProgressCallback):
    """The Trainer's progress bar, without its dictionaries of numbers."""

    def on_log(self, *_, **__):
        pass


def train(arguments: DemoArguments, model, processor, collator, train_split) -> dict:
    """Train with the package's Trainer; its arguments. The text encoder starts from nothing and learns as fast as the rest."""
    training_arguments = AMESSTrainingArguments(
        output_dir=str(arguments.output_dir / "training"),
        num_train_epochs=arguments.num_train_epochs,
        learning_rate=1e-3,
        freeze_word_embeddings=False,
        seed=arguments.seed,
        **dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no"),
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=not logging.is_progress_bar_enabled(),
    )
    trainer = AMESSTrainer(model, training_arguments, collator, train_split, processing_class=processor)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not training_arguments.disable_tqdm:
        trainer.add_callback(TrainingBar)
    trainer.train()
    return training_arguments.to_dict()


def format_table(rows: list[dict], clips: list[CorpusClip]) -> str:
    """The modality table with the best attainable accuracy, in per cent."""
    lines = ["| the model may use       | accuracy | at best |", "| ----------------------- | -------: | ------: |"]
    for row in rows:
        best = best_attainable_accuracy(clips, tuple(row["modalities"]))
        label = "all" if len(row["modalities"]) == 3 else f"{', '.join(row['modalities'])} only"
        lines.append(f"| {label:23} | {100 * row['accuracy']:6.1f} % | {100 * best:5.1f} % |")
    return "\n".join(lines)


def shown_in(scene) -> dict[str, tuple[str | None, tuple[float, float]]]:
    """Modality → what it shows, and in which seconds."""
    return {"audio": (scene.tone, scene.tone_span), "video": (scene.face, scene.face_span)}


def burst_spans(clips: list[CorpusClip]) -> dict[str, dict[str, tuple[int, int, int]]]:
    """The frames of tone and face of the clips that have one, as `compute_anchor_metrics` takes them."""
    rates = {"audio": load_encoder("audio", LOG_MEL).frame_rate, "video": load_encoder("video", HOG).frame_rate}
    spans = {"audio": {}, "video": {}}
    for clip in clips:
        for modality, (shown, (begin, end)) in shown_in(clip.scene).items():
            if shown is not None:
                frames = int(begin * rates[modality]), math.ceil(end * rates[modality])
                spans[modality][clip.id] = *frames, math.ceil(clip.scene.seconds * rates[modality])
    return spans


def format_anchors(metrics: dict[str, dict[str, float]]) -> str:
    """How often anchors lie in the burst of tone or face, in per cent."""
    lines = ["| anchors in the burst | clips | best anchor | all anchors |  chance |"]
    lines.append("| -------------------- | ----: | ----------: | ----------: | ------: |")
    for modality, values in metrics.items():
        shares = (f"{100 * values[key]:{width}.1f} %" for key, width in ANCHOR_COLUMNS.items())
        lines.append(f"| {modality:20} | {values['clips']:5} | {' | '.join(shares)} |")
    return "\n".join(lines)


def kept_anchors(anchors: list[dict]) -> list[dict]:
    """The anchors that count: those whose gate is at least half of the best one's."""
    best = max((anchor["score"] for anchor in anchors), default=0.0)
    return [anchor for anchor in anchors if 0 < best <= 2 * anchor["score"]]


def describe_prediction(clip: CorpusClip, answer: dict) -> str:
    """A few lines about one clip: what was said, the best intents, and the anchors with the times of tone and face."""
    first, second = (f"{best['label']} {best['score']:.0%}" for best in answer["predictions"][:2])
    anchors = sorted(kept_anchors(answer["anchors"]["text"]), key=lambda anchor: anchor["start"])
    words = [anchor["word"].strip(",.?!") for anchor in anchors]
    lines = [
        f'"{clip.text}" ({clip.path})',
        f"    intent   {first}, then {second}; labeled {clip.label}",
        f"    text     {', '.join(words) or 'none'}",
    ]
    for modality, (shown, span) in shown_in(clip.scene).items():
        spans = merged_spans(kept_anchors(answer["anchors"][modality]))
        times = ", ".join(f"{begin:.2f}-{end:.2f}" for begin, end in spans) or "none"
        burst = "nothing happens" if shown is None else f"{shown}: {span[0]:.2f}-{span[1]:.2f} s"
        lines.append(f"    {modality:8} {times} s ({burst})")
    return "\n".join(lines)


def choose_examples(clips: list[CorpusClip], count: int) -> list[CorpusClip]:
    """The first clips whose words leave the intent open and whose tone and face are clear, no two of the same intent."""
    chosen = {}
    for clip in clips:
        if not clip.plain and min(clip.scene.tone_strength, clip.scene.face_strength) >= CLEAR[0]:
            chosen.setdefault(clip.label, clip)
    return list(chosen.values())[:count]


def write_reports(model, dataset, collator, folder: Path, outputs: dict, detectors: list) -> dict[str, dict]:
    """The evaluation reports on dev and test; split → metrics. Empty without the extra that draws them."""
    if find_spec("matplotlib") is None:
        return {}
    return {
        name: report(model, dataset[split], collator, folder / name, name, detectors, outputs[split])
        for name, split in (("dev", "validation"), ("test", "test"))
    }


def save(folder: Path, model, processor, detector, reports: dict[str, dict], training_arguments: dict) -> None:
    """Save what the pipeline, the page and `predict_clip.py` need, with a card that has this run's figures."""
    save_for_hub(folder, model, processor, detector)
    results = {
        f"{prefix}_{name}": value
        for prefix, split in (("eval", "dev"), ("test", "test"))
        for name, value in reports.get(split, {"classification": {}})["classification"].items()
        if name != "per_class"
    }
    write_json(folder / "all_results.json", results)
    if reports:
        about = {"detector": detector, "report": reports["test"], "training_arguments": training_arguments}
        about |= {"license": "apache-2.0", "language": "en"}
        create_model_card(model, results, "simulated clips of the demo", **about).save(folder / "README.md")


def run(arguments: DemoArguments) -> dict:
    """All of the demo; returns the rows of both tables and the accuracy of the reloaded model on the clips' files."""
    start = time.perf_counter()
    print("1. The corpus: simulated clips in the layout of MIntRec, in which no modality is enough alone.")
    print("   Drawing, encoding and training take a minute each on two idle cores; a second start keeps the clips.")
    folder, clips = prepare_corpus(arguments)
    dataset = load_features(folder, arguments.output_dir / "cache")
    labels = dataset["train"].features["label"].names
    print(f"   {folder}: {', '.join(f'{len(rows)} {split}' for split, rows in dataset.items())} clips.")

    print("2. Training from scratch: no download, no pretrained weights.")
    set_seed(arguments.seed)
    descriptions = [sentence for sentences in demo_label_descriptions().values() for sentence in sentences]
    tokenizer = build_tokenizer([*dataset["train"]["text"], *descriptions])
    model = build_model(arguments, labels, tokenizer)
    processor = AMESSProcessor.for_model(model.config, tokenizer)
    collator = AMESSDataCollator(processor)
    training_arguments = train(arguments, model, processor, collator, dataset["train"])
    hide_progress_bars()
    calibrate(model, predict_clips(model, dataset["validation"], collator))

    print(f"3. What each modality adds, on {len(clips)} test clips of speakers unseen (the others are masked):\n")
    outputs = {name: predict_clips(model, rows, collator) for name, rows in dataset.items()}
    table = modality_table(model, dataset["test"], collator, complete=outputs["test"])
    print(format_table(table, clips))
    anchors = compute_anchor_metrics(outputs["test"], burst_spans(clips))
    print(f"\n{format_anchors(anchors)}")

    saved, reported = arguments.output_dir / "model", arguments.output_dir / "report"
    masked = [masked for _, masked in predict_masked(model, dataset["validation"], collator)]
    detectors = fit_detectors(model, outputs["train"], outputs["validation"], methods=("mahalanobis",), masked=masked)
    reports = write_reports(model, dataset, collator, reported, outputs, detectors)
    save(saved, model, processor, detectors[0], reports, training_arguments)
    print(f"\n4. Saved in {saved}, and loaded back as the pipeline. Three clips:\n")
    recognize = pipeline("intent-recognition", model=str(saved))
    asked = [{"clip": str(folder / clip.path), "text": clip.text} for clip in clips]
    answers = recognize(asked, return_anchors=True, batch_size=16)
    shown = choose_examples(clips, 3)
    for clip, answer in zip(clips, answers, strict=True):
        if clip in shown:
            print(describe_prediction(clip, answer))
    where = f"with plots: {reported / 'test' / 'report.md'}" if reports else 'needs pip install "amess_hf[report]"'
    print(f"\n5. The report {where}")
    python, example = os.path.relpath(sys.executable), f'{asked[0]["clip"]} --text "{asked[0]["text"]}"'
    print(f"   One clip: {python} examples/predict_clip.py {example} --model {saved}")
    print(f"   The page: {python} examples/app/app.py --model {saved}")
    print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")
    intents = [[one["label"] for one in answer["predictions"] if one["label"] != "UNK"] for answer in answers]
    right = [names[0] == clip.label for names, clip in zip(intents, clips, strict=True)]
    return {"table": table, "anchors": anchors, "reloaded_accuracy": sum(right) / len(right)}


def main(arguments: list[str] | None = None) -> dict:
    parser = HfArgumentParser((DemoArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    logging.set_verbosity_error()
    # The tensors are too small to share: a second thread would only wait, and on a busy machine for long.
    torch.set_num_threads(1)
    with progress_bars(hidden=progress.disable_tqdm):
        return run(arguments)


if __name__ == "__main__":
    main()
