"""Turn raw clips into features: as columns of a data set, or as feature files.

[`add_clip_features`] encodes in this process and caches with the data set. [`extract_features`] shares the clips among the
processes of an `accelerate launch`: each writes small parts; when all are done, the parts become `audio_data/<encoder>/` and
`video_data/<encoder>/` (safetensors shards with an index). If it is killed at any point and started again, it continues
with the clips that are not in a part yet.
"""

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from ..clips_amess import Clip, ClipError
from ..encoders_amess import AudioEncoder, VideoEncoder, load_encoder
from ..processing_amess import plain_cell, write_text, written_aside
from .annotations import CLIP_COLUMNS, as_text, read_rows, read_span
from .dataset_files import NO_FEATURES, RAW_CLIPS_FOLDER, find_clips, fingerprint
from .errors import first_of
from .feature_files import SafetensorsFeatures, recover_folder, write_features
from .mintrec import load_mintrec, with_feature_arrays


logger = logging.get_logger(__name__)

# Clips encoded together: enough to fill a batch of a frozen encoder, few enough to hold their audio in memory.
CLIPS_PER_BATCH = 16
# Columns of a row that say where its clip is.
JOB_COLUMNS = ("id", "clip", "audio", "video", "start", "end", "dialogue_id")
# Column that says, while a split is encoded, why a clip could not be used.
ERROR_COLUMN = "error"
FAILED_CLIPS_NAME = "failed_clips.tsv"


@dataclass
class _ClipJob:
    """A clip to encode and, once it is encoded, its features.

    Attributes:
        id (`str`): Clip id.
        audio (`str`, *optional*): Path of the file whose audio is wanted.
        video (`str`, *optional*): Path of the file whose frames are wanted; usually the same.
        start, end (`float`, *optional*): Where the clip begins and ends in its file, in seconds.
        audio_features, video_features (`np.ndarray` of shape `(frames, width)`, *optional*): `None` without encoder.
        error (`str`, *optional*): Why the clip could not be read.
    """

    id: str
    audio: str | None
    video: str | None
    start: float | None = None
    end: float | None = None
    audio_features: np.ndarray | None = None
    video_features: np.ndarray | None = None
    error: str | None = None


def clip_jobs(
    rows: Iterable[dict[str, Any]], data_dir: str | Path | None = None, allow_missing: bool = False
) -> list[_ClipJob]:
    """Return what to read for each row of a data set.

    Args:
        rows (iterable of `dict[str, Any]`): Rows with `id` and, where known, the paths `clip`, `audio`, `video`, and the
            span `start`, `end` ([`~clips_amess.Clip`]).
        data_dir (`str` or `Path`, *optional*): Where to look for the clips of rows without a path.
        allow_missing (`bool`): Give a job without a file for a row that has no clip; otherwise it is an error.

    Raises:
        ValueError: If rows have no clip; they are listed.
    """
    found: dict[str, Path] | None = None
    jobs, missing = [], []
    for row in rows:
        video = row.get("video") or row.get("clip")
        audio = row.get("audio") or video  # a clip's own audio, unless another is given
        if audio is None and data_dir is not None:
            found = find_clips(data_dir) if found is None else found
            audio = video = str(found[row["id"]]) if row["id"] in found else None
        error = None
        if audio is None:
            error = "the row has no clip"
            missing.append(row["id"])
        span = {} if row.get("dialogue_id") is not None else {"start": row.get("start"), "end": row.get("end")}
        jobs.append(_ClipJob(row["id"], audio, video, **span, error=error))
    if missing and not allow_missing:
        raise ValueError(
            f"{data_dir or 'the data'}: no raw clip for {len(missing)} of {len(jobs)} rows: {first_of(missing)}; "
            f"put the clips into `{RAW_CLIPS_FOLDER}/` there, or give their paths in a column `clip`"
        )
    return jobs


def _encode_jobs(
    jobs: list[_ClipJob], encoders: dict[str, AudioEncoder | VideoEncoder], limits: dict[str, int | None]
) -> list[_ClipJob]:
    """Encode a few clips together, at most `limits[modality]` features of each; frames are decoded as they are encoded.

    Returns copies of the jobs with features. A clip that cannot be read has its `error` set and does not affect the others.
    """
    jobs = [replace(job) for job in jobs]
    for modality, encoder in encoders.items():
        read = {"audio": _sound, "video": _frames}[modality]
        sources = [read(job, encoder, limits.get(modality)) for job in jobs]
        for job, features in zip(jobs, encoder(sources), strict=True):
            setattr(job, f"{modality}_features", features[: limits.get(modality)])
    return jobs


