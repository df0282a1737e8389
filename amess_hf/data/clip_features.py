"""Turn raw clips into features: read, encode a few at a time, and add as columns of a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..clips_amess import ClipError
from ..encoders_amess import (
    AudioEncoder,
    VideoEncoder,
    frames_for,
    load_audio_encoder,
    load_video_encoder,
    sound_for,
)
from .annotations import first_of
from .dataset_files import RAW_CLIPS_FOLDER, find_clips, fingerprint
from .mintrec import with_feature_arrays


logger = logging.get_logger(__name__)

# Clips encoded together: enough to fill a batch of a frozen encoder, few enough to hold their sound in memory.
CLIPS_PER_BATCH = 16
# Columns of a row that say where its clip is.
JOB_COLUMNS = ("id", "clip", "audio", "video", "start", "end", "dialogue_id")
# Column that says, while a split is encoded, why a clip could not be used.
ERROR_COLUMN = "clip_error"


@dataclass
class ClipJob:
    """A clip to encode.

    Attributes:
        id (`str`): Clip id.
        audio (`str`, *optional*): Path of the file whose sound is wanted.
        video (`str`, *optional*): Path of the file whose picture is wanted; usually the same.
        start (`float`, *optional*): Where the clip begins in its file, in seconds.
        end (`float`, *optional*): Where it ends.
    """

    id: str
    audio: str | None
    video: str | None
    start: float | None = None
    end: float | None = None


@dataclass
class EncodedClip:
    """Features of a clip, or what went wrong.

    Attributes:
        job ([`ClipJob`]): The clip.
        audio (`np.ndarray` of shape `(frames, width)`, *optional*): `None` without audio encoder.
        video (`np.ndarray` of shape `(frames, width)`, *optional*): `None` without video encoder.
        error (`str`, *optional*): Why the clip could not be read.
    """

    job: ClipJob
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    error: str | None = None


def clip_jobs(
    rows: Iterable[dict[str, Any]], data_dir: str | Path | None = None, allow_missing: bool = False
) -> list[ClipJob]:
    """Return what to read for each row of a data set.

    Args:
        rows (iterable of `dict[str, Any]`): Rows with `id` and, where known, the paths `clip`, `audio`, `video`.
            `start` and `end` are a span of the file, unless the row has a `dialogue_id`: then they are times of the
            episode that the clip was cut from (MIntRec2.0).
        data_dir (`str` or `Path`, *optional*): Where to look for the clips of rows without a path.
        allow_missing (`bool`): Give a job without a file for a row that has no clip; otherwise it is an error.

    Raises:
        ValueError: If rows have no clip; they are listed.
    """
    found: dict[str, Path] | None = None
    jobs, missing = [], []
    for row in rows:
        path = row.get("clip")
        video = row.get("video") or path
        audio = row.get("audio") or video  # a clip's own sound, unless another is given
        if audio is None and video is None and data_dir is not None:
            found = find_clips(data_dir) if found is None else found
            audio = video = str(found[row["id"]]) if row["id"] in found else None
        if audio is None and video is None:
            missing.append(row["id"])
        span = {} if row.get("dialogue_id") is not None else {"start": row.get("start"), "end": row.get("end")}
        jobs.append(ClipJob(row["id"], audio, video, **span))
    if missing and not allow_missing:
        raise ValueError(
            f"{data_dir or 'the data'}: no raw clip for {len(missing)} of {len(jobs)} rows: {first_of(missing)}; "
            f"put the clips into `{RAW_CLIPS_FOLDER}/` there, or give their paths in a column `clip`"
        )
    return jobs


def encode_jobs(
    jobs: list[ClipJob],
    audio_encoder: AudioEncoder | None,
    video_encoder: VideoEncoder | None,
    max_audio_length: int | None = None,
    max_video_length: int | None = None,
) -> list[EncodedClip]:
    """Encode a few clips together; frames are decoded as they are encoded.

    Args:
        jobs (`list[ClipJob]`): The clips.
        audio_encoder ([`AudioEncoder`], *optional*): None leaves the modality out.
        video_encoder ([`VideoEncoder`], *optional*): None leaves the modality out.
        max_audio_length (`int`, *optional*): Features to keep.
        max_video_length (`int`, *optional*): Features to keep.

    Returns:
        `list[EncodedClip]`: In the order of `jobs`. A clip that cannot be read has its `error` set and does not affect
        the others.
    """
    results = [EncodedClip(job, error=None if job.audio or job.video else "the row has no clip") for job in jobs]
    if audio_encoder is not None:
        sounds = [_sound(result, audio_encoder, max_audio_length) for result in results]
        for result, features in zip(results, audio_encoder(sounds), strict=True):
            result.audio = features[:max_audio_length]
    if video_encoder is not None:
        clips = [_frames(result, video_encoder, max_video_length) for result in results]
        for result, features in zip(results, video_encoder(clips), strict=True):
            result.video = features[:max_video_length]
    return results


def _sound(result: EncodedClip, encoder: AudioEncoder, limit: int | None) -> np.ndarray:
    job = result.job
    try:
        if job.audio is not None:
            return sound_for(job.audio, encoder, limit, job.start, job.end)
    except ClipError as error:
        result.error = str(error)
    return np.zeros(0, dtype=np.float32)


def _frames(result: EncodedClip, encoder: VideoEncoder, limit: int | None) -> Iterator[np.ndarray]:
    job = result.job
    if job.video is None or result.error is not None:
        return
    try:
        yield from frames_for(job.video, encoder, limit, job.start, job.end)
    except ClipError as error:
        result.error = str(error)


def add_clip_features(
    dataset: datasets.DatasetDict,
    audio_encoder: str | None = None,
    video_encoder: str | None = None,
    data_dir: str | Path | None = None,
    audio_encoder_layer: int | None = None,
    video_frame_rate: float | None = None,
    max_audio_length: int | None = None,
    max_video_length: int | None = None,
    device: str | torch.device | None = None,
    on_error: str = "raise",
    failures: dict[str, str] | None = None,
) -> datasets.DatasetDict:
    """Add the columns `audio_features` and `video_features`, made from the raw clips.

    The result is cached with the data set: the same clips, encoders and limits are not encoded again; a clip that has
    changed is noticed. For thousands of clips, `FeatureExtraction` does the same in parallel and resumes.

    Args:
        dataset (`datasets.DatasetDict`): What [`load_mintrec`] returns.
        audio_encoder (`str`, *optional*): As in [`AMESSConfig`]; `None` leaves the modality out.
        video_encoder (`str`, *optional*): The same for video.
        data_dir (`str` or `Path`, *optional*): Where to look for the clips of rows without a path.
        audio_encoder_layer (`int`, *optional*): As in [`AMESSConfig`].
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        max_audio_length (`int`, *optional*): Features to keep; no more of a clip is decoded.
        max_video_length (`int`, *optional*): The same for video.
        device (`str` or `torch.device`, *optional*): Where the encoders run, by default a GPU if there is one.
        on_error (`str`): `"raise"` at a clip that cannot be used, or `"skip"` it: the row is left out, with a warning.
        failures (`dict[str, str]`, *optional*): Filled with {clip id: why it could not be used} for the rows left out.

    Returns:
        `datasets.DatasetDict`: With the columns, `float32` of shape `(frames, width)`.

    Raises:
        ValueError: If a row has no clip, a clip cannot be used, an encoder cannot be loaded, or a split has no usable
        clip.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` is {on_error!r}; choose raise or skip")
    if audio_encoder is None and video_encoder is None:
        return dataset
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    audio = None if audio_encoder is None else load_audio_encoder(audio_encoder, device, layer=audio_encoder_layer)
    video = None if video_encoder is None else load_video_encoder(video_encoder, video_frame_rate, device)
    limits = {"max_audio_length": max_audio_length, "max_video_length": max_video_length}
    encoded, unusable = {}, {}
    for name, split in dataset.items():
        paths = split.select_columns([column for column in JOB_COLUMNS if column in split.column_names])
        jobs = clip_jobs(paths.with_format(None), data_dir, allow_missing=on_error == "skip")
        encoded[name] = _encode_split(split, name, jobs, audio, video, limits, on_error, unusable)
    if unusable:
        logger.warning(
            f"{len(unusable)} clips cannot be used and are left out: "
            + first_of([f"{clip} ({reason})" for clip, reason in unusable.items()])
        )
    if failures is not None:
        failures.update(unusable)
    return with_feature_arrays(datasets.DatasetDict(encoded))


def _encode_split(
    split: datasets.Dataset,
    name: str,
    jobs: list[ClipJob],
    audio: AudioEncoder | None,
    video: VideoEncoder | None,
    limits: dict[str, int | None],
    on_error: str,
    failures: dict[str, str],
) -> datasets.Dataset:
    """Add the features of a split; rows that cannot be encoded are left out and noted in `failures`."""
    encoders = {key: encoder for key, encoder in (("audio", audio), ("video", video)) if encoder is not None}
    features = split.features.copy()
    for modality, encoder in encoders.items():
        features[f"{modality}_features"] = datasets.Array2D((None, encoder.feature_size), "float32")
    features[ERROR_COLUMN] = datasets.Value("string")

    begun = []

    def encode(_: Any, rows: list[int]) -> dict[str, list[Any]]:
        begun.append(rows)
        clips = encode_jobs([jobs[row] for row in rows], audio, video, **limits)
        for clip in clips:
            if clip.error is not None and on_error == "raise":
                raise ValueError(f"clip {clip.job.id}: {clip.error}; `on_error` skip continues without it")
        columns = {f"{modality}_features": [getattr(clip, modality) for clip in clips] for modality in encoders}
        return {**columns, ERROR_COLUMN: [clip.error for clip in clips]}

    files = {Path(path) for job in jobs for path in (job.audio, job.video) if path is not None}
    names = [
        (key, _loaded_version(encoder), encoder.frame_rate, encoder.feature_size) for key, encoder in encoders.items()
    ]
    state = [split._fingerprint, repr(jobs), fingerprint(filter(Path.is_file, files)), names, sorted(limits.items())]
    encode_rows = partial(
        split.with_format(None).map,
        encode,
        with_indices=True,
        batched=True,
        batch_size=CLIPS_PER_BATCH,
        writer_batch_size=CLIPS_PER_BATCH,
        features=features,
        desc=f"Encoding the clips of {name}",
        new_fingerprint=Hasher.hash([*state, getattr(audio, "layer", None), on_error]),
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
    return _leave_out(encoded, name, failures)


def _leave_out(encoded: datasets.Dataset, name: str, failures: dict[str, str]) -> datasets.Dataset:
    """Return the clips that could be read, and note the others in `failures`."""
    errors = encoded[ERROR_COLUMN]
    bad = {clip_id: error for clip_id, error in zip(encoded["id"], errors, strict=True) if error is not None}
    encoded = encoded.remove_columns(ERROR_COLUMN)
    if not bad:
        return encoded
    if len(bad) == len(encoded):
        raise ValueError(f"none of the clips of {name} can be used: {first_of(list(bad.values()))}")
    failures |= bad
    return encoded.select([row for row, error in enumerate(errors) if error is None])


def encoder_version(name: str) -> str:
    """Return the name of an encoder, with a digest of the files for one in a local folder: its weights may change."""
    folder = Path(name).expanduser()
    return f"{name} {fingerprint([folder])}" if folder.is_dir() else name


def _loaded_version(encoder: AudioEncoder | VideoEncoder) -> tuple[str, str | None]:
    """Return what distinguishes a loaded encoder from another with the same name: its folder, or its commit on the Hub."""
    config = getattr(getattr(encoder, "model", None), "config", None)
    return encoder_version(encoder.name), getattr(config, "_commit_hash", None)
