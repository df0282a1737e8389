"""The demo corpus as real clips: mp4 files in the layout of MIntRec, in which no modality is enough alone.

Words and intents are those of `demo_corpus.py`, which explains what distinguishes the intents; here the tone is
audible and the face is visible. The speakers of dev and test are not among those of training. In `WEAK_SHARE` of the
clips the tone or the face is hardly recognizable, so that `best_attainable_accuracy` is an unreachable bound.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import folder_written_aside
from demo_clips import Scene, write_scene
from demo_corpus import EVIDENCE, FACES, TONES, demo_utterances, write_tables
from transformers.utils import logging


CLIPS_PER_SPLIT = {"train": 1000, "dev": 160, "test": 160}
# Speakers of each split: (first, number).
SPEAKERS = {"train": (0, 40), "dev": (40, 10), "test": (50, 10)}
SECONDS = (1.5, 2.2)
TONE_SECONDS, FACE_SECONDS = (0.45, 0.7), (0.6, 0.9)
WEAK_SHARE, WEAK, CLEAR = 0.15, (0.0, 0.4), (0.6, 1.0)


@dataclass(frozen=True)
class CorpusClip:
    """A clip of the corpus.

    Attributes:
        id: `season_episode_clip`, as MIntRec names its clips.
        text, label: What is said, and the intent.
        plain: Whether the words alone tell the intent; otherwise they fit its whole group.
        scene: What is drawn and voiced.
    """

    id: str
    text: str
    label: str
    plain: bool
    scene: Scene

    @property
    def path(self) -> str:
        """Where the clip is in the folder, as in MIntRec."""
        return f"raw_data/{self.id.replace('_', '/')}.mp4"


def corpus_clips(seed: int = 0, clips_per_split: dict[str, int] | None = None) -> Iterator[tuple[str, CorpusClip]]:
    """Yield (split, clip) for every clip of the corpus, the same ones for the same arguments."""
    for split, random, said in demo_utterances(seed, clips_per_split or CLIPS_PER_SPLIT):
        _, tone, face = EVIDENCE[said["label"]]
        first, number = SPEAKERS[split]
        seconds = random.uniform(*SECONDS)
        scene = Scene(
            speaker=first + int(random.integers(number)),
            seconds=seconds,
            tone=TONES[tone],
            tone_span=_span(seconds, TONE_SECONDS, random),
            face=FACES[face],
            face_span=_span(seconds, FACE_SECONDS, random),
            tone_strength=_strength(random),
            face_strength=_strength(random),
            seed=int(random.integers(2**31)),
        )
        yield split, CorpusClip(**said, scene=scene)


def _span(seconds: float, lengths: tuple[float, float], random: np.random.Generator) -> tuple[float, float]:
    length = random.uniform(*lengths)
    begin = random.uniform(0.1, seconds - length - 0.05)
    return begin, begin + length


def _strength(random: np.random.Generator) -> float:
    return random.uniform(*(WEAK if random.random() < WEAK_SHARE else CLEAR))


def write_clip_corpus(
    folder: str | os.PathLike, seed: int = 0, clips_per_split: dict[str, int] | None = None
) -> dict[str, list[CorpusClip]]:
    """Write the corpus as a MIntRec folder: `train.tsv`, `dev.tsv`, `test.tsv` and the clips in `raw_data`.

    Args:
        folder: Where to write; it gets this name only when it is complete.
        seed: The same seed and counts give the same words, faces and voices.
        clips_per_split: Clips of each split, `{"train": 1000, "dev": 160, "test": 160}` unless given.

    Returns:
        The clips of each split, with what is known about them.

    Raises:
        ValueError: If `folder` exists and is not empty.
    """
    with folder_written_aside(folder) as partial:
        clips = {}
        for split, clip in corpus_clips(seed, clips_per_split):
            clips.setdefault(split, []).append(clip)
        _write_files(partial, clips)
    return clips


def _write_files(folder: Path, clips: dict[str, list[CorpusClip]]) -> None:
    every = [clip for of_split in clips.values() for clip in of_split]
    for parent in {Path(folder, clip.path).parent for clip in every}:
        parent.mkdir(parents=True, exist_ok=True)
    # Threads are enough: encoding pictures and sound, most of the work, releases Python's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        drawn = pool.map(lambda clip: write_scene(folder / clip.path, clip.scene), every)
        for _ in logging.tqdm(drawn, total=len(every), desc="Drawing clips", unit="clip"):
            pass
    write_tables(folder, clips)
