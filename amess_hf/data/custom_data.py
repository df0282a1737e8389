"""Custom data: `train.csv` (or tsv, jsonl, parquet) with columns `text` and `label`."""

import unicodedata
from pathlib import Path
from typing import Any

from ..configuration_amess import FEATURE_MODALITIES, OUT_OF_SCOPE_LABEL
from .annotations import Clip, need_columns, need_text, optional_fields, read_rows


# Columns with paths, relative to the folder of the table.
CLIP_COLUMNS = ("clip", "video", "audio")
FEATURE_COLUMNS = tuple(f"{modality}_features" for modality in FEATURE_MODALITIES)


def read_custom_table(path: Path, split: str, allow_missing_clips: bool = False) -> list[Clip]:
    """Read a table of custom data.

    Columns: `text`, `label`; optionally `id`, those of `annotations.OPTIONAL_FIELDS`, `clip`, `video`, `audio` (paths
    of raw clips) and `audio_features`, `video_features` (paths of `.npy` files [frames, dim]). Paths are relative to
    the folder of the table. A clip without id is named after its split and row. In a table that `datasets` wrote,
    `label` is a number and the column `label_name` has the name.

    Args:
        path (`Path`): The table: tsv, csv, jsonl or parquet.
        split (`str`): Its split, for the ids of clips without one.
        allow_missing_clips (`bool`): Keep the paths of raw clips that do not exist; otherwise they are an error.

    Raises:
        ValueError: If a column is missing, a label is empty or -1, a cell holds several values, or a file is missing.
    """
    clips = []
    for number, (where, row) in enumerate(read_rows(path)):
        if not clips:
            need_columns(path, row, ("text", "label"))
        label = need_text(row, "label_name" if "label_name" in row else "label", where)
        if not label or label == "-1":
            found = "the label -1, which means out of scope only next to `label_name`" if label else "no label"
            raise ValueError(f"{where}: {found}; fill the cell, with {OUT_OF_SCOPE_LABEL} for an out-of-scope clip")
        clip_id = need_text(row, "id", where) or f"{split}-{number}"
        if not clip_id.isprintable():
            raise ValueError(f"{where}: `id` {ascii(clip_id[:40])} has invisible characters; give another")
        fields = optional_fields(row, where)
        for column in (*CLIP_COLUMNS, *FEATURE_COLUMNS):
            if row.get(column) not in (None, ""):
                optional = allow_missing_clips and column in CLIP_COLUMNS
                fields[column] = _resolve(row[column], column, path, where, optional)
        clips.append(Clip(clip_id, need_text(row, "text", where), label, where, fields))
    return clips


def _resolve(value: Any, column: str, table: Path, where: str, optional: bool) -> Path:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(
            f"{where}: `{column}` holds a {type(value).__name__}, not a path; "
            "a table that holds the features themselves loads with `datasets.load_dataset`"
        )
    path = table.parent / value
    if not path.is_file() and not optional:
        raise ValueError(f"{where}: `{column}` {value} does not exist; correct the path")
    return path.resolve()


def label_names(clips: list[Clip]) -> list[str]:
    """Return the labels of in-scope clips, sorted.

    Raises:
        ValueError: If two labels look the same.
    """
    names: dict[str, str] = {}
    for clip in clips:
        if clip.label.casefold() != OUT_OF_SCOPE_LABEL.casefold():
            name = names.setdefault(_as_seen(clip.label), clip.label)
            if name != clip.label:
                raise ValueError(
                    f"{clip.where}: labels {ascii(name)} and {ascii(clip.label)} differ in case or invisible "
                    "characters only; write one of them"
                )
    return sorted(names.values())


def _as_seen(label: str) -> str:
    """Normalise a label to what a reader sees: without case, invisible characters, and kinds and numbers of spaces."""
    visible = [part for part in label if part.isspace() or unicodedata.category(part) not in ("Cc", "Cf")]
    return " ".join(unicodedata.normalize("NFC", "".join(visible)).casefold().split())
