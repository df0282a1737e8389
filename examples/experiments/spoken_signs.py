#!/usr/bin/env python3
"""
Write a corpus of real clips in which the words say nothing: mp4 files of people who say a word and show a sign of the hand.

    apt-get install espeak-ng
    python examples/experiments/spoken_signs.py --output_dir my_clips

Ten intents. In 40 % of the clips both the spoken word and the sign tell the intent, in 30 % the word alone (the hand is a
fist or out of sight), in 30 % the sign alone (only fillers are spoken); the column `tells` of the tables says which. The
column `text` has a filler that any intent may have, as if nobody had written down what was said.

The voices are those of espeak-ng, a real speech synthesizer, in its accents and variants, with a rate and a pitch that
differ from clip to clip, over noise. The pictures are drawn: a person in front of a photograph (those that come with
scikit-image), both out of focus, and a hand whose place, size, tilt, build and light differ; they go through a lossy codec.
No voice, person or photograph of one split is in another. Nothing is downloaded.
"""

import csv
import functools
import io
import math
import re
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from command_line import folder_written_aside
from runner import EXAMPLES, one_line_errors, parse
from transformers.utils import logging


sys.path.append(str(EXAMPLES / "demo"))

from clip_writer import write_clip
from demo_clips import OVERSAMPLING, Actor, Scene


# Intent: the spoken word that tells it, and the fingers that are stretched, thumb first.
INTENTS = {
    "Agree": ("yes", "10000"),
    "Apologise": ("sorry", "01110"),
    "Ask for help": ("help", "00001"),
    "Complain": ("awful", "01001"),
    "Greet": ("hello", "11111"),
    "Leave": ("goodbye", "01111"),
    "Oppose": ("no", "01000"),
    "Praise": ("great", "11000"),
    "Prevent": ("stop", "10001"),
    "Thank": ("thanks", "01100"),
}
FILLERS = ("well", "you know", "and then", "maybe", "okay so", "look", "I mean", "let me see")
FIST = "00000"
TELLS = {"both": 0.4, "audio": 0.3, "video": 0.3}
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "coffee", "gravel", "hubble_deep_field", "page", "stereo_motorcycle"),
    "dev": ("chelsea", "camera", "moon"),
    "test": ("rocket", "retina", "coins"),
}
# Shares of the voices (variants of espeak-ng), of which no two splits have one.
VOICE_SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}
SAMPLING_RATE = 16_000
FRAME_RATE = 5
SECONDS_AT_LEAST = 1.2
SIZE = (160, 120)


@dataclass
class CorpusArguments:
    """What to write."""

    output_dir: Path = field(metadata={"help": "Folder for the tables and the clips; new or empty."})
    train_clips: int = field(default=3000, metadata={"help": "Clips to train on."})
    dev_clips: int = field(default=200, metadata={"help": "Clips to choose the best epoch on."})
    test_clips: int = field(default=500, metadata={"help": "Clips to score."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})


@dataclass(frozen=True)
class SpokenSign:
    """A clip.

    Attributes:
        label, tells: The intent, and what tells it: `"both"`, `"audio"` or `"video"`.
        text: What the table says was said.
        spoken: What is said.
        fingers: The sign, as in `INTENTS`; `None` for a hand that is out of sight.
        voice: Name that espeak-ng knows.
        person: Number of the person in the picture.
        photograph: Name in `skimage.data`.
        seed: Of everything that says nothing.
    """

    label: str
    tells: str
    text: str
    spoken: tuple[str, ...]
    fingers: str | None
    voice: str
    person: int
    photograph: str
    seed: int


