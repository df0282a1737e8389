#!/usr/bin/env python
"""The main job in two minutes, without a download: `make demo`, or

    python examples/demo/run_demo.py --output_dir demo_output

writes the demo corpus (amess_hf/data/demo.py says how it is made), builds a vocabulary from its training split, trains
A-MESS with a small text encoder from scratch, and shows what each modality adds. Then it saves the model, loads it back
through the Auto classes, shows three clips with the anchors that decided (words, and frames of sound and picture), and
writes the evaluation report with its plots.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from demo_corpus import (
    AUDIO_FRAMES,
    AUDIO_WIDTH,
    VIDEO_FRAMES,
    VIDEO_WIDTH,
    DemoClip,
    best_attainable_accuracy,
    demo_clips,
    demo_label_descriptions,
    write_demo_corpus,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    HfArgumentParser,
    set_seed,
)
from transformers.utils import logging

from amess_hf import AMESSConfig, AMESSForIntentClassification
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import report
from amess_hf.evaluation.prediction import modality_table, predict_clips
from amess_hf.hub import save_for_hub
from amess_hf.training import AMESSTrainer, AMESSTrainingArguments


SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MODALITY_NAMES = {"text": "words", "audio": "sound", "video": "picture"}


@dataclass
class DemoArguments:
    """What the demo writes and how long it trains."""

    output_dir: Path = field(default=Path("demo_output"), metadata={"help": "Folder for corpus and model."})
    num_train_epochs: int = field(default=16, metadata={"help": "Passes over the training clips."})
    train_clips: int = field(default=1000, metadata={"help": "Clips to train on."})
    test_clips: int = field(default=200, metadata={"help": "Clips to score; as many are set aside for dev."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the text encoder and of the fusion."})
    seed: int = field(default=0, metadata={"help": "Seed of the corpus and of the training."})


def prepare_corpus(arguments: DemoArguments) -> tuple[Path, list[DemoClip]]:
    """Write the corpus unless an earlier run has; its folder, and the test clips with what is known about them."""
    counts = {"train": arguments.train_clips, "dev": arguments.test_clips, "test": arguments.test_clips}
    folder = arguments.output_dir / f"corpus-{arguments.seed}-{arguments.train_clips}-{arguments.test_clips}"
    if not folder.exists():
        write_demo_corpus(folder, seed=arguments.seed, clips_per_split=counts)
    return folder, [clip for split, clip in demo_clips(arguments.seed, counts) if split == "test"]


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
    config = AMESSConfig(
        text_config=text_config,
        audio_feature_size=AUDIO_WIDTH,
        video_feature_size=VIDEO_WIDTH,
        max_audio_length=AUDIO_FRAMES[1],
        max_video_length=VIDEO_FRAMES[1],
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_anchors=4,
        id2label=dict(enumerate(labels)),
        label_descriptions=demo_label_descriptions(),
    )
    return AMESSForIntentClassification(config)


def train(arguments: DemoArguments, model, tokenizer, collator, train_split) -> None:
    """Train with the package's Trainer. The text encoder starts from nothing, so it learns as fast as the rest."""
    training_arguments = AMESSTrainingArguments(
        output_dir=str(arguments.output_dir / "training"),
        num_train_epochs=arguments.num_train_epochs,
        learning_rate=1e-3,
        freeze_word_embeddings=False,  # the text encoder starts from nothing
        seed=arguments.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
    )
    AMESSTrainer(
        model=model,
        args=training_arguments,
        processing_class=tokenizer,
        data_collator=collator,
        train_dataset=train_split,
    ).train()


def names_of(modalities) -> str:
    return ", ".join(MODALITY_NAMES[modality] for modality in modalities)


def format_table(rows: list[dict], clips: list[DemoClip]) -> str:
    """The modality table with the best attainable accuracy, in per cent."""
    lines = ["| the model may use       | accuracy | at best |", "| ----------------------- | -------: | ------: |"]
    for row in rows:
        best = best_attainable_accuracy(clips, tuple(row["modalities"]))
        label = "all" if len(row["modalities"]) == 3 else f"{names_of(row['modalities'])} only"
        lines.append(f"| {label:23} | {100 * row['accuracy']:6.1f} % | {100 * best:5.1f} % |")
    return "\n".join(lines)


