"""Short clips that `app.py` draws and voices itself: a face that moves and a hum that stands for the voice.

What is said can be the same in two clips that mean different things, so that only the voice and the face tell them
apart. Nothing is downloaded.
"""

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


sys.path.append(str(Path(__file__).parents[1] / "demo"))

from clip_writer import write_clip


FRAME_RATE, SAMPLING_RATE, SECONDS = 15, 16_000, 2.4
WIDTH, HEIGHT = 320, 240
# Drawn this much larger and shrunk, which smooths the edges.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """
    A clip to draw.

    Attributes:
        text: What is said.
        voice: What the voice does in the telling half second: `"rise"`, `"fall"`, `"laugh"` or `"flat"` (nothing).
        movement: What the head does then: `"nod"`, `"shake"`, `"tilt"` or `"still"` (nothing).
        moment: When that is, from 0 (the clip's start) to 1 (its end).
        seed: Of the background, the pitch and the noise.
    """

    text: str
    voice: str
    movement: str
    moment: float = 0.5
    seed: int = 0


# The first two say the same; the third is about nothing that the small model was trained on.
EXAMPLES = [
    Scene("oh great, you again", voice="rise", movement="nod", moment=0.4, seed=1),
    Scene("oh great, you again", voice="fall", movement="shake", moment=0.65, seed=2),
    Scene("seven trains were late on monday", voice="flat", movement="still", seed=3),
]


def voice_samples(scene: Scene) -> np.ndarray:
    """The voice, shape `(samples,)`, `float32` in [-1, 1]: a low hum out of which the telling half second stands."""
    generator = np.random.default_rng(scene.seed)
    time = np.arange(int(SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    position = (time - scene.moment * SECONDS) / 0.5 + 0.5  # 0 to 1 within the telling half second
    told = (position >= 0) & (position <= 1) & (scene.voice != "flat")
    told_pitch = {"rise": 350 + 250 * position, "fall": 220 - 130 * position}.get(scene.voice, 300.0)
    pitch = np.where(told, told_pitch, 120.0 * generator.uniform(0.95, 1.05))
    bursts = np.abs(np.sin(4 * np.pi * position)) if scene.voice == "laugh" else np.sin(np.pi * position)
    syllables = np.sin(2 * np.pi * 2 * time + generator.uniform(0, 6)) ** 2
    loudness = np.where(told, 0.12 + 0.5 * bursts, 0.06 + 0.04 * syllables)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 6)) / 2
    return np.clip(loudness * tone + generator.normal(0, 0.01, time.shape), -1, 1).astype(np.float32)


def head_position(scene: Scene, time: float) -> tuple[float, float, float, int]:
    """The head at `time` seconds: right and down (shares of the picture's height), tilt (radians), smile (1, 0 or -1)."""
    position = (time - scene.moment * SECONDS) / 0.9 + 0.5
    if not 0 <= position <= 1 or scene.movement == "still":
        return 0.0, 0.0, 0.0, 0
    swing = math.sin(4 * math.pi * position) * math.sin(math.pi * position)
    if scene.movement == "tilt":
        return 0.05 * swing, 0.0, 0.6 * math.sin(math.pi * position), 1
    return (0.2 * swing, 0.0, 0.0, -1) if scene.movement == "shake" else (0.0, 0.15 * swing, 0.0, 1)


def mouth_openings(sound: np.ndarray) -> list[float]:
    """How far the mouth is open in each frame, from 0 to 1, with the voice."""
    step = SAMPLING_RATE // FRAME_RATE
    return [min(1.0, 3 * float(np.abs(sound[first : first + step]).mean())) for first in range(0, len(sound), step)]


def draw_frame(scene: Scene, time: float, mouth: float, smooth: bool = True) -> np.ndarray:
    """One picture, shape `(HEIGHT, WIDTH, 3)`, `uint8`, with the mouth open from 0 to 1."""
    from PIL import Image, ImageDraw

    oversampling = OVERSAMPLING if smooth else 1
    width, height = WIDTH * oversampling, HEIGHT * oversampling
    background = random.Random(scene.seed).choice(["#dbe7f3", "#e9e3f2", "#e3efe4", "#f4e9dc"])
    picture = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(picture)
    right, down, tilt, smile = head_position(scene, time)
    cos, sin, unit = math.cos(tilt), math.sin(tilt), height / 2

    def box(x, y, radius_x, radius_y):
        """Corners around the point (x, y) of the head's own coordinates, which move and turn with it."""
        at_x = width / 2 + right * height + unit * (x * cos - y * sin)
        at_y = height * 0.46 + down * height + unit * (x * sin + y * cos)
        return [at_x - unit * radius_x, at_y - unit * radius_y, at_x + unit * radius_x, at_y + unit * radius_y]

    def ellipse(x, y, radius_x, radius_y, colour):
        pen.ellipse(box(x, y, radius_x, radius_y), fill=colour)

    ellipse(0, 0.62, 0.17, 0.24, "#dcb08a")
    pen.ellipse([width * 0.22, height * 0.83, width * 0.78, height * 1.5], fill="#4a6a8f")
    ellipse(0, -0.10, 0.56, 0.60, "#5b4334")
    ellipse(0, 0.04, 0.50, 0.56, "#f0c9a4")
    for side in (-1, 1):
        ellipse(side * 0.20, -0.06, 0.085, 0.10, "white")
        ellipse(side * 0.20 + 0.3 * right, -0.05 + 0.3 * down, 0.045, 0.055, "#2d2a32")
        ellipse(side * 0.30, 0.17, 0.07, 0.05, "#e9ae91")
    ellipse(0, 0.10, 0.04, 0.06, "#dcae86")
    lips = "#8c3b3b"
    if smile == 0:
        ellipse(0, 0.31, 0.17, 0.035 + 0.11 * mouth, lips)
    else:
        first, middle = (0, 0.26) if smile > 0 else (180, 0.42)
        pen.chord(box(0, middle, 0.22, 0.10 + 0.12 * mouth), first, first + 180, fill=lips)
    return np.asarray(picture.resize((WIDTH, HEIGHT), Image.LANCZOS))


def write_scene(path: str | Path, scene: Scene) -> str:
    """Draws, voices and encodes the scene as an mp4 that browsers play; returns its path."""
    sound = voice_samples(scene)
    frames = (draw_frame(scene, index / FRAME_RATE, mouth) for index, mouth in enumerate(mouth_openings(sound)))
    write_clip(path, frames, sound, FRAME_RATE, SAMPLING_RATE, options={"movflags": "faststart"})
    return str(path)
