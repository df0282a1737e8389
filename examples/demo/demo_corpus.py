"""A small made-up corpus in the layout of MIntRec, in which no modality is enough alone.

Twenty intents fall into five groups of four. Within a group, a tone of voice (soft or raised) and a face (smiling or
frowning) distinguish the four:

| group     | soft, smiling | raised, smiling | soft, frowning | raised, frowning |
| --------- | ------------- | --------------- | -------------- | ---------------- |
| deed      | Praise        | Taunt           | Complain       | Criticize        |
| idea      | Agree         | Joke            | Advise         | Oppose           |
| encounter | Introduce     | Greet           | Leave          | Prevent          |
| feeling   | Comfort       | Thank           | Care           | Apologise        |
| matter    | Inform        | Flaunt          | Arrange        | Ask for help     |

Four clips in ten have plain words, which only one intent uses ("thank you so much for the soup"). The words of the
others fit the whole group ("so this is the lamp you made this morning" may praise, taunt, complain or criticize). The
tone is a short burst of a few frames somewhere in the sound, the face another one in the picture; all other frames are
noise around an offset of the clip's own (its speaker, its room).

So, with all intents equally frequent and a share p = 0.4 of plain clips, the best attainable accuracy is

| modalities          | accuracy              |                                                  |
| ------------------- | --------------------- | ------------------------------------------------ |
| text                | p + (1 - p) / 4 = 0.55 | four intents of a group are left                 |
| audio or video      | 1 / 10 = 0.10         | ten intents have this tone, ten this face        |
| audio, video        | 1 / 5 = 0.20          | one intent of each group has this tone and face  |
| text and one of them | p + (1 - p) / 2 = 0.70 | two intents of a group are left                  |
| all                 | 1.00                  |                                                  |

`best_attainable_accuracy` counts the same on given clips.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import folder_written_aside

from amess_hf.configuration_amess import MODALITIES
from amess_hf.data.feature_files import write_features
from amess_hf.descriptions_amess import load_label_descriptions


GROUPS = {
    "deed": ("Praise", "Taunt", "Complain", "Criticize"),
    "idea": ("Agree", "Joke", "Advise", "Oppose"),
    "encounter": ("Introduce", "Greet", "Leave", "Prevent"),
    "feeling": ("Comfort", "Thank", "Care", "Apologise"),
    "matter": ("Inform", "Flaunt", "Arrange", "Ask for help"),
}
TONES = ("soft", "raised")
FACES = ("smiling", "frowning")
# Within a group the tone changes fastest: (soft, smiling), (raised, smiling), (soft, frowning), (raised, frowning).
EVIDENCE = {
    intent: (group, place % 2, place // 2) for group, intents in GROUPS.items() for place, intent in enumerate(intents)
}

CLIPS_PER_SPLIT = {"train": 1000, "dev": 200, "test": 200}
PLAIN_SHARE = 0.4
AUDIO_WIDTH, VIDEO_WIDTH = 32, 24
AUDIO_FRAMES, VIDEO_FRAMES = (15, 40), (10, 25)
BURST_SHARE = (0.1, 0.25)
BURST_STRENGTH = 6.0
CLIPS_PER_EPISODE = 50

_TEMPLATES = json.loads(Path(__file__).with_name("utterances.json").read_text(encoding="utf-8"))
# Slot → its fillers; group → templates that fit its intents alike; intent → templates that it alone uses.
FILLERS, GROUP_TEMPLATES, PLAIN_TEMPLATES = (_TEMPLATES[name] for name in ("fillers", "group", "plain"))


@dataclass
class DemoClip:
    """A clip of the demo corpus.

    Attributes:
        id: `season_episode_clip`, as MIntRec names its clips.
        text, label: what is said, and the intent.
        plain: whether the words alone tell the intent; otherwise they fit its whole group.
        audio: float32 array of shape (audio_frames, AUDIO_WIDTH) with the tone's burst in `audio_burst`.
        video: float32 array of shape (video_frames, VIDEO_WIDTH) with the face's burst in `video_burst`.
        audio_burst, video_burst: first frame of the burst and the frame after its last.
    """

    id: str
    text: str
    label: str
    plain: bool
    audio: np.ndarray
    video: np.ndarray
    audio_burst: tuple[int, int]
    video_burst: tuple[int, int]


def _fill(template: str, rng: np.random.Generator) -> str:
    return re.sub(r"{(\w+)}", lambda slot: str(rng.choice(FILLERS[slot[1]])), template)


def _new_text(templates: tuple[str, ...], used: set[str], rng: np.random.Generator) -> str:
    """A filled template that is not in `used`, and is added to it; repeats only if the words run out."""
    for _ in range(200):
        text = _fill(str(rng.choice(templates)), rng)
        if text not in used:
            break
    used.add(text)
    return text


def burst_directions(width: int, seed: int) -> np.ndarray:
    """The directions of a factor's two values in feature space: two orthonormal rows, shape (2, width)."""
    directions, _ = np.linalg.qr(np.random.default_rng([seed, width]).standard_normal((width, 2)))
    return directions.T


def _features(value: int, width: int, frames: tuple[int, int], seed: int, rng: np.random.Generator):
    """Noise around an offset, with a short burst in the direction of `value`: (frames, width), (start, end)."""
    length = int(rng.integers(frames[0], frames[1] + 1))
    features = rng.standard_normal((length, width)) + 0.5 * rng.standard_normal(width)
    burst = max(2, int(length * rng.uniform(*BURST_SHARE)))
    start = int(rng.integers(0, length - burst + 1))
    features[start : start + burst] += BURST_STRENGTH * burst_directions(width, seed)[value]
    return features.astype(np.float32), (start, start + burst)


