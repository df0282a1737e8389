#!/usr/bin/env python3
"""
Turn raw clips into feature files that `load_mintrec` reads, with frozen encoders, in parallel.

    accelerate launch examples/extract_features.py --data_dir path/to/MIntRec --dataset_name mintrec \
        --audio_encoder microsoft/wavlm-base-plus --video_encoder microsoft/swin-tiny-patch4-window7-224

Each process encodes its share of the clips and writes small parts; when all are done, the parts become
`audio_data/<encoder>/` and `video_data/<encoder>/` (safetensors shards with an index) in the output folder. Killed at any
point and started again, it goes on with the clips that are not in a part yet. Clips that cannot be read are listed with the
reason in `failed_clips.tsv`.
"""

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
from accelerate import PartialState
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import HfArgumentParser
from transformers.utils import logging

from amess_hf import load_mintrec
from amess_hf.data.clip_features import CLIPS_PER_BATCH, ClipJob, EncodedClip, clip_jobs, encode_jobs, encoder_slug
from amess_hf.data.custom_data import READERS
from amess_hf.data.feature_files import SafetensorsFeatures, write_features
from amess_hf.encoders_amess import load_audio_encoder, load_video_encoder


logger = logging.get_logger("amess_hf.extract_features")


@dataclass
class ExtractionArguments:
    """What to encode, with what, and where to put it."""

    data_dir: str = field(metadata={"help": "Folder of the data set, with the clips below it."})
    dataset_name: str = field(
        default="mintrec", metadata={"help": "mintrec, mintrec2.0 or folder: how to read the tables."}
    )
    table: str | None = field(
        default=None,
        metadata={
            "help": "Instead of the data set's tables: a csv, tsv, jsonl or parquet file with columns id and clip (or audio, "
            "video), and start, end (seconds) where a clip is a span of its file. Paths are relative to `data_dir`."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where to write; `data_dir` if not given."})
    audio_encoder: str | None = field(
        default=None, metadata={"help": "A WavLM, wav2vec 2.0 or HuBERT model, or log-mel."}
    )
    video_encoder: str | None = field(
        default=None, metadata={"help": "A Swin, ViT, ResNet or VideoMAE model, or frame-difference."}
    )
    video_frame_rate: float | None = field(
        default=None, metadata={"help": "Frames a second; the encoder's own if not given."}
    )
    dtype: str = field(default="float32", metadata={"help": "float32 or float16."})
    on_error: str = field(
        default="stop",
        metadata={"help": "stop at a clip that cannot be read, or skip it.", "choices": ["stop", "skip"]},
    )


def read_jobs(args: ExtractionArguments) -> list[ClipJob]:
    """The clips of the table or of all splits of the data set, each once."""
    if args.table is not None:
        rows = list(_table_rows(Path(args.table), Path(args.data_dir)))
    else:
        splits = load_mintrec(
            args.data_dir, args.dataset_name, scope="all", audio_features="none", video_features="none"
        )
        rows = [row for split in splits.values() for row in split]
    return list({job.id: job for job in clip_jobs(rows, args.data_dir)}.values())


def _table_rows(table: Path, folder: Path) -> Iterator[dict]:
    if table.suffix not in READERS:
        raise ValueError(f"`--table` {table}: give a {', '.join(READERS)} file.")
    for number, (where, row) in enumerate(READERS[table.suffix](table)):
        paths = {name: str(folder / row[name]) for name in ("clip", "audio", "video") if row.get(name)}
        if not paths:
            raise ValueError(f"{where}: no path in `clip`, `audio` or `video`.")
        try:
            span = {name: float(row[name]) for name in ("start", "end") if row.get(name) not in (None, "")}
        except ValueError:
            raise ValueError(f"{where}: `start` and `end` are numbers of seconds.") from None
        yield {"id": str(row.get("id") or f"{table.stem}-{number}"), **paths, **span}


class Extraction:
    """
    One extraction: its parts while it runs, its feature folders when it is done.

    Args:
        args ([`ExtractionArguments`]): What to encode.
        state (`PartialState`): The process among the others.
    """

    def __init__(self, args: ExtractionArguments, state: PartialState):
        self.args, self.state = args, state
        root = Path(args.output_dir or args.data_dir)
        names = {"audio": args.audio_encoder, "video": args.video_encoder}
        self.folders = {m: root / f"{m}_data" / encoder_slug(name) for m, name in names.items() if name is not None}
        self.failed_path = root / "failed_clips.tsv"
        slugs = "-".join(encoder_slug(name) for name in names.values() if name is not None)
        rate = "" if args.video_frame_rate is None else f"-{args.video_frame_rate:g}"
        self.parts = root / f".parts-{slugs}{rate}"

    def run(self, jobs: list[ClipJob]) -> int:
        """Encodes what is not encoded yet. Returns the number of clips that failed."""
        if self.state.is_main_process:
            for folder in self.folders.values():
                _recover(folder)
            self.parts.mkdir(parents=True, exist_ok=True)
            for leftover in self.parts.glob("*.tmp"):
                leftover.unlink()
            for leftover in self.parts.glob("failed-*"):  # tried again now
                leftover.unlink()
        self.state.wait_for_everyone()
        done = self.done()
        remaining = [job for job in jobs if job.id not in done]
        # Nobody may add a part before everybody has seen which clips are left.
        self.state.wait_for_everyone()
        if done and self.state.is_main_process:
            print(f"{len(done)} of {len(jobs)} clips are encoded already.")
        self.encode(remaining[self.state.process_index :: self.state.num_processes])
        self.state.wait_for_everyone()
        failures = self.failures()
        if self.state.is_main_process:
            self.finish(jobs, failures)
        self.state.wait_for_everyone()
        return len(failures)

    def done(self) -> set[str]:
        """Ids of the clips that are in a part, or in the feature folders of every modality."""
        finished = [set(SafetensorsFeatures(folder)) if folder.exists() else set() for folder in self.folders.values()]
        ids = set.intersection(*finished)
        for path in sorted(self.parts.glob("*.safetensors")):
            with safe_open(path, framework="np") as part:
                ids |= {key.split("/", 1)[1] for key in part.keys()}
        return ids

    def encode(self, jobs: list[ClipJob]) -> None:
        """Encodes this process's share, a part for each batch of clips."""
        if not jobs:
            return
        args = self.args
        audio = args.audio_encoder and load_audio_encoder(args.audio_encoder, self.state.device)
        video = args.video_encoder and load_video_encoder(args.video_encoder, args.video_frame_rate, self.state.device)
        hidden = not self.state.is_main_process
        with logging.tqdm(total=len(jobs), desc="Encoding clips", unit="clip", disable=hidden) as progress:
            for begin in range(0, len(jobs), CLIPS_PER_BATCH):
                batch = jobs[begin : begin + CLIPS_PER_BATCH]
                clips = encode_jobs(batch, audio, video)
                self.write_part([clip for clip in clips if clip.error is None])
                self.write_failures([clip for clip in clips if clip.error is not None])
                progress.update(len(batch))

    def write_part(self, clips: list[EncodedClip]) -> None:
        """A part appears under its name only when it is whole."""
        if not clips:
            return
        tensors = {f"{m}/{clip.job.id}": getattr(clip, m) for clip in clips for m in self.folders}
        name = uuid.uuid4().hex
        temporary = self.parts / f"{name}.tmp"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, temporary)
        os.replace(temporary, self.parts / f"{name}.safetensors")

    def write_failures(self, clips: list[EncodedClip]) -> None:
        if clips and self.args.on_error == "stop":
            raise ValueError(f"clip {clips[0].job.id}: {clips[0].error} (`--on_error skip` goes on without it)")
        if clips:
            rows = [[clip.job.id, clip.error] for clip in clips]
            (self.parts / f"failed-{uuid.uuid4().hex}").write_text(json.dumps(rows), encoding="utf-8")

    def failures(self) -> list[tuple[str, str]]:
        """(clip id, reason) from all processes."""
        found = [json.loads(path.read_text(encoding="utf-8")) for path in self.parts.glob("failed-*")]
        return sorted((clip, reason) for rows in found for clip, reason in rows)

    def finish(self, jobs: list[ClipJob], failures: list[tuple[str, str]]) -> None:
        """Joins the parts into feature folders, in the order of the table, and reports."""
        where = {}
        for path in self.parts.glob("*.safetensors"):
            with safe_open(path, framework="np") as part:
                where |= dict.fromkeys(part.keys(), path)
        for modality, folder in self.folders.items():
            if any(key.startswith(f"{modality}/") for key in where) or not folder.exists():
                self._write(modality, folder, jobs, where)
        shutil.rmtree(self.parts)
        lines = ["id\treason", *("\t".join(row) for row in failures)]
        if failures:
            self.failed_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            self.failed_path.unlink(missing_ok=True)
        print(
            f"{len(jobs) - len(failures)} of {len(jobs)} clips are in {' and '.join(map(str, self.folders.values()))}."
        )
        if failures:
            print(f"{len(failures)} clips could not be read; {self.failed_path} says why.")

    def _write(self, modality: str, folder: Path, jobs: list[ClipJob], where: dict[str, Path]) -> None:
        earlier = SafetensorsFeatures(folder) if folder.exists() else {}
        ids = list(dict.fromkeys([*earlier, *(job.id for job in jobs)]))

        def entries() -> Iterator[tuple[str, np.ndarray]]:
            for clip in ids:
                if (path := where.get(f"{modality}/{clip}")) is not None:
                    with safe_open(path, framework="np") as part:
                        yield clip, part.get_tensor(f"{modality}/{clip}")
                elif clip in earlier:
                    yield clip, earlier[clip]

        new = folder.with_name(f".new-{folder.name}")
        for leftover in (new, *folder.parent.glob(f".{new.name}.*")):  # of a run that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        write_features(entries(), new, source=Path(self.args.data_dir), dtype=self.args.dtype)
        if folder.exists():
            os.rename(folder, _old(folder))
        os.rename(new, folder)
        shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def _recover(folder: Path) -> None:
    """Puts the earlier features back where a kill fell between taking them away and putting the new ones there."""
    if _old(folder).exists() and not folder.exists():
        os.rename(_old(folder), folder)


def main(arguments: list[str] | None = None) -> int:
    args = HfArgumentParser(ExtractionArguments, description=__doc__).parse_args_into_dataclasses(arguments)[0]
    if args.audio_encoder is None and args.video_encoder is None:
        raise ValueError("Give `--audio_encoder`, `--video_encoder` or both.")
    # One process may have much longer clips than another, which waits for it at the end.
    state = PartialState(timeout=timedelta(days=1))
    with state.main_process_first():  # the data set's cache is written once
        jobs = read_jobs(args)
    failed = Extraction(args, state).run(jobs)
    state.destroy_process_group()
    return failed


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"extract_features.py: {error}")
