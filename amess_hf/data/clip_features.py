"""From raw clips to feature columns: training from clips in one command, and the work of `extract_features.py`."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..clips_amess import ClipError
from ..constants_amess import CLIP_SUFFIXES
from ..encoders_amess import (
    AudioEncoder,
    VideoEncoder,
    frames_for,
    load_audio_encoder,
    load_video_encoder,
    sound_for,
)


logger = logging.get_logger(__name__)

# Clips encoded together: enough to fill a batch of a frozen encoder, few enough to hold their sound in memory.
CLIPS_PER_BATCH = 16
# Columns of a row that say where its clip is.
JOB_COLUMNS = ("id", "clip", "audio", "video", "start", "end", "dialogue_id")


@dataclass
class ClipJob:
    """
    A clip to encode.

    Attributes:
        id (`str`): Clip id.
        sound, picture (`str`, *optional*): Path of the file whose sound, or picture, is wanted; mostly the same.
        start, end (`float`, *optional*): Span in seconds.
    """

    id: str
    sound: str | None
    picture: str | None
    start: float | None = None
    end: float | None = None


@dataclass
class EncodedClip:
    """
    Features of a clip, or what went wrong.

    Attributes:
        job ([`ClipJob`]): The clip.
        audio, video (`np.ndarray`, *optional*): `(frames, width)`; `None` for a modality without encoder.
        error (`str`, *optional*): Why the clip could not be read.
    """

    job: ClipJob
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    error: str | None = None


def find_clips(data_dir: str | Path) -> dict[str, Path]:
    """
    Clips anywhere below a folder, by clip id.

    A name with an underscore is the id (`dia0_utt3.mp4`); otherwise the names of its last two folders go before it, as in
    MIntRec (`S05/E16/329.mp4` is `S05_E16_329`).
    """
    clips = {}
    for path in sorted(Path(data_dir).rglob("*")):
        if path.suffix.lower() in CLIP_SUFFIXES:
            parts = path.relative_to(data_dir).with_suffix("").parts
            clips[parts[-1] if "_" in parts[-1] else "_".join(parts[-3:])] = path
    return clips


def clip_jobs(rows: Iterable[dict[str, Any]], data_dir: str | Path | None = None) -> list[ClipJob]:
    """
    What to read for each row of a data set.

    Args:
        rows: Rows with `id` and, where known, the paths `clip`, `audio`, `video`. `start` and `end` are a span of the
            file, unless the row has a `dialogue_id`: then they are times of the episode it was cut from (MIntRec2.0).
        data_dir (*optional*): Where to look for the clips of rows without a path.

    Raises:
        ValueError: Rows without a clip; they are listed.
    """
    found: dict[str, Path] | None = None
    jobs, missing = [], []
    for row in rows:
        path = row.get("clip")
        sound, picture = row.get("audio") or path, row.get("video") or path
        if sound is None and picture is None and data_dir is not None:
            found = find_clips(data_dir) if found is None else found
            sound = picture = str(found[row["id"]]) if row["id"] in found else None
        if sound is None and picture is None:
            missing.append(row["id"])
        span = {} if row.get("dialogue_id") is not None else {"start": row.get("start"), "end": row.get("end")}
        jobs.append(ClipJob(row["id"], sound, picture, **span))
    if missing:
        more = ", ..." if len(missing) > 8 else ""
        raise ValueError(
            f"{data_dir or 'the data'}: no raw clip for {len(missing)} of {len(jobs)} rows: {', '.join(missing[:8])}{more}; "
            "put the clips into `raw_data/` there, or give their paths in a column `clip`."
        )
    return jobs


def encode_jobs(
    jobs: list[ClipJob],
    audio_encoder: AudioEncoder | None,
    video_encoder: VideoEncoder | None,
    max_audio_length: int | None = None,
    max_video_length: int | None = None,
) -> list[EncodedClip]:
    """
    Features of a few clips, encoded together; frames are decoded as they are encoded. A clip that cannot be read has its
    `error` set and does not touch the others.
    """
    results = [EncodedClip(job) for job in jobs]
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
        if job.sound is not None:
            return sound_for(job.sound, encoder, limit, job.start, job.end)
    except ClipError as error:
        result.error = str(error)
    return np.zeros(0, dtype=np.float32)


def _frames(result: EncodedClip, encoder: VideoEncoder, limit: int | None) -> Iterator[np.ndarray]:
    job = result.job
    if job.picture is None or result.error is not None:
        return
    try:
        yield from frames_for(job.picture, encoder, limit, job.start, job.end)
    except ClipError as error:
        result.error = str(error)


def encoder_slug(name: str) -> str:
    """An encoder's name as the name of a file: the last part of a Hub id or path."""
    return re.sub(r"[^\w.-]+", "-", name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1])


