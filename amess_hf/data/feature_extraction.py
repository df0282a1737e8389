"""Feature files from raw clips: parallel under accelerate, resumable after a kill.

Each process encodes its share of the clips and writes small parts; when all are done, the parts become
`audio_data/<encoder>/` and `video_data/<encoder>/` (safetensors shards with an index) in the output folder. If it is
killed at any point and started again, it continues with the clips that are not in a part yet.
"""

import glob
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets.fingerprint import Hasher
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from ..configuration_amess import FEATURE_MODALITIES
from ..encoders_amess import load_audio_encoder, load_video_encoder
from ..processing_amess import write_json, write_text, written_aside
from .annotations import as_text, check_span, parse_seconds, read_rows
from .clip_features import CLIPS_PER_BATCH, ClipJob, EncodedClip, clip_jobs, encode_jobs, encoder_version
from .custom_data import CLIP_COLUMNS
from .dataset_files import NO_FEATURES
from .feature_files import SafetensorsFeatures, recover_folder, write_features
from .mintrec import load_mintrec


FAILED_CLIPS_NAME = "failed_clips.tsv"


def extract_features(
    data_dir: str | Path,
    dataset_name: str = "mintrec",
    table: str | Path | None = None,
    output_dir: str | Path | None = None,
    audio_encoder: str | None = None,
    video_encoder: str | None = None,
    video_frame_rate: float | None = None,
    dtype: str = "float32",
    on_error: str = "stop",
    audio_encoder_layer: int | None = None,
) -> dict[str, str]:
    """Encode the raw clips of a data set into feature files that [`load_mintrec`] reads.

    All processes of an `accelerate launch` call this and share the work.

    Args:
        data_dir (`str` or `Path`): Folder of the data set, with the clips below it.
        dataset_name (`str`): How to read its tables, as in [`load_mintrec`].
        table (`str` or `Path`, *optional*): Read this table instead, see [`table_rows`].
        output_dir (`str` or `Path`, *optional*): Where to write, by default `data_dir`.
        audio_encoder (`str`, *optional*): As in [`AMESSConfig`]; `None` leaves the modality out.
        video_encoder (`str`, *optional*): The same for video.
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        dtype (`str`): How features are stored, `"float32"` or `"float16"`.
        on_error (`str`): `"stop"` at a clip that cannot be read, or `"skip"` it.
        audio_encoder_layer (`int`, *optional*): As in [`AMESSConfig`].

    Returns:
        `dict[str, str]`: {clip id: why it could not be read}; also written to `failed_clips.tsv` in the output folder.

    Raises:
        ValueError: If no encoder is given or it cannot be loaded, tables or clips are missing, or (`on_error="stop"`)
            a clip cannot be read.
    """
    if audio_encoder is None and video_encoder is None:
        raise ValueError("`audio_encoder` and `video_encoder` are both missing; give at least one")
    # One process may have much longer clips than another, which waits for it at the end.
    state = PartialState(timeout=timedelta(days=1))
    with state.main_process_first():  # the data set's cache is written once
        jobs = read_jobs(data_dir, dataset_name, table)
    encoders = {"audio": audio_encoder, "video": video_encoder}
    extraction = FeatureExtraction(
        jobs, output_dir or data_dir, encoders, video_frame_rate, dtype, on_error == "skip", state, audio_encoder_layer
    )
    return extraction.run()


def read_jobs(data_dir: str | Path, dataset_name: str = "mintrec", table: str | Path | None = None) -> list[ClipJob]:
    """Return the clips of `table` or of all splits of the data set, each once; see [`extract_features`]."""
    if table is not None:
        rows = table_rows(Path(table), Path(data_dir))
    else:
        splits = load_mintrec(
            data_dir, dataset_name, scope="all", audio_features=NO_FEATURES, video_features=NO_FEATURES
        )
        rows = (row for split in splits.values() for row in split)
    return list({job.id: job for job in clip_jobs(rows, data_dir)}.values())


