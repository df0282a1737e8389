#!/usr/bin/env python3
"""
Find new intents among clips that match no known one.

    python examples/discover_intents.py --clips path/to/clips --model runs/mintrec2 --output_dir discovered

Clips are the media files of a folder, or the rows of a table (csv, tsv, jsonl, parquet) with `text`, `clip`, `audio` or `video`,
paths relative to it. Writes `clips.csv` (the group of each clip), `groups.md`, `label_descriptions.json` (what
`set_label_descriptions` and `extra_labels` take; edit the names first) and `map.png`. Started again, it continues where it
stopped. `--describe_with MODEL` has a language model name the groups, on this machine or at `--base_url`.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_line import one_line_errors, parse
from generate_label_descriptions import (
    DescriptionArguments,
    GenerationError,
    is_sentence,
    local_model,
    parse_answer,
    remote_model,
)
from safetensors.numpy import load_file, save_file
from transformers import pipeline, set_seed
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from amess_hf.configuration_amess import CLIP_SUFFIXES
from amess_hf.data.annotations import READERS, read_rows
from amess_hf.discovery import EmbeddedClips, discover_intents, embed_clips
from amess_hf.evaluation.plots import plot_embeddings, save_figure
from amess_hf.evaluation.tables import escape_markdown, markdown_table, percent, write_csv
from amess_hf.processing_amess import write_json, write_text, written_aside


INPUTS = ("text", "clip", "audio", "video", "start", "end")
PROMPT = """People said:
{utterances}

What do all these speakers intend? Answer with one or two words on the first line, then three lines with one sentence each about such
a speaker, which begins with "The speaker"."""
CHUNK = 256  # clips that are embedded, and stored, at a time


@dataclass
class DiscoveryArguments:
    """Which clips, which model, and where the results go."""

    clips: str = HfArg(help="Folder of media files, or a table.")
    model: str = HfArg(help="Folder or Hub repository of the model.")
    output_dir: str = HfArg(help="Folder for the results.")
    num_groups: int | None = HfArg(default=None, help="Number of groups; estimated if not given.")
    all_clips: bool = HfArg(default=False, help="Group all clips, not only those that the detector calls unknown.")
    describe_with: str | None = HfArg(default=None, help="Language model that names and describes the groups.")
    base_url: str | None = HfArg(default=None, help="Address of its server with the chat-completions API.")
    trust_remote_code: bool = HfArg(default=False, help="Run code that comes with the model.")


def read_clips(place):
    """The inputs of the pipeline, one for each clip."""
    place = Path(place)
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES)
        rows = [{"clip": str(path)} for path in paths]
    elif place.is_file() and place.suffix in READERS:
        rows = [{name: row[name] for name in INPUTS if row.get(name) not in (None, "")} for _, row in read_rows(place)]
        for row in rows:
            row |= {name: float(row[name]) for name in ("start", "end") if name in row}
            row |= {name: str(place.parent / row[name]) for name in ("clip", "audio", "video") if name in row}
    else:
        raise ValueError(f"`clips` {place} is neither a folder nor a {', '.join(READERS)} table")
    if not rows:
        raise ValueError(f"`clips` {place} has no clip; give files that end in {', '.join(CLIP_SUFFIXES)}, or a table")
    return rows


def embed(pipe, rows, folder):
    """The embedded clips, a stored chunk at a time; a chunk of other clips or of another model is made again."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = Path(pipe.model.config._name_or_path, "model.safetensors")
    version = weights.stat().st_mtime_ns if weights.is_file() else str(pipe.model.hub_kwargs.get("revision"))
    parts = []
    for first in logging.tqdm(range(0, len(rows), CHUNK), desc="Chunks", unit="chunk"):
        chunk = rows[first : first + CHUNK]
        asked = json.dumps([pipe.model.config._name_or_path, version, chunk], sort_keys=True)
        path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.safetensors"
        if not path.is_file():
            found = embed_clips(pipe, chunk)
            texts = np.frombuffer(json.dumps(found.texts).encode(), dtype=np.uint8)
            arrays = {name: getattr(found, name) for name in ("embeds", "probabilities", "unknown")}
            with written_aside(path) as partial:
                save_file({**arrays, "texts": texts}, partial)
        parts.append(load_file(path))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in ("embeds", "probabilities", "unknown")}
    return EmbeddedClips(**arrays, texts=[text for part in parts for text in json.loads(part["texts"].tobytes())])


def language_model(name, base_url=None):
    """From utterances to a name and sentences, by the language model of generate_label_descriptions.py; None if it gives none."""
    arguments = DescriptionArguments(labels="", model=name, output_file=Path(), base_url=base_url)
    set_seed(arguments.seed)
    ask = local_model(arguments) if base_url is None else remote_model(arguments)

    def describe(utterances):
        question = PROMPT.format(utterances="\n".join(utterances))
        for attempt in range(arguments.max_attempts):
            with suppress(GenerationError):
                intent, *lines = parse_answer(ask(question, attempt)) or [""]
                sentences = [line for line in lines if is_sentence(line)]
                if intent and sentences:
                    return intent.strip(" .:*#")[:60], sentences
        return None

    return describe


def write_results(pipe, rows, found, groups, folder):
    """The tables, the descriptions and the map."""
    group_of = {place: number for number, group in enumerate(groups, 1) for place in group.clips}
    cells = [
        [group_of.get(place, ""), row.get("clip") or row.get("video") or row.get("audio") or "", found.texts[place]]
        for place, row in enumerate(rows)
    ]
    write_csv(folder / "clips.csv", ["group", "clip", "text"], cells)
    table = [
        [
            number,
            escape_markdown(group.name),
            len(group.clips),
            percent(group.tightness),
            escape_markdown(group.nearest),
        ]
        + [escape_markdown(" · ".join(group.utterances))]
        for number, group in enumerate(groups, 1)
    ]
    header = ["group", "name", "clips", "tightness", "nearest intent", "central utterances"]
    write_text(folder / "groups.md", markdown_table(header, table, (1, 4, 5)) + "\n![Map of the clips](map.png)\n")
    called = [group.name for group in groups]
    unique = [name if called.count(name) == 1 else f"{name} {number}" for number, name in enumerate(called, 1)]
    described = {name: group.descriptions for name, group in zip(unique, groups, strict=True)}
    write_json(folder / "label_descriptions.json", described)
    names = [f"{number} {group.name}" for number, group in enumerate(groups, 1)]
    names += [f"known: {name}" for name in pipe.model.config.id2label.values()]
    labels = len(groups) + found.probabilities.argmax(-1)
    for place, number in group_of.items():
        labels[place] = number - 1
    if len(labels) >= 4:
        there, labels = np.unique(labels, return_inverse=True)
        save_figure(plot_embeddings(found.embeds, labels, [names[number] for number in there]), folder / "map.png")


def main(arguments=None):
    (own,) = parse([DiscoveryArguments], __doc__, arguments)
    rows, folder = read_clips(own.clips), Path(own.output_dir)
    pipe = pipeline("intent-recognition", own.model, trust_remote_code=own.trust_remote_code or None)
    describe = language_model(own.describe_with, own.base_url) if own.describe_with else None
    found = embed(pipe, rows, folder / "embeddings")
    groups = discover_intents(pipe, found, own.num_groups, not own.all_clips, describe)
    write_results(pipe, rows, found, groups, folder)
    print(f"{len(groups)} group(s) in {folder / 'groups.md'}")
    return groups


if __name__ == "__main__":
    with one_line_errors():
        main()