def _sound(job: _ClipJob, encoder: AudioEncoder, limit: int | None) -> np.ndarray:
    try:
        if job.audio is not None:
            return encoder.read(Clip(audio=job.audio, start=job.start, end=job.end), limit)
    except ClipError as error:
        job.error = str(error)
    return np.zeros(0, dtype=np.float32)


def _frames(job: _ClipJob, encoder: VideoEncoder, limit: int | None) -> Iterator[np.ndarray]:
    try:
        if job.video is not None and job.error is None:
            yield from encoder.read(Clip(video=job.video, start=job.start, end=job.end), limit)
    except ClipError as error:
        job.error = str(error)


def add_clip_features(
    dataset: datasets.DatasetDict,
    audio_encoder: str | None = None,
    video_encoder: str | None = None,
    data_dir: str | Path | None = None,
    audio_encoder_layer: int | None = None,
    video_frame_rate: float | None = None,
    max_audio_length: int | None = None,
    max_video_length: int | None = None,
    on_error: str = "raise",
    failures: dict[str, str] | None = None,
) -> datasets.DatasetDict:
    """Add the columns `audio_features` and `video_features`, made from the raw clips.

    The result is cached with the data set: the same clips, encoders and limits are not encoded again; a clip that has
    changed is noticed. For thousands of clips, [`extract_features`] does the same in parallel and resumes.

    Args:
        dataset (`datasets.DatasetDict`): What [`load_mintrec`] returns.
        audio_encoder (`str`, *optional*): As for [`load_encoder`]; `None` leaves the modality out.
        video_encoder (`str`, *optional*): The same for video.
        data_dir (`str` or `Path`, *optional*): Where to look for the clips of rows without a path.
        audio_encoder_layer (`int`, *optional*): Layer of the audio encoder.
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        max_audio_length (`int`, *optional*): Features to keep; no more of a clip is decoded.
        max_video_length (`int`, *optional*): The same for video.
        on_error (`str`): `"raise"` at a clip that cannot be used, or `"skip"` it: the row is left out, with a warning.
        failures (`dict[str, str]`, *optional*): Filled with {clip id: why it could not be used} for the rows left out.

    Returns:
        `datasets.DatasetDict`: With the columns, `float32` of shape `(frames, width)`.

    Raises:
        ValueError: A row has no clip, a clip cannot be used, an encoder cannot be loaded, or a split has no usable clip.
    """
    _check_on_error(on_error)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoders = _load_encoders(audio_encoder, video_encoder, device, audio_encoder_layer, video_frame_rate)
    if not encoders:
        return dataset
    limits = {"audio": max_audio_length, "video": max_video_length}
    encoded, unusable = {}, {}
    for name, split in dataset.items():
        paths = split.select_columns([column for column in JOB_COLUMNS if column in split.column_names])
        jobs = clip_jobs(paths.with_format(None), data_dir, allow_missing=on_error == "skip")
        encoded[name] = _leave_out(_encode_split(split, name, jobs, encoders, limits, on_error), name, unusable)
    if unusable:
        reasons = [f"{clip} ({reason})" for clip, reason in unusable.items()]
        logger.warning(f"{len(unusable)} clips cannot be used and are left out: {first_of(reasons)}")
    if failures is not None:
        failures.update(unusable)
    return with_feature_arrays(datasets.DatasetDict(encoded))