def table_rows(table: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of clips.

    Args:
        table (`Path`): A csv, tsv, jsonl or parquet file with columns `clip` (or `audio`, `video`), where wanted `id`,
            and `start`, `end` (seconds) where a clip is a span of its file.
        folder (`Path`): What the paths in the table are relative to.

    Raises:
        ValueError: If a row has no path, or `start` or `end` is not a time.
    """
    for number, (where, row) in enumerate(read_rows(table)):
        paths = {name: str(folder / row[name]) for name in CLIP_COLUMNS if row.get(name)}
        if not paths:
            raise ValueError(f"{where}: no path in `clip`, `audio` or `video`; fill one of the cells")
        span = {name: parse_seconds(row.get(name), where) for name in ("start", "end")}
        check_span(span["start"], span["end"], where)
        yield {"id": as_text(row.get("id")) or f"{table.stem}-{number}", **paths, **span}


def encoder_slug(name: str) -> str:
    """Return an encoder's name as a file name: the last part of a Hub id or path."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1])


class FeatureExtraction:
    """One extraction: its parts while it runs, its feature folders when it is done.

    Args:
        jobs (`list[ClipJob]`): The clips, each once.
        root (`str` or `Path`): Output folder.
        encoders (`dict[str, str | None]`): {modality: name of its encoder}.
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        dtype (`str`): How features are stored.
        skip_errors (`bool`): Whether to continue without the clips that cannot be read.
        state (`PartialState`): This process' place among the others.
        audio_encoder_layer (`int`, *optional*): Layer of the audio encoder; part of its folder's name.
    """

    def __init__(
        self,
        jobs: list[ClipJob],
        root: str | Path,
        encoders: dict[str, str | None],
        video_frame_rate: float | None,
        dtype: str,
        skip_errors: bool,
        state: PartialState,
        audio_encoder_layer: int | None = None,
    ):
        self.jobs, self.root, self.encoders = jobs, Path(root), encoders
        self.video_frame_rate, self.dtype, self.skip_errors, self.state = video_frame_rate, dtype, skip_errors, state
        self.audio_encoder_layer = audio_encoder_layer
        slugs = {m: encoder_slug(encoders[m]) for m in FEATURE_MODALITIES if encoders[m] is not None}
        if "audio" in slugs and audio_encoder_layer is not None:
            slugs["audio"] += f"-layer{audio_encoder_layer}"
        self.folders = {modality: self.root / f"{modality}_data" / slug for modality, slug in slugs.items()}
        rate = "" if video_frame_rate is None else f"-{video_frame_rate:g}"
        self.versions = {modality: encoder_version(encoders[modality]) for modality in slugs}
        # Parts of encoders whose weights have changed since are not merged with those of the current ones.
        self.parts_stem = f".parts-{'-'.join(slugs.values())}{rate}"
        self.parts = self.root / f"{self.parts_stem}-{Hasher.hash(self.versions)[:8]}"
        for modality, folder in self.folders.items():
            if folder.exists():
                self._check_version(modality, SafetensorsFeatures(folder).metadata.get("encoder"))

    def _check_version(self, modality: str, found: str | None) -> None:
        """Raise `ValueError` if there are features of an encoder of the same name with other weights."""
        if found not in (None, self.versions[modality]):
            raise ValueError(
                f"{self.folders[modality]}: `{modality}_encoder` was {found} when these features were made and is now "
                f"{self.versions[modality]}; remove the folder, or choose another `output_dir`"
            )

    def run(self) -> dict[str, str]:
        """Encode the remaining clips; return {clip id: why it could not be read}."""
        if self.state.is_main_process:
            self._clean_up()
        self.state.wait_for_everyone()
        done = self.done()
        remaining = [job for job in self.jobs if job.id not in done]
        # No process may add a part before all have seen which clips are left.
        self.state.wait_for_everyone()
        if done:
            self.state.print(f"{len(done)} of {len(self.jobs)} clips are already encoded")
        self.encode(remaining[self.state.process_index :: self.state.num_processes])
        self.state.wait_for_everyone()
        failures = self.failures()
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            self.join_parts()
            self.report(failures)
            shutil.rmtree(self.parts)
        self.state.wait_for_everyone()
        return failures

    def _clean_up(self) -> None:
        """Remove half-written files of a killed run, and its failures: those clips are tried again."""
        for folder in self.folders.values():
            recover_folder(folder)
        for outdated in self.root.glob(f"{glob.escape(self.parts_stem)}-????????"):
            if outdated != self.parts:
                shutil.rmtree(outdated, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.parts.glob("*.partial"), *self.parts.glob("failed-*")):
            leftover.unlink()

    def done(self) -> set[str]:
        """Return the ids of the clips that are in a part, or in the feature folders of every modality."""
        finished = [set(SafetensorsFeatures(folder)) if folder.exists() else set() for folder in self.folders.values()]
        return set.intersection(*finished) | {key.split("/", 1)[1] for key in self._part_of()}

    def _part_of(self) -> dict[str, Path]:
        """Return {`"modality/clip id"`: part}."""
        part_of = {}
        for path in sorted(self.parts.glob("*.safetensors")):
            with safe_open(path, framework="np") as part:
                part_of |= dict.fromkeys(part.keys(), path)
        return part_of

    def encode(self, jobs: list[ClipJob]) -> None:
        """Encode this process's share, a part for each batch of clips."""
        if not jobs:
            return
        audio, video = self.encoders["audio"], self.encoders["video"]
        audio = audio and load_audio_encoder(audio, self.state.device, layer=self.audio_encoder_layer)
        video = video and load_video_encoder(video, self.video_frame_rate, self.state.device)
        hidden = not self.state.is_main_process
        with logging.tqdm(total=len(jobs), desc="Encoding clips", unit="clip", disable=hidden) as progress:
            for begin in range(0, len(jobs), CLIPS_PER_BATCH):
                batch = jobs[begin : begin + CLIPS_PER_BATCH]
                clips = encode_jobs(batch, audio, video)
                self.write_part([clip for clip in clips if clip.error is None])
                self.write_failures({clip.job.id: clip.error for clip in clips if clip.error is not None})
                progress.update(len(batch))

    def write_part(self, clips: list[EncodedClip]) -> None:
        """Write the features of a few clips; a part gets its name only when it is complete."""
        if clips:
            tensors = {
                f"{m}/{clip.job.id}": np.ascontiguousarray(getattr(clip, m)) for clip in clips for m in self.folders
            }
            with written_aside(self.parts / f"{uuid.uuid4().hex}.safetensors") as partial:
                save_file(tensors, partial)

    def write_failures(self, failures: dict[str, str]) -> None:
        """Record clips that could not be read.

        Raises:
            ValueError: If there are any and they are not to be skipped.
        """
        if failures and not self.skip_errors:
            clip_id, reason = next(iter(failures.items()))
            raise ValueError(f"clip {clip_id}: {reason}; `on_error` skip continues without it")
        if failures:
            write_json(self.parts / f"failed-{uuid.uuid4().hex}", failures)

    def failures(self) -> dict[str, str]:
        """Return {clip id: why it could not be read} from all processes."""
        found = [json.loads(path.read_text(encoding="utf-8")) for path in self.parts.glob("failed-*")]
        return dict(sorted(item for failures in found for item in failures.items()))

    def join_parts(self) -> None:
        """Merge the parts and the features of earlier runs into feature folders, in the order of the table."""
        part_of = self._part_of()
        for modality, folder in self.folders.items():
            if part_of or not folder.exists():
                features = self._features(modality, part_of)
                write_features(
                    features,
                    folder,
                    source=self.root,
                    dtype=self.dtype,
                    replace=True,
                    metadata={"encoder": self.versions[modality]},
                )

    def _features(self, modality: str, part_of: dict[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
        folder = self.folders[modality]
        earlier = SafetensorsFeatures(folder) if folder.exists() else {}
        for clip_id in dict.fromkeys([*earlier, *(job.id for job in self.jobs)]):
            key = f"{modality}/{clip_id}"
            if key in part_of:
                with safe_open(part_of[key], framework="np") as part:
                    yield clip_id, part.get_tensor(key)
            elif clip_id in earlier:
                yield clip_id, earlier[clip_id]

    def report(self, failures: dict[str, str]) -> None:
        """Print how many clips are encoded, and list those that could not be read in a file."""
        path, total = self.root / FAILED_CLIPS_NAME, len(self.jobs)
        print(f"{total - len(failures)} of {total} clips are in {' and '.join(map(str, self.folders.values()))}")
        if failures:
            write_text(path, "id\treason\n" + "".join(f"{clip}\t{reason}\n" for clip, reason in failures.items()))
            print(f"{len(failures)} clips could not be read; {path} says why")
        else:
            path.unlink(missing_ok=True)