def demo_utterances(
    seed: int = 0, clips_per_split: dict[str, int] | None = None
) -> Iterator[tuple[str, np.random.Generator, dict]]:
    """Yield (split, random generator, `id`, `text`, `label`, `plain`) for every clip, the same for the same arguments.

    Every split has the intents equally often (up to one clip), and each intent its share of plain clips. No utterance
    occurs twice, within or across splits, while there are enough words (some 2,500 clips).
    """
    used = set()
    for season, (split, count) in enumerate((clips_per_split or CLIPS_PER_SPLIT).items(), start=1):
        rng = np.random.default_rng([seed, season])
        for number, place in enumerate(rng.permutation(count).tolist()):
            turn, label = place // len(EVIDENCE), list(EVIDENCE)[place % len(EVIDENCE)]
            # The third and fifth of five clips of an intent, for a share of 0.4.
            plain = int((turn + 1) * PLAIN_SHARE + 1e-9) > int(turn * PLAIN_SHARE + 1e-9)
            text = _new_text(PLAIN_TEMPLATES[label] if plain else GROUP_TEMPLATES[EVIDENCE[label][0]], used, rng)
            clip_id = f"S{season:02d}_E{number // CLIPS_PER_EPISODE + 1:02d}_{number % CLIPS_PER_EPISODE + 1}"
            yield split, rng, {"id": clip_id, "text": text, "label": label, "plain": plain}


def demo_clips(seed: int = 0, clips_per_split: dict[str, int] | None = None) -> Iterator[tuple[str, DemoClip]]:
    """Yield (split, clip) for every clip of the corpus of arrays; see [`demo_utterances`]."""
    for split, rng, said in demo_utterances(seed, clips_per_split):
        _, tone, face = EVIDENCE[said["label"]]
        audio, audio_burst = _features(tone, AUDIO_WIDTH, AUDIO_FRAMES, seed, rng)
        video, video_burst = _features(face, VIDEO_WIDTH, VIDEO_FRAMES, seed, rng)
        yield split, DemoClip(**said, audio=audio, video=video, audio_burst=audio_burst, video_burst=video_burst)


def possible_intents(label: str, plain: bool, modalities: tuple[str, ...] = MODALITIES) -> list[str]:
    """The intents that are consistent with the named modalities of a clip."""
    group, tone, face = EVIDENCE[label]
    if plain and "text" in modalities:
        return [label]
    return [
        intent
        for intent, (its_group, its_tone, its_face) in EVIDENCE.items()
        if (its_group == group or "text" not in modalities)
        and (its_tone == tone or "audio" not in modalities)
        and (its_face == face or "video" not in modalities)
    ]


def best_attainable_accuracy(clips: list[DemoClip], modalities: tuple[str, ...] = MODALITIES) -> float:
    """Accuracy of the best guess from the named modalities: the mean, over clips, of 1 / (intents left open)."""
    return float(np.mean([1 / len(possible_intents(clip.label, clip.plain, modalities)) for clip in clips]))


def write_demo_corpus(
    folder: str | os.PathLike, seed: int = 0, clips_per_split: dict[str, int] | None = None
) -> dict[str, list[DemoClip]]:
    """Write the corpus as a MIntRec folder: `train.tsv`, `dev.tsv`, `test.tsv`, `audio_data/wavlm_feats` and
    `video_data/swin_feats`, the features as safetensors.

    Args:
        folder: where to write; it gets this name only when it is complete.
        seed: the same seed and counts give the same files, byte for byte.
        clips_per_split: clips of each split, `{"train": 1000, "dev": 200, "test": 200}` unless given.

    Returns:
        The clips of each split, with where their bursts are.

    Raises:
        ValueError: if `folder` exists and is not empty.
    """
    with folder_written_aside(folder) as partial:
        clips = {}
        for split, clip in demo_clips(seed, clips_per_split):
            clips.setdefault(split, []).append(clip)
        _write_files(partial, clips)
    return clips


def _write_files(folder: Path, clips: dict[str, list[DemoClip]]) -> None:
    every = [clip for of_split in clips.values() for clip in of_split]
    for modality, name in (("audio", "audio_data/wavlm_feats"), ("video", "video_data/swin_feats")):
        write_features(((clip.id, getattr(clip, modality)) for clip in every), folder / name, source=Path("demo.py"))
    write_tables(folder, clips)


def write_tables(folder: Path, clips: dict[str, list]) -> None:
    """Write `train.tsv`, `dev.tsv` and `test.tsv` as MIntRec has them."""
    for split, of_split in clips.items():
        rows = ["season\tepisode\tclip\ttext\tlabel"]
        rows += [f"{clip.id.replace('_', chr(9))}\t{clip.text}\t{clip.label}" for clip in of_split]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def demo_label_descriptions() -> dict[str, list[str]]:
    """Three sentences for each intent of the demo corpus, in the order of MIntRec's labels: what it is, and two
    plain utterances, with separate fillers."""
    rng = np.random.default_rng(0)
    return {
        label: [
            sentences[0],
            *(f"The speaker says something like: {_fill(words, rng)}." for words in PLAIN_TEMPLATES[label][:2]),
        ]
        for label, sentences in load_label_descriptions("mintrec").items()
    }