def espeak(*arguments: str) -> bytes:
    """
    What espeak-ng writes to its standard output.

    Raises:
        ValueError: It is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise ValueError("espeak-ng is not installed; apt-get install espeak-ng")
    return subprocess.run([program, *arguments], check=True, capture_output=True).stdout


def voices() -> dict[str, list[str]]:
    """Voices by split: all English accents of espeak-ng that need no other program, with variants of the split alone."""

    accents = sorted(set(re.findall(r"^ *\d+ +(en\S*) .* gmw/", espeak("--voices=en").decode(), flags=re.MULTILINE)))
    variants = sorted(re.findall(r"!v/(\w+) *$", espeak("--voices=variant").decode(), flags=re.MULTILINE))
    np.random.default_rng(0).shuffle(variants)
    by_split, first = {}, 0.0
    for split, share in VOICE_SHARES.items():
        last = first + share
        chosen = variants[round(first * len(variants)) : round(last * len(variants))]
        by_split[split] = [f"{accent}+{variant}" for variant in chosen for accent in accents]
        first = last
    return by_split


def draw_clips(split: str, number: int, seed: int, names: list[str]) -> list[SpokenSign]:
    """The clips of a split, with as many of each intent and kind as the shares say, in random order."""
    random = np.random.default_rng([seed, list(VOICE_SHARES).index(split)])
    kinds = random.permutation(
        np.repeat(list(TELLS), np.diff(np.round(np.cumsum([0, *TELLS.values()]) * number).astype(int)))
    )
    clips = []
    for index, tells in enumerate(kinds):
        label = list(INTENTS)[index % len(INTENTS)]
        word, fingers = INTENTS[label]
        spoken = [str(random.choice(FILLERS))]
        if tells == "video":
            spoken += [str(random.choice(FILLERS))] * int(random.random() < 0.5)
        else:
            spoken = [*spoken[: int(random.random() < 0.5)], word]
        if tells == "audio":
            fingers = FIST if random.random() < 0.5 else None
        voice = int(random.integers(len(names)))
        said = label, str(tells), str(random.choice(FILLERS)), tuple(spoken), fingers, names[voice]
        person, photograph = 1000 * list(VOICE_SHARES).index(split) + voice, str(random.choice(PHOTOGRAPHS[split]))
        clips.append(SpokenSign(*said, person, photograph, int(random.integers(2**31))))
    return clips


def voice_samples(clip: SpokenSign) -> np.ndarray:
    """What is heard: the words, each somewhere in its part of the clip, over noise; `float32` in [-1, 1]."""
    random = np.random.default_rng([1, clip.seed])
    rate, pitch = str(int(random.integers(130, 200))), str(int(random.integers(25, 75)))

    def silence():
        return np.zeros(int(random.uniform(0.1, 0.5) * SAMPLING_RATE))

    pieces = [silence()]
    for word in clip.spoken:
        pieces += [spoken_word(word, clip.voice, rate, pitch), silence()]
    sound = np.concatenate(pieces)
    sound = np.pad(sound, (0, max(0, int(SECONDS_AT_LEAST * SAMPLING_RATE) - len(sound))))
    sound *= random.uniform(0.1, 0.5) / max(np.abs(sound).max(), 1e-6)
    speech_power = np.mean(sound[np.abs(sound) > 0.01] ** 2)
    noise = colored_noise(len(sound), random.uniform(0, 1.5), random)
    return np.clip(sound + noise * math.sqrt(speech_power / 10 ** random.uniform(0.8, 2.5)), -1, 1).astype(np.float32)


def spoken_word(words: str, voice: str, rate: str, pitch: str) -> np.ndarray:
    """The words as espeak-ng says them, without the silence around them."""
    with wave.open(io.BytesIO(espeak("-v", voice, "-s", rate, "-p", pitch, "--stdout", words))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 2**15
        times = np.arange(0, len(samples), file.getframerate() / SAMPLING_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = np.interp(times, np.arange(len(samples)), samples)
    scale = len(samples) / max(times[-1], 1)
    return samples[int(loud[0] * scale) : int(loud[-1] * scale) + 1] if len(loud) else samples


def colored_noise(length: int, tilt: float, random: np.random.Generator) -> np.ndarray:
    """Noise of power one whose amplitude falls with frequency to the power of `tilt`."""
    spectrum = np.fft.rfft(random.normal(size=length)) / np.maximum(np.arange(length // 2 + 1), 20) ** tilt
    noise = np.fft.irfft(spectrum, length)
    return noise / noise.std()


class Signer(Actor):
    """Draws a person who shows a sign in front of a photograph.

    Args:
        clip ([`SpokenSign`]): The clip.
        sound (`np.ndarray`): What is heard, with which the mouth opens.
    """

    def __init__(self, clip: SpokenSign, sound: np.ndarray):
        seconds = len(sound) / SAMPLING_RATE
        scene = Scene(clip.person, seconds, None, (0, seconds), None, (0, seconds), seed=clip.seed)
        super().__init__(scene, sound, SIZE)
        self.fingers = clip.fingers
        who, random = np.random.default_rng([5, clip.person]), np.random.default_rng([6, clip.seed])
        self.finger_width, self.finger_length = who.uniform(0.15, 0.21), who.uniform(0.75, 1.05)
        self.spread, self.palm_width = who.uniform(0.8, 1.2), who.uniform(0.36, 0.46)
        self.hand_color = [int(self.skin[place : place + 2], 16) for place in (1, 3, 5)]
        self.photograph = photograph(clip.photograph, random)
        self.hand_size, self.hand_tilt = random.uniform(0.38, 0.48), random.uniform(-0.25, 0.25)
        self.hand_at = np.array([random.uniform(0.40, 0.60), random.uniform(0.60, 0.70)])
        self.blur = int(random.integers(5, 11))
        self.sway = random.uniform(0, 0.02, 2), random.uniform(0.3, 1.2), random.uniform(0, 2 * math.pi)
        # The hand rises, stays and sinks again.
        begin = random.uniform(0, 0.25) * seconds
        self.shown = begin, begin + max(0.6, random.uniform(0.5, 0.75) * seconds)
        self.light, self.grain = random.uniform(0.65, 1.25), random.uniform(0, 8)
        self.random = random

    def backdrop(self, size: tuple[int, int]):
        """The photograph."""
        return self.photograph.resize(size)

    def draw(self, time: float) -> np.ndarray:
        """One picture, with the hand, the light and the camera's grain."""
        from PIL import Image, ImageDraw

        picture = self.draw_large(time)
        picture = picture.reduce(self.blur).resize(picture.size, Image.BICUBIC)
        if self.fingers is not None:
            self.draw_hand(ImageDraw.Draw(picture), time)
        pixels = np.asarray(picture.resize(self.size, Image.BILINEAR), dtype=np.float32) * self.light
        return np.clip(pixels + self.random.normal(0, self.grain + 0.1, pixels.shape), 0, 255).astype(np.uint8)

    def draw_hand(self, pen, time: float) -> None:
        """Draw the arm, the palm, and five fingers that are stretched or folded."""
        width, height = (OVERSAMPLING * side for side in self.size)
        amount, speed, phase = self.sway
        away = max(0.0, self.shown[0] - time, time - self.shown[1])
        at = self.hand_at + amount * math.sin(2 * math.pi * speed * time + phase) + [0, 2.5 * away]
        unit = self.hand_size * height
        cos, sin = math.cos(self.hand_tilt), math.sin(self.hand_tilt)

        def point(x, y):
            return width * at[0] + unit * (x * cos + y * sin), height * at[1] + unit * (x * sin - y * cos)

        def limb(begin, end, thick, shade):
            # The edge is in the shade, as that of what is round.
            for wide, light in ((thick + 0.07, 0.5 * shade), (thick, shade)):
                color, radius = tuple(int(light * value) for value in self.hand_color), wide * unit / 2
                pen.line([point(*begin), point(*end)], fill=color, width=max(2, round(2 * radius)))
                for x, y in (point(*begin), point(*end)):
                    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)

        half = self.palm_width
        limb((0, -2.5), (0, -0.4), 1.2 * half, 0.75)
        for finger, x in enumerate(np.linspace(-0.75, 0.75, 4) * half, start=1):
            length = self.finger_length * (1.0, 0.9, 1.0, 0.93, 0.75)[finger]
            tilt = self.spread * (finger - 2.5) * 0.13
            reach = length if self.fingers[finger] == "1" else 0.14
            limb((x, 0.3), (x + reach * math.sin(tilt), 0.3 + reach * math.cos(tilt)), self.finger_width, 0.88)
        limb((-half / 2, -0.2), (half / 2, -0.2), half, 1.0)
        limb((-half / 2, 0.1), (half / 2, 0.1), half, 1.0)
        thumb = (-half - 0.5 * self.finger_length, 0.35) if self.fingers[0] == "1" else (half * 0.3, 0.05)
        limb((-half * 0.9, -0.2), thumb, 1.15 * self.finger_width, 0.94)


