"""Drawing and voicing the clips of the demo: a face that moves and a voice made of vowels, with different speakers.

Somewhere in the sound the voice may become soft (lower, quieter, breathy) or raised (higher, louder, brighter), and
somewhere in the picture the face may smile and nod or frown and shake its head. Everything else in a clip is
irrelevant: who speaks, when, an emphasis without a change of pitch, a drift of the head, blinks, the room's noise.
Nobody was recorded or filmed for these clips; nothing is downloaded.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clip_writer import write_clip


SAMPLING_RATE = 16_000
# Frequencies (Hz) of the first three formants of five vowels, after Peterson and Barney (1952).
VOWELS = np.array([(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)])
FORMANT_WIDTHS = np.array([90.0, 120.0, 180.0])
CONTROL_RATE = 200
# Pictures are drawn this much larger and shrunk, which smooths the edges.
OVERSAMPLING = 2

SKINS = ("#f6d3b3", "#e8b98f", "#c98f63", "#9a6440", "#6f4630")
HAIRS = ("#2a211d", "#5b4334", "#9c6b3c", "#d8b36a", "#8d8d92", "#a14a2b")
HAIR_STYLES = ("short", "long", "bald", "curly")
SHIRTS = ("#4a6a8f", "#8f4a5c", "#4f7f5f", "#6b5b95", "#3c3f46", "#b0763c")
ROOMS = ("#dbe7f3", "#e9e3f2", "#e3efe4", "#f4e9dc", "#cfd5da", "#b9c8bd")


@dataclass(frozen=True)
class Scene:
    """A clip to draw and voice.

    Attributes:
        speaker: Who speaks; the same number has the same face and voice.
        seconds: Length of the clip.
        tone, tone_span: `"soft"`, `"raised"` or `None` (nothing happens), and the seconds in which.
        face, face_span: `"smiling"`, `"frowning"` or `None`, and the seconds in which.
        tone_strength, face_strength: How clear that is, from 0 (not at all) to 1 (very).
        seed: Seed of everything irrelevant.
    """

    speaker: int
    seconds: float
    tone: str | None
    tone_span: tuple[float, float]
    face: str | None
    face_span: tuple[float, float]
    tone_strength: float = 1.0
    face_strength: float = 1.0
    seed: int = 0


def _swell(time: np.ndarray | float, span: tuple[float, float]) -> np.ndarray:
    """From 0 at both ends of the span to 1 in its middle, quickly at first; 0 outside."""
    place = np.clip((np.asarray(time) - span[0]) / (span[1] - span[0]), 0, 1)
    return np.sin(np.pi * place) ** 0.5


def voice_samples(scene: Scene) -> np.ndarray:
    """The voice, shape `(samples,)`, `float32` in [-1, 1]."""
    who, random = np.random.default_rng([1, scene.speaker]), np.random.default_rng([2, scene.seed])
    base_pitch = math.exp(who.uniform(math.log(95), math.log(220)))
    formant_scale = 0.88 + 0.25 * (base_pitch - 95) / 125 + who.uniform(-0.04, 0.04)
    speaker_tilt = who.uniform(0.8, 1.4)

    control = np.arange(0, scene.seconds, 1 / CONTROL_RATE)
    vowels, syllables = _syllables(control, random)
    told = _swell(control, scene.tone_span) * scene.tone_strength
    raised, soft = told * (scene.tone == "raised"), told * (scene.tone == "soft")
    drift = 1 + random.uniform(-0.06, 0.06) - 0.08 * control / scene.seconds
    pitch = base_pitch * drift * (1 + 0.03 * np.sin(2 * np.pi * random.uniform(1, 3) * control))
    pitch *= 1 + 0.55 * raised - 0.22 * soft
    # An irrelevant emphasis: louder or quieter, in the same pitch.
    begin = random.uniform(0, scene.seconds - 0.5)
    emphasis = 1 + random.uniform(-0.5, 0.8) * _swell(control, (begin, begin + random.uniform(0.3, 0.5)))
    loudness = syllables * emphasis * (1 + 0.9 * raised - 0.5 * soft)
    tilt = speaker_tilt - 0.45 * raised + 0.6 * soft

    samples = int(scene.seconds * SAMPLING_RATE)
    time = np.arange(samples) / SAMPLING_RATE
    phase = 2 * np.pi * np.cumsum(np.interp(time, control, pitch)) / SAMPLING_RATE
    formants = VOWELS[vowels] * formant_scale
    voice = np.zeros(samples)
    for harmonic in range(1, int(3800 / pitch.min()) + 1):
        distance = (harmonic * pitch[:, None] - formants) / FORMANT_WIDTHS
        amplitude = harmonic**-tilt * ((1 / (1 + distance**2)).sum(1) + 0.02) * (harmonic * pitch < 7600)
        voice += np.interp(time, control, amplitude * loudness) * np.sin(harmonic * phase)
    breath = random.normal(0, 1, samples) * np.interp(time, control, syllables * (0.02 + 0.06 * soft))
    room = random.normal(0, 10 ** random.uniform(-3.0, -2.2), samples)
    level = random.uniform(0.18, 0.4) / max(np.abs(voice).max() / (1 + 0.9 * raised.max()), 1e-6)
    return np.clip(level * voice + breath + room, -1, 1).astype(np.float32)


def _syllables(control: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The vowel and the loudness at each control point: syllables of changing length with short gaps between them."""
    vowels, loudness, begin = np.zeros(len(control), dtype=int), np.zeros(len(control)), 0.08
    while begin < control[-1] - 0.1:
        end = begin + random.uniform(0.12, 0.22)
        inside = (control >= begin) & (control < end)
        vowels[inside] = random.integers(len(VOWELS))
        loudness[inside] = random.uniform(0.7, 1.0) * np.sin(np.pi * (control[inside] - begin) / (end - begin)) ** 0.6
        begin = end + random.uniform(0.01, 0.06)
    return vowels, loudness