def add_clip_features(
    dataset: datasets.DatasetDict,
    audio_encoder: str | None = None,
    video_encoder: str | None = None,
    data_dir: str | Path | None = None,
    video_frame_rate: float | None = None,
    max_audio_length: int | None = None,
    max_video_length: int | None = None,
    device: Any = None,
) -> datasets.DatasetDict:
    """
    Adds `audio_features` and `video_features` made from the raw clips.

    The result is cached beside the data set: the same clips, encoders and limits are not encoded again; a clip that has
    changed is noticed. For thousands of clips, `examples/extract_features.py` does the same in parallel and resumes.

    Args:
        dataset (`DatasetDict`): What [`load_mintrec`] returns.
        audio_encoder, video_encoder (`str`, *optional*): As in [`AMESSConfig`]; `None` leaves the modality out.
        data_dir (*optional*): Where to look for the clips of rows without a path.
        video_frame_rate (`float`, *optional*): Frames a second for the video encoder, by default its own.
        max_audio_length, max_video_length (`int`, *optional*): Features to keep; no more of a clip is decoded.
        device (*optional*): Where the encoders run, by default a GPU if there is one.

    Returns:
        `DatasetDict` with the columns `audio_features` and `video_features`, `float32` of shape `(frames, width)`.

    Raises:
        ValueError: A row has no clip, a clip cannot be used, or an encoder cannot be loaded.
    """
    if audio_encoder is None and video_encoder is None:
        return dataset
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    audio = None if audio_encoder is None else load_audio_encoder(audio_encoder, device)
    video = None if video_encoder is None else load_video_encoder(video_encoder, video_frame_rate, device)
    limits = {"max_audio_length": max_audio_length, "max_video_length": max_video_length}
    encoded = {}
    for name, split in dataset.items():
        paths = split.select_columns([column for column in JOB_COLUMNS if column in split.column_names])
        jobs = clip_jobs(paths.with_format(None), data_dir)
        encoded[name] = split = _encode_split(split, name, jobs, audio, video, limits)
    columns = [column for column in split.features if column.endswith("_features")]
    return datasets.DatasetDict(encoded).with_format("numpy", columns=columns, output_all_columns=True)


def _encode_split(
    split: datasets.Dataset,
    name: str,
    jobs: list[ClipJob],
    audio: AudioEncoder | None,
    video: VideoEncoder | None,
    limits: dict[str, int | None],
) -> datasets.Dataset:
    encoders = {key: encoder for key, encoder in (("audio", audio), ("video", video)) if encoder is not None}
    features = split.features.copy()
    for modality, encoder in encoders.items():
        features[f"{modality}_features"] = datasets.Array2D((None, encoder.feature_size), "float32")

    def encode(_: Any, rows: list[int]) -> dict[str, list[np.ndarray]]:
        clips = encode_jobs([jobs[row] for row in rows], audio, video, **limits)
        for clip in clips:
            if clip.error is not None:
                raise ValueError(f"clip {clip.job.id}: {clip.error}")
        return {f"{modality}_features": [getattr(clip, modality) for clip in clips] for modality in encoders}

    return split.with_format(None).map(
        encode,
        with_indices=True,
        batched=True,
        batch_size=CLIPS_PER_BATCH,
        writer_batch_size=CLIPS_PER_BATCH,
        features=features,
        desc=f"Encoding the clips of {name}",
        new_fingerprint=_fingerprint(split, jobs, encoders, limits),
    )


def _fingerprint(
    split: datasets.Dataset, jobs: list[ClipJob], encoders: dict[str, Any], limits: dict[str, Any]
) -> str:
    """Changes with the rows, the clips (by size and time), the encoders, their rates and the limits."""
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(repr(asdict(job)).encode())
        for path in {job.sound, job.picture} - {None}:
            if Path(path).is_file():
                status = Path(path).stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    names = [(key, encoder.name, encoder.frame_rate, encoder.feature_size) for key, encoder in encoders.items()]
    return Hasher.hash([split._fingerprint, digest.hexdigest(), names, sorted(limits.items())])


__all__ = ["ClipJob", "EncodedClip", "add_clip_features", "clip_jobs", "encode_jobs", "encoder_slug", "find_clips"]