def _check_on_error(on_error: str) -> None:
    """Raise `ValueError` unless it is `"raise"` or `"skip"`."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is {on_error!r}; choose raise or skip")


def _load_encoders(
    audio: str | None, video: str | None, device: Any, audio_layer: int | None, video_frame_rate: float | None
) -> dict[str, AudioEncoder | VideoEncoder]:
    """Load {modality: encoder} for those that are named."""
    encoders = {}
    if audio is not None:
        encoders["audio"] = load_encoder("audio", audio, device, layer=audio_layer)
    if video is not None:
        encoders["video"] = load_encoder("video", video, device, frame_rate=video_frame_rate)
    return encoders


def _encode_split(
    split: datasets.Dataset,
    name: str,
    jobs: list[_ClipJob],
    encoders: dict[str, AudioEncoder | VideoEncoder],
    limits: dict[str, int | None],
    on_error: str,
) -> datasets.Dataset:
    """Add the features of a split, and a column of errors."""
    features = datasets.Features(split.features | {ERROR_COLUMN: datasets.Value("string")})
    for modality, encoder in encoders.items():
        features[f"{modality}_features"] = datasets.Array2D((None, encoder.feature_size), "float32")
    begun = []

    def encode(_: Any, rows: list[int]) -> dict[str, list[Any]]:
        begun.append(rows)
        clips = _encode_jobs([jobs[row] for row in rows], encoders, limits)
        _failures(clips, on_error)
        columns = [f"{modality}_features" for modality in encoders]
        return {column: [getattr(clip, column) for clip in clips] for column in (*columns, ERROR_COLUMN)}

    files = {Path(path) for job in jobs for path in (job.audio, job.video) if path is not None}
    state = [
        split._fingerprint,
        repr(jobs),
        fingerprint(filter(Path.is_file, files)),
        sorted(limits.items()),
        on_error,
    ]
    encode_rows = partial(
        split.with_format(None).map,
        encode,
        with_indices=True,
        batched=True,
        batch_size=CLIPS_PER_BATCH,
        writer_batch_size=CLIPS_PER_BATCH,
        features=features,
        desc=f"Encoding the clips of {name}",
        new_fingerprint=Hasher.hash([*state, *map(_loaded_version, encoders.values())]),
    )
    try:
        encoded = encode_rows()
        damage = None if len(encoded) == len(split) else f"it has {len(encoded)} rows of {len(split)}"
    except (pa.ArrowInvalid, OSError) as error:
        if begun:  # not an unreadable cache
            raise
        damage = str(error)
    if damage:
        logger.warning(f"the cache of the clips of {name} is damaged ({damage}); they are encoded again")
        encoded = encode_rows(load_from_cache_file=False)
    return encoded


def _failures(clips: list[_ClipJob], on_error: str) -> dict[str, str]:
    """Return {clip id: why it could not be read}, or raise `ValueError` for the first."""
    failures = {clip.id: clip.error for clip in clips if clip.error is not None}
    if failures and on_error == "raise":
        clip_id, reason = next(iter(failures.items()))
        raise ValueError(f"clip {clip_id}: {reason}; `on_error` skip continues without it")
    return failures


def _leave_out(encoded: datasets.Dataset, name: str, failures: dict[str, str]) -> datasets.Dataset:
    """Return the clips that could be read, and note the others in `failures`."""
    errors = encoded[ERROR_COLUMN]
    bad = {clip_id: error for clip_id, error in zip(encoded["id"], errors, strict=True) if error is not None}
    if bad and len(bad) == len(encoded):
        raise ValueError(f"none of the clips of {name} can be used: {first_of(list(bad.values()))}")
    failures |= bad
    encoded = encoded.remove_columns(ERROR_COLUMN)
    return encoded.select([row for row, error in enumerate(errors) if error is None]) if bad else encoded


def _encoder_version(name: str) -> str:
    """Return the name of an encoder, with a digest of the files for one in a local folder: its weights may change."""
    folder = Path(name).expanduser()
    return f"{name} {fingerprint([folder])}" if folder.is_dir() else name


def _loaded_version(encoder: AudioEncoder | VideoEncoder) -> tuple[Any, ...]:
    """Return what tells a loaded encoder from others: name and folder, commit on the Hub, layer, rate, width."""
    commit = getattr(getattr(getattr(encoder, "model", None), "config", None), "_commit_hash", None)
    layer = getattr(encoder, "layer", None)
    return _encoder_version(encoder.name), commit, layer, encoder.modality, encoder.frame_rate, encoder.feature_size


def extract_features(
    data_dir: str | Path,
    dataset_name: str = "mintrec",
    table: str | Path | None = None,
    output_dir: str | Path | None = None,
    audio_encoder: str | None = None,
    video_encoder: str | None = None,
    video_frame_rate: float | None = None,
    dtype: str = "float32",
    on_error: str = "raise",
    audio_encoder_layer: int | None = None,
) -> dict[str, str]:
    """Encode the raw clips of a data set into feature files that [`load_mintrec`] reads.

    All processes of an `accelerate launch` call this and share the work.

    Args:
        data_dir (`str` or `Path`): Folder of the data set, with the clips below it.
        dataset_name (`str`): How to read its tables, as in [`load_mintrec`].
        table (`str` or `Path`, *optional*): Read this table instead: columns `clip` (or `audio`, `video`; paths relative to
            `data_dir`), where wanted `id`, and `start`, `end` (seconds) where a clip is a span of its file.
        output_dir (`str` or `Path`, *optional*): Where to write, by default `data_dir`.
        audio_encoder (`str`, *optional*): As for [`load_encoder`]; `None` leaves the modality out.
        video_encoder (`str`, *optional*): The same for video.
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        dtype (`str`): How features are stored, `"float32"` or `"float16"`.
        on_error (`str`): `"raise"` at a clip that cannot be read, or `"skip"` it.
        audio_encoder_layer (`int`, *optional*): Layer of the audio encoder; part of its folder's name.

    Returns:
        `dict[str, str]`: {clip id: why it could not be read}; also written to `failed_clips.tsv` in the output folder.

    Raises:
        ValueError: If no encoder is given or it cannot be loaded, tables or clips are missing, or (`on_error="raise"`)
            a clip cannot be read.
    """
    _check_on_error(on_error)
    if audio_encoder is None and video_encoder is None:
        raise ValueError("`audio_encoder` and `video_encoder` are both missing; give at least one")
    # One process may have much longer clips than another, which waits for it at the end.
    state = PartialState(timeout=timedelta(days=1))
    with state.main_process_first():  # the data set's cache is written once
        jobs = read_jobs(data_dir, dataset_name, table)
    root, names = Path(output_dir or data_dir), {"audio": audio_encoder, "video": video_encoder}
    # The folder of an encoder has the last part of its Hub id or path.
    slugs = {
        modality: re.sub(r"[^\w.-]+", "-", Path(name).name) for modality, name in names.items() if name is not None
    }
    if "audio" in slugs and audio_encoder_layer is not None:
        slugs["audio"] += f"-layer{audio_encoder_layer}"
    folders = {modality: root / f"{modality}_data" / slug for modality, slug in slugs.items()}
    versions = {modality: _encoder_version(names[modality]) for modality in slugs}
    # Parts of encoders whose weights have changed since are not merged with those of the current ones.
    parts = root / f".parts-{'-'.join(slugs.values())}-{Hasher.hash([versions, video_frame_rate])[:8]}"
    with _one_at_a_time(parts, folders) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        earlier = {modality: _earlier_features(modality, folders[modality], versions[modality]) for modality in slugs}
        left = _left(jobs, earlier, _part_of(parts))
        if len(left) < len(jobs):
            state.print(f"{len(jobs) - len(left)} of {len(jobs)} clips are already encoded")
        # No process may add a part before all have seen which clips are left.
        state.wait_for_everyone()
        share, failures = left[state.process_index :: state.num_processes], {}
        if share:
            encoders = _load_encoders(
                audio_encoder, video_encoder, state.device, audio_encoder_layer, video_frame_rate
            )
            failures = _encode_share(share, encoders, parts, on_error, hidden=not state.is_main_process)
        failures = dict(sorted(gather_object([*failures.items()])))
        if state.is_main_process:
            _join_parts(parts, folders, earlier, versions, jobs, dtype)
            _report(root, folders, len(jobs), failures)
            shutil.rmtree(parts)
        state.wait_for_everyone()
        return failures


def read_jobs(data_dir: str | Path, dataset_name: str = "mintrec", table: str | Path | None = None) -> list[_ClipJob]:
    """Return the clips of `table` or of all splits of the data set, each once; see [`extract_features`]."""
    if table is not None:
        rows = _table_rows(Path(table), Path(data_dir))
    else:
        splits = load_mintrec(
            data_dir, dataset_name, scope="all", audio_features=NO_FEATURES, video_features=NO_FEATURES
        )
        rows = (row for split in splits.values() for row in split)
    return list({job.id: job for job in clip_jobs(rows, data_dir)}.values())


def _table_rows(table: Path, folder: Path) -> Iterator[dict[str, Any]]:
    for number, (where, row) in enumerate(read_rows(table)):
        paths = {name: str(folder / row[name]) for name in CLIP_COLUMNS if row.get(name)}
        if not paths:
            raise ValueError(f"{where}: no path in `clip`, `audio` or `video`; fill one of the cells")
        span = read_span({name: row.get(name) for name in ("start", "end")}, where)
        yield {"id": as_text(row.get("id")) or f"{table.stem}-{number}", **paths, **span}


@contextmanager
def _one_at_a_time(parts: Path, folders: dict[str, Path]) -> Iterator[None]:
    """Make the folder of parts, lock it, and remove half-written files of a killed run."""
    parts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(parts / ".lock", timeout=0):
            for folder in folders.values():
                recover_folder(folder)
            for leftover in parts.glob("*.partial"):
                leftover.unlink()
            yield
    except Timeout as error:
        raise ValueError(
            f"another extraction is writing into {parts.parent}; wait for it, or choose another `output_dir`"
        ) from error


def _earlier_features(modality: str, folder: Path, version: str) -> Mapping[str, np.ndarray]:
    """Return the features of earlier runs, which must come from the same weights."""
    earlier = SafetensorsFeatures(folder) if folder.exists() else {}
    made_by = earlier.metadata.get("encoder") if earlier else None
    if made_by not in (None, version):
        raise ValueError(
            f"{folder}: `{modality}_encoder` was {made_by} when these features were made and is now {version}; "
            "remove the folder, or choose another `output_dir`"
        )
    return earlier


def _part_of(parts: Path) -> dict[str, Path]:
    """Return {`"modality/clip id"`: part}."""
    part_of = {}
    for path in sorted(parts.glob("*.safetensors")):
        with safe_open(path, framework="np") as part:
            part_of |= dict.fromkeys(part.keys(), path)
    return part_of


def _left(jobs: list[_ClipJob], earlier: dict[str, Mapping], part_of: dict[str, Path]) -> list[_ClipJob]:
    """Return the clips that are neither in a part nor in the earlier features of every modality."""
    encoded = {key.split("/", 1)[1] for key in part_of} | set.intersection(*map(set, earlier.values()))
    return [job for job in jobs if job.id not in encoded]


def _encode_share(
    jobs: list[_ClipJob], encoders: dict[str, AudioEncoder | VideoEncoder], parts: Path, on_error: str, hidden: bool
) -> dict[str, str]:
    """Encode the clips of this process, a part for each few; return {clip id: why it could not be read}."""
    failures = {}
    with logging.tqdm(total=len(jobs), desc="Encoding clips", unit="clip", disable=hidden) as progress:
        for begin in range(0, len(jobs), CLIPS_PER_BATCH):
            clips = _encode_jobs(jobs[begin : begin + CLIPS_PER_BATCH], encoders, {})
            failures |= _failures(clips, on_error)
            _write_part(parts, [clip for clip in clips if clip.error is None], encoders)
            progress.update(len(clips))
    return failures


def _write_part(parts: Path, clips: list[_ClipJob], modalities: Iterable[str]) -> None:
    """Write the features of a few clips; a part gets its name only when it is complete."""
    tensors = {
        f"{m}/{clip.id}": np.ascontiguousarray(getattr(clip, f"{m}_features")) for clip in clips for m in modalities
    }
    if tensors:
        with written_aside(parts / f"{uuid.uuid4().hex}.safetensors") as partial_file:
            save_file(tensors, partial_file)


def _join_parts(
    parts: Path,
    folders: dict[str, Path],
    earlier: dict[str, Mapping[str, np.ndarray]],
    versions: dict[str, str],
    jobs: list[_ClipJob],
    dtype: str,
) -> None:
    """Merge the parts and the features of earlier runs into feature folders, in the order of the table."""
    part_of = _part_of(parts)

    def joined(modality: str) -> Iterator[tuple[str, np.ndarray]]:
        for clip_id in dict.fromkeys([*earlier[modality], *(job.id for job in jobs)]):
            key = f"{modality}/{clip_id}"
            if key in part_of:
                with safe_open(part_of[key], framework="np") as part:
                    yield clip_id, part.get_tensor(key)
            elif clip_id in earlier[modality]:
                yield clip_id, earlier[modality][clip_id]

    for modality, folder in folders.items():
        if part_of or not folder.exists():
            metadata = {"encoder": versions[modality]}
            write_features(joined(modality), folder, source=parts.parent, dtype=dtype, replace=True, metadata=metadata)


def _report(root: Path, folders: dict[str, Path], total: int, failures: dict[str, str]) -> None:
    """Print how many clips are encoded, and list those that could not be read in a file."""
    path = root / FAILED_CLIPS_NAME
    print(f"{total - len(failures)} of {total} clips are in {' and '.join(map(str, folders.values()))}")
    path.unlink(missing_ok=True)
    if failures:
        write_text(
            path, "id\treason\n" + "".join(f"{plain_cell(clip)}\t{reason}\n" for clip, reason in failures.items())
        )
        print(f"{len(failures)} clips could not be read; {path} says why")
