"""A folder of one's own data: `train.csv` (or tsv, jsonl, parquet) with columns `text` and `label`."""

from pathlib import Path
from typing import Any

import numpy as np

from ..constants_amess import OUT_OF_SCOPE_LABEL
from .annotations import Clip, as_text, need_columns, optional_fields, read_csv, read_jsonl, read_parquet, read_tsv
from .feature_files import as_frames


READERS = {".tsv": read_tsv, ".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}

# Columns with paths, relative to the folder.
CLIP_COLUMNS = ("clip", "video", "audio")
FEATURE_COLUMNS = ("audio_features", "video_features")


def read_folder_table(path: Path, split: str) -> list[Clip]:
    """Read a table of one's own data.

    Columns: `text`, `label`; where wanted `id`, those of [`OPTIONAL_FIELDS`], `clip`, `video`, `audio` (paths of raw
    clips) and `audio_features`, `video_features` (paths of `.npy` files [frames, dim]). Paths are relative to the
    folder of the table. A clip without id is called after its split and row. In a table that `datasets` wrote, `label`
    is a number, and `label_name` beside it counts.

    Raises:
        ValueError: If a column is missing, a label is empty, or a path leads nowhere.
    """
    clips = []
    for number, (where, row) in enumerate(READERS[path.suffix](path)):
        if not clips:
            need_columns(path, row, ("text", "label"))
        label = as_text(row.get("label_name", row["label"]))
        if not label:
            raise ValueError(f"{where}: no label; fill the cell, with UNK for an out-of-scope clip.")
        clip_id = as_text(row.get("id")) or f"{split}-{number}"
        fields = optional_fields(row, where)
        for column in (*CLIP_COLUMNS, *FEATURE_COLUMNS):
            if row.get(column) not in (None, ""):
                fields[column] = _resolve(row[column], column, path, where)
        clips.append(Clip(clip_id, as_text(row["text"]), label, where, fields))
    return clips


def _resolve(value: Any, column: str, table: Path, where: str) -> Path:
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: `{column}` holds a {type(value).__name__}, not a path; "
            "a table that holds the features themselves loads with datasets.load_dataset."
        )
    path = table.parent / value
    if not path.is_file():
        raise ValueError(f"{where}: `{column}` {value} is not there; correct the path.")
    return path.resolve()


def label_names(clips: list[Clip]) -> list[str]:
    """Return the labels of in-scope clips, sorted.

    Raises:
        ValueError: If two labels differ in case only.
    """
    names: dict[str, str] = {}
    for clip in clips:
        if clip.label.casefold() != OUT_OF_SCOPE_LABEL.casefold():
            name = names.setdefault(clip.label.casefold(), clip.label)
            if name != clip.label:
                raise ValueError(
                    f"{clip.where}: labels {name!r} and {clip.label!r} differ in case only; write one of them."
                )
    return sorted(names.values())


class NumpyFeatures:
    """Features of clips that have a `.npy` file each, read on demand.

    Args:
        paths: {clip: path of a `.npy` file [frames, dim]}; a clip goes by any name, as that of its row.

    Attributes:
        feature_size: Width of the features, None if no clip has a frame.
    """

    def __init__(self, paths: dict[str, Path]):
        self.paths = paths
        shapes = (self._load(clip_id).shape for clip_id in paths)
        self.feature_size = next((shape[1] for shape in shapes if shape[0]), None)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.paths

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        frames = np.array(self._load(clip_id), dtype=np.float32)
        if not len(frames):
            return np.empty((0, self.feature_size or 0), np.float32)
        if frames.shape[1] != self.feature_size:
            path = self.paths[clip_id]
            raise ValueError(
                f"{path}: clip {clip_id} is {frames.shape[1]} wide, other clips are {self.feature_size} wide."
            )
        return frames

    def _load(self, clip_id: str) -> np.ndarray:
        path = self.paths[clip_id]
        try:
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable .npy file of numbers ({error}).") from None
        return as_frames(frames, clip_id, path)