class Actor:
    """Draws the face of a scene's speaker at any time of the scene.

    Args:
        scene ([`Scene`]): The scene.
        sound (`np.ndarray`): Its voice, with which the mouth opens.
        size (`tuple[int, int]`): Width and height of a picture.
    """

    def __init__(self, scene: Scene, sound: np.ndarray, size: tuple[int, int]):
        self.scene, self.size = scene, size
        self.loudness = np.abs(sound)
        who, random = np.random.default_rng([3, scene.speaker]), np.random.default_rng([4, scene.seed])
        self.skin, self.hair, self.hair_style, self.shirt = (
            choices[who.integers(len(choices))] for choices in (SKINS, HAIRS, HAIR_STYLES, SHIRTS)
        )
        self.width, self.eyes, self.brow = who.uniform(0.40, 0.52), who.uniform(0.16, 0.22), who.uniform(0.02, 0.05)
        self.glasses, self.mouth = who.random() < 0.3, who.uniform(0.15, 0.21)
        self.room = ROOMS[random.integers(len(ROOMS))]
        self.distance, self.place = random.uniform(1.0, 1.3), random.uniform(-0.05, 0.05, 2)
        self.drift = random.uniform(0.2, 0.5, 2), random.uniform(0, 2 * math.pi, 2)
        # An irrelevant tilt of the head, and the moments at which the eyes close.
        self.tilt, self.tilt_at = random.uniform(-0.2, 0.2), random.uniform(0, scene.seconds - 0.6)
        self.blinks = random.uniform(0, scene.seconds, 2)

    def pose(self, time: float) -> dict[str, float]:
        """How far the head is to the right and down (shares of the height), its tilt, and smile and brows from -1 to 1."""
        scene, (speed, phase) = self.scene, self.drift
        told = float(_swell(time, scene.face_span)) * scene.face_strength
        swing = math.sin(2 * math.pi * 2.2 * (time - scene.face_span[0])) * told
        right, down = 0.02 * np.sin(2 * math.pi * speed * time + phase) + self.place
        shown = {"smiling": (told, 0.06 * swing, 0.0), "frowning": (-told, 0.0, 0.09 * swing)}
        smile, nod, shake = shown.get(scene.face, (0.0, 0.0, 0.0))
        tilt = self.tilt * float(_swell(time, (self.tilt_at, self.tilt_at + 0.6)))
        return {"right": right + shake, "down": down + nod, "tilt": tilt, "smile": smile}

    def draw(self, time: float) -> np.ndarray:
        """One picture, shape `(height, width, 3)`, `uint8`."""
        from PIL import Image

        return np.asarray(self.draw_large(time).resize(self.size, Image.LANCZOS))

    def backdrop(self, size: tuple[int, int]):
        """The room behind the speaker, a `PIL.Image.Image` of this width and height."""
        from PIL import Image

        return Image.new("RGB", size, self.room)

    def draw_large(self, time: float):
        """The picture before it is shrunk, a `PIL.Image.Image`."""
        from PIL import ImageDraw

        width, height = (OVERSAMPLING * side for side in self.size)
        picture = self.backdrop((width, height))
        pose = self.pose(time)
        middle = width / 2 + pose["right"] * height, height * 0.47 + pose["down"] * height
        head = _Head(ImageDraw.Draw(picture), middle, height / 2 * self.distance, pose["tilt"])
        self._draw_hair(head, (width, height))
        self._draw_eyes(head, pose["smile"], blinks=min(abs(time - moment) for moment in self.blinks) < 0.06)
        head.stroke([(0, 0.02), (0.03, 0.15), (-0.01, 0.16)], _shade(self.skin, 0.75), 0.03)
        self._draw_mouth(head, time, pose["smile"])
        return picture

    def _draw_hair(self, head: "_Head", size: tuple[int, int]) -> None:
        """Hair, neck, shirt, ears and the face without features, from back to front."""
        wide, (width, height) = self.width, size
        if self.hair_style == "long":
            head.ellipse(0, 0.10, wide + 0.13, 0.72, self.hair)
        head.ellipse(0, 0.62, 0.16, 0.26, _shade(self.skin, 0.85))
        shoulders = 0.75 * head.unit
        head.pen.ellipse(
            [width * 0.5 - shoulders, height * 0.80, width * 0.5 + shoulders, height * 1.6], fill=self.shirt
        )
        if self.hair_style == "curly":
            for angle in np.linspace(math.pi, 2 * math.pi, 9):
                head.ellipse(wide * 1.02 * math.cos(angle), -0.06 + 0.5 * math.sin(angle), 0.15, 0.15, self.hair)
        elif self.hair_style != "bald":
            head.ellipse(0, -0.12, wide + 0.05, 0.53, self.hair)
        for side in (-1, 1):
            head.ellipse(side * wide, 0.04, 0.06, 0.10, _shade(self.skin, 0.9))
        head.ellipse(0, 0.05, wide, 0.55, self.skin)

    def _draw_eyes(self, head: "_Head", smile: float, blinks: bool) -> None:
        lift = 0.03 * max(smile, 0.0)
        inner, outer = 0.07 * max(-smile, 0.0) - lift, -0.03 * max(-smile, 0.0) - lift
        for side in (-1, 1):
            x = side * self.eyes
            if blinks:
                head.stroke([(x - 0.07, -0.05), (x + 0.07, -0.05)], _shade(self.skin, 0.5), 0.025)
            else:
                head.ellipse(x, -0.05, 0.075, 0.065, "white")
                head.ellipse(x, -0.045, 0.04, 0.048, "#2d2a32")
            brow = [(x - side * 0.09, -0.18 + inner), (x + side * 0.09, -0.18 + outer)]
            head.stroke(brow, _shade(self.hair, 0.8), 0.025 + self.brow)
            if self.glasses:
                frame = {"outline": "#333333", "width": max(1, round(0.018 * head.unit))}
                head.ellipse(x, -0.05, 0.13, 0.12, None, **frame)

    def _draw_mouth(self, head: "_Head", time: float, smile: float) -> None:
        first = int(time * SAMPLING_RATE)
        opening = min(1.0, 5 * float(self.loudness[first : first + SAMPLING_RATE // 15].mean() or 0.0))
        half = self.mouth * (1 + 0.25 * abs(smile))
        across = np.linspace(-1, 1, 9)
        bend = 0.09 * smile * (1 - across**2) + 0.33 - 0.03 * smile
        lips = (0.02 + 0.07 * opening) * (1 - 0.8 * across**2) + 0.008
        upper = [head.point(half * x, y - lip) for x, y, lip in zip(across, bend, lips, strict=True)]
        lower = [head.point(half * x, y + lip) for x, y, lip in zip(across, bend, lips, strict=True)]
        head.pen.polygon([*upper, *reversed(lower)], fill="#7c2f33")

    def frames(self, frame_rate: float) -> Iterator[np.ndarray]:
        """The pictures of the scene in order."""
        for number in range(round(self.scene.seconds * frame_rate)):
            yield self.draw(number / frame_rate)


class _Head:
    """Draws in the head's own coordinates, which move and turn with it."""

    def __init__(self, pen, middle: tuple[float, float], unit: float, tilt: float):
        self.pen, self.middle, self.unit = pen, middle, unit
        self.cos, self.sin = math.cos(tilt), math.sin(tilt)

    def point(self, x: float, y: float) -> tuple[float, float]:
        turned = x * self.cos - y * self.sin, x * self.sin + y * self.cos
        return self.middle[0] + self.unit * turned[0], self.middle[1] + self.unit * turned[1]

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, color: str | None, **edge) -> None:
        (at_x, at_y), radius_x, radius_y = self.point(x, y), self.unit * radius_x, self.unit * radius_y
        self.pen.ellipse([at_x - radius_x, at_y - radius_y, at_x + radius_x, at_y + radius_y], fill=color, **edge)

    def stroke(self, points: list[tuple[float, float]], color: str, thick: float) -> None:
        width = max(1, round(self.unit * thick))
        self.pen.line([self.point(*p) for p in points], fill=color, width=width, joint="curve")


def _shade(color: str, factor: float) -> str:
    return "#" + "".join(f"{min(255, int(factor * int(color[place : place + 2], 16))):02x}" for place in (1, 3, 5))


def write_scene(
    path: str | Path, scene: Scene, size: tuple[int, int] = (160, 120), frame_rate: float = 10, **options: str
) -> str:
    """Draw, voice and encode the scene as an mp4 that browsers play; returns its path."""
    sound = voice_samples(scene)
    frames = Actor(scene, sound, size).frames(frame_rate)
    write_clip(path, frames, sound, frame_rate, SAMPLING_RATE, options={"movflags": "faststart", **options})
    return str(path)