def as_ranges(positions: list[int]) -> str:
    """Positions as ranges with both ends: [7, 3, 4, 5] is "3-5, 7"."""
    ranges = []
    for position in sorted(positions):
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def kept_anchors(positions, scores) -> list[int]:
    """Positions of the anchors that count: those whose gate is at least half of the best one's, in their order."""
    return sorted(int(place) for place, gate in zip(positions, scores, strict=True) if 0 < max(scores) <= 2 * gate)


def describe_prediction(clip: DemoClip, outputs, number: int, id2label: dict[int, str], tokenizer) -> str:
    """A few lines about one clip: what was said, the best intents, and the anchors with the places of the bursts."""
    probabilities, best = torch.from_numpy(outputs.logits[number]).softmax(-1).topk(2)
    answers = [f"{id2label[index]} {p:.0%}" for index, p in zip(best.tolist(), probabilities.tolist(), strict=True)]
    pairs = zip(outputs.anchor_indices[number], outputs.anchor_scores[number], strict=True)
    text, sound, picture = (kept_anchors(positions, scores) for positions, scores in pairs)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(clip.text)["input_ids"])
    words = [tokens[place] for place in text if tokens[place] not in SPECIAL_TOKENS]
    audio_burst, video_burst = (f"{start}-{end - 1}" for start, end in (clip.audio_burst, clip.video_burst))
    return "\n".join(
        [
            f'"{clip.text}"',
            f"    intent   {answers[0]}, then {answers[1]}; labelled {clip.label}",
            f"    words    {', '.join(words) or 'none'}",
            f"    sound    frames {as_ranges(sound)} (burst: {audio_burst})",
            f"    picture  frames {as_ranges(picture)} (burst: {video_burst})",
        ]
    )


def choose_examples(clips: list[DemoClip], count: int) -> list[int]:
    """The first clips whose words leave the intent open, no two of the same intent."""
    chosen = {}
    for number, clip in enumerate(clips):
        if not clip.plain:
            chosen.setdefault(clip.label, number)
    return list(chosen.values())[:count]


def write_report(model, tokenizer, dataset, folder: Path) -> str:
    """The evaluation report on the test clips; says where it is, or what it needs."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return 'No report with plots: pip install "amess_hf[report]"'
    collator = AMESSDataCollator(tokenizer, model.config)
    dev_outputs = predict_clips(model, dataset["validation"], collator)
    report(model, dataset["test"], collator, folder, "test", calibration_outputs=dev_outputs)
    return f"The report, with plots: {folder / 'report.md'}"


def run(arguments: DemoArguments) -> dict:
    """All of the demo; returns the rows of the table and the accuracy of the reloaded model."""
    start = time.perf_counter()
    print("1. The corpus: made-up clips in the layout of MIntRec, in which no modality is enough alone.")
    folder, clips = prepare_corpus(arguments)
    dataset = load_mintrec(folder, name="mintrec", cache_dir=arguments.output_dir / "cache")
    labels = dataset["train"].features["label"].names
    print(f"   {folder}: {', '.join(f'{len(rows)} {split}' for split, rows in dataset.items())} clips.")

    print("2. Training from scratch: no download, no pretrained weights.")
    set_seed(arguments.seed)
    descriptions = [sentence for sentences in demo_label_descriptions().values() for sentence in sentences]
    tokenizer = build_tokenizer([*dataset["train"]["text"], *descriptions])
    model = build_model(arguments, labels, tokenizer)
    collator = AMESSDataCollator(tokenizer, model.config)
    train(arguments, model, tokenizer, collator, dataset["train"])

    print(f"3. What each modality adds, on {len(clips)} test clips (the others are masked):\n")
    table = modality_table(model, dataset["test"], collator)
    print(format_table(table, clips))

    saved = arguments.output_dir / "model"
    save_for_hub(saved, model, tokenizer)
    print(f"\n4. Saved in {saved}, and loaded back with AutoModelForSequenceClassification. Three clips:\n")
    reloaded = AutoModelForSequenceClassification.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    outputs = predict_clips(reloaded, dataset["test"], AMESSDataCollator(tokenizer, reloaded.config))
    for number in choose_examples(clips, 3):
        print(describe_prediction(clips[number], outputs, number, reloaded.config.id2label, tokenizer))
    print(f"\n5. {write_report(reloaded, tokenizer, dataset, arguments.output_dir / 'report')}")
    print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")
    return {"table": table, "reloaded_accuracy": float((outputs.predictions == outputs.labels).mean())}


def main(arguments: list[str] | None = None) -> dict:
    (arguments,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses(arguments)
    logging.set_verbosity_error()
    # The tensors are too small to share: a second thread would only wait, and on a busy machine for long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(arguments)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
