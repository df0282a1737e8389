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

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amess_hf.configuration_amess import MODALITIES
from amess_hf.data.feature_files import write_features
from amess_hf.descriptions_amess import load_label_descriptions
from amess_hf.processing_amess import folder_written_aside


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

FILLERS = {
    "name": "anna ben carla dora emil frank greta hugo ida jonas kim lena max nora oscar paula quinn rosa sam tina",
    "thing": (
        "lamp cake ladder radio carpet bicycle sofa printer kettle jacket mirror blanket piano basket drill puzzle "
        "camera helmet guitar wagon"
    ),
    "place": "kitchen garage office library bakery garden hallway museum station attic bank market",
    "person": (
        "my brother|your sister|the new guy|our neighbour|the boss|my cousin|the plumber|your uncle|the mayor|"
        "grandma|the twins|that nurse"
    ),
    "time": "today|tonight|this morning|after lunch|before work|after work|at noon|on friday|this weekend|at five",
}
FILLERS = {slot: words.split("|") if "|" in words else words.split() for slot, words in FILLERS.items()}

GROUP_TEMPLATES = {
    "deed": (
        "well, look what {person} did with the {thing}",
        "so this is the {thing} you made {time}",
        "you and your {thing} again, {name}",
        "wow, {name}, you really did that {time}",
        "i can't believe {person} brought the {thing} to the {place}",
        "there it is, the famous {thing} of {name}",
        "only you could do that to a {thing}, {name}",
        "that is some {thing} you have there, {name}",
        "{person} spent all day on that {thing}, and look at it",
        "i have never seen anything like that {thing} at the {place}",
    ),
    "idea": (
        "you want to take the {thing} to the {place} {time}",
        "so {person} thinks we need another {thing}",
        "a {thing} for the {place}, that is the idea",
        "we could put the {thing} right in the {place}",
        "you know what they say about a {thing} in the {place}",
        "if {name} wants the {thing}, then that is how it goes",
        "two of those at the {place}, and {person} pays",
        "imagine {name} with a {thing} at the {place}",
        "let {person} do it {time}, with the {thing}",
        "everyone should have a {thing} at the {place}, {name}",
    ),
    "encounter": (
        "oh, {name}, there you are {time}",
        "hey, that is {person}, over by the {thing}",
        "{name}, {person} is at the {place}",
        "look, {name}, here is {person} from the {place}",
        "okay, {name}, this is it, the {place}",
        "right, {name}, {person} is here {time}",
        "{name}, it is you and the {thing}",
        "well, {person} is at the door with a {thing}",
        "hey, everybody, {name} is at the {place}",
        "so, {name}, that was {person}",
    ),
    "feeling": (
        "oh, {name}, you did not have to carry the {thing}",
        "i know about the {thing}, {name}, {person} told me",
        "{name}, you stayed at the {place} because of me",
        "you were all alone at the {place} {time}, {name}",
        "i heard what {person} said about you {time}",
        "all that trouble with the {thing}, only for me",
        "{name}, come here, it was only a {thing}",
        "you gave your {thing} to {person} {time}",
        "nobody else came to the {place} {time}, only you",
        "after all that happened with {person}, {name}, i mean it",
    ),
    "matter": (
        "i have another {thing} in the {place}",
        "the {thing} has to be at the {place} {time}",
        "this {thing} goes to {person} {time}",
        "{person} gave me the key to the {place}",
        "there are forty boxes for {person} at the {place}",
        "i have the {thing} and {name} has the list",
        "somebody has to drive {person} to the {place} {time}",
        "i am on at the {place} {time}, with {name}",
        "my {thing} is the big one over at the {place}",
        "{name}, the {place} opens {time}, and i have the {thing}",
    ),
}
PLAIN_TEMPLATES = {
    "Praise": (
        "what a beautiful {thing}, {name}",
        "you are so talented, {name}, i love the {thing}",
        "{person} is the best singer at the {place}",
        "great job with the {place} {time}",
    ),
    "Taunt": (
        "did you lose a bet, or is that your real {thing}",
        "aw, is little {name} going to cry {time}",
        "nice try, {name}, my {thing} is smarter than you",
        "genius, {name}, did you need a {thing} for that",
    ),
    "Complain": (
        "ugh, this {thing} is broken again, i am sick of it",
        "it is so unfair, i always have to clean the {place}",
        "why does {person} never let me sleep {time}",
        "i hate this {place}, nothing ever works here",
    ),
    "Criticize": (
        "how could you be so careless with the {thing}",
        "{name}, that was rude, you should be ashamed",
        "this mess in the {place} is your fault, {name}",
        "you lied to {person}, and that was wrong",
    ),
    "Agree": (
        "yes, you are right about the {thing}",
        "sure, {name}, sounds good to me",
        "absolutely, i think so too, the {place} is fine",
        "okay, deal, we meet {person} {time}",
    ),
    "Joke": (
        "my {thing} and i are getting married {time}",
        "just kidding, {person} is not a {thing}",
        "if the {place} had legs, it would dance {time}",
        "a {thing} walks into a bar and asks for {person}",
    ),
    "Advise": (
        "you should talk to {person} {time}",
        "if i were you, {name}, i would sell the {thing}",
        "why don't you try the {place} {time}",
        "maybe you had better ask {name} about the {thing}",
    ),
    "Oppose": (
        "no, {name}, that is not true at all",
        "i disagree, the {place} is a terrible choice",
        "no way, we are not buying a {thing}",
        "you are wrong about {person}, i am against it",
    ),
    "Introduce": (
        "my name is {name} and i run the {place}",
        "i would like you to meet {person}",
        "let me present our new {thing}",
        "this is my friend {name}, we met at the {place}",
    ),
    "Greet": (
        "hi, {name}, good morning",
        "hello and welcome to the {place}",
        "hey, {name}, what's up {time}",
        "good evening, {name}, good evening, everybody",
    ),
    "Leave": (
        "bye, {name}, see you {time}",
        "i have to go now, {person} is waiting",
        "come on, {name}, let's get out of this {place}",
        "i'm off to the {place}, goodbye",
    ),
    "Prevent": (
        "stop, {name}, put the {thing} down",
        "don't open the {place}, wait",
        "no, no, don't touch that {thing}",
        "hold it, {name}, you can't go into the {place}",
    ),
    "Comfort": (
        "don't worry, {name}, it will be all right",
        "it's not your fault, the {thing} was old",
        "shh, calm down, {name}, i'm right here",
        "cheer up, you will find another {thing}",
    ),
    "Thank": (
        "thank you so much for the {thing}",
        "thanks, {name}, i really appreciate it",
        "i'm so grateful to {person}",
        "thanks a lot for coming {time}, {name}",
    ),
    "Care": (
        "are you okay, {name}, does it hurt",
        "what's wrong, did {person} upset you",
        "you look pale, {name}, did you eat {time}",
        "how do you feel, {name}, are you cold",
    ),
    "Apologise": (
        "i'm so sorry about the {thing}",
        "sorry, {name}, that was my mistake",
        "please forgive me, i forgot {person} {time}",
        "i apologise, i never meant to break your {thing}",
    ),
    "Inform": (
        "{person} called and left a message for {name}",
        "the news says the {place} is closed {time}",
        "just so you know, {name} moved to the {place}",
        "they announced that the {thing} costs ten dollars",
    ),
    "Flaunt": (
        "i am the greatest, i won a {thing} {time}",
        "everyone envies my {thing}, i am so rich",
        "nobody at the {place} is as strong as me",
        "guess who got promoted {time}, this guy",
    ),
    "Arrange": (
        "you take the {thing}, {name} takes the {place}",
        "everybody meets in the {place} {time}, bring a {thing}",
        "we split up, {name} starts with the {place}",
        "i pick up {person} {time}, and you set the table",
    ),
    "Ask for help": (
        "can you help me with the {thing}, please",
        "could you do me a favor {time}, {name}",
        "please, {name}, i need a hand in the {place}",
        "excuse me, where can i find a {thing}",
    ),
}


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


def _features(
    value: int, width: int, frames: tuple[int, int], seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
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
        ValueError: if `folder` exists and is not empty, or a count is not positive.
    """
    clips_per_split = clips_per_split or CLIPS_PER_SPLIT
    for split, count in clips_per_split.items():
        if split not in CLIPS_PER_SPLIT or count < 1:
            raise ValueError(f"`clips_per_split` takes counts above 0 for train, dev, test; got {split!r}: {count}")
    with folder_written_aside(folder) as partial:
        clips = {split: [] for split in clips_per_split}
        for split, clip in demo_clips(seed, clips_per_split):
            clips[split].append(clip)
        _write_files(partial, clips)
    return clips


def _write_files(folder: Path, clips: dict[str, list[DemoClip]]) -> None:
    every = [clip for of_split in clips.values() for clip in of_split]
    for modality, name in (("audio", "audio_data/wavlm_feats"), ("video", "video_data/swin_feats")):
        write_features(((clip.id, getattr(clip, modality)) for clip in every), folder / name, source=Path("demo.py"))
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