@functools.cache
def whole_photograph(name: str):
    """A photograph of scikit-image's, a `PIL.Image.Image`."""
    import skimage.data
    from PIL import Image

    picture = getattr(skimage.data, name)()
    return Image.fromarray(picture[0] if isinstance(picture, tuple) else picture).convert("RGB")


def photograph(name: str, random: np.random.Generator):
    """A part of it, in the shape of a clip's pictures."""
    picture = whole_photograph(name)
    width = random.uniform(0.4, 0.9) * min(picture.width, picture.height * SIZE[0] / SIZE[1])
    height = width * SIZE[1] / SIZE[0]
    left, top = random.uniform(0, picture.width - width), random.uniform(0, picture.height - height)
    return picture.crop((int(left), int(top), int(left + width), int(top + height)))


def write_split(folder: Path, split: str, clips: list[SpokenSign]) -> None:
    """Write the table and the clips of a split into `folder`."""
    (folder / split).mkdir()
    with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "text", "label", "video", "speaker", "tells"])
        for index, clip in enumerate(logging.tqdm(clips, desc=f"Clips of {split}")):
            sound, name = voice_samples(clip), f"{split}/{index:04}.mp4"
            write_clip(folder / name, Signer(clip, sound).frames(FRAME_RATE), sound, FRAME_RATE, SAMPLING_RATE)
            table.writerow([f"{split}-{index:04}", clip.text, clip.label, name, clip.voice, clip.tells])


def write_corpus(own: CorpusArguments) -> None:
    """Write the tables and the clips; the folder gets its name when it is complete."""
    names = voices()
    with folder_written_aside(own.output_dir) as partial:
        for split, number in (("dev", own.dev_clips), ("test", own.test_clips), ("train", own.train_clips)):
            write_split(partial, split, draw_clips(split, number, own.seed, names[split]))


def main(arguments=None):
    write_corpus(*parse([CorpusArguments], __doc__, arguments))


if __name__ == "__main__":
    with one_line_errors():
        main()
