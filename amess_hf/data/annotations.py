"""Annotation tables: rows of MIntRec, of MIntRec2.0 and of custom data, as one kind of record.

[`read_annotations`] is the door: what it returns has known labels, unique ids and valid times.
"""

import csv
import difflib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from ..configuration_amess import CLIP_SUFFIXES, FEATURE_MODALITIES, OUT_OF_SCOPE_LABEL
from ..datasets_amess import DatasetSpec
from .errors import first_line, first_of, require


logger = logging.get_logger(__name__)

# Columns of custom data with paths, relative to the folder of the table.
CLIP_COLUMNS = ("clip", "video", "audio")
FEATURE_COLUMNS = tuple(f"{modality}_features" for modality in FEATURE_MODALITIES)

# Fields that only some sources have, and the columns (lower case) that hold them.
OPTIONAL_FIELDS = {
    "speaker": ("speakername", "speaker"),
    "source": ("source",),
    "dialogue_id": ("dialogue_id",),
    "utterance_id": ("utterance_id",),
}
SPAN_FIELDS = {"start": ("start_timestamp", "start"), "end": ("end_timestamp", "end")}

# A row may have this many empty cells beyond the header, as spreadsheets write them.
MOST_EXTRA_CELLS = 16

# A compressed table may expand to this many times its size; text expands to about ten times.
TABLE_UNFOLD_LIMIT = 100
TABLE_UNFOLD_SLACK = 64 * 2**20


@dataclass
class Clip:
    """One row of an annotation table.

    Attributes:
        id (`str`): Clip id, the key of the clip in feature files.
        text (`str`): What is said; may be empty.
        label (`str`): Name of the intent, spelled as in the label list, or `"UNK"`.
        where (`str`): File and line, for error messages.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        fields (`dict[str, Any]`): Further fields of the table: speaker, source, dialogue_id, utterance_id, start and
            end (seconds), and for custom data the paths of its files.
        context (`list[str]`): Earlier turns of the dialogue, oldest first, each `"speaker: text"`.
    """

    id: str
    text: str
    label: str
    where: str
    split: str
    fields: dict[str, Any] = field(default_factory=dict)
    context: list[str] = field(default_factory=list)

    @property
    def in_scope(self) -> bool:
        """Whether the clip has one of the known intents."""
        return self.label != OUT_OF_SCOPE_LABEL


def read_annotations(
    tables: list[tuple[str, Path]],
    spec: DatasetSpec | None,
    scope: str = "in",
    context_turns: int = 0,
    turn_tables: dict[str, Path] | None = None,
    on_error: str = "raise",
) -> tuple[dict[str, list[Clip]], list[str]]:
    """Read the tables of a data set and check them.

    Args:
        tables (`list[tuple[str, Path]]`): (split, table).
        spec ([`DatasetSpec`], *optional*): The data set; None for custom data.
        scope (`str`): `"in"`, `"out"` or `"all"`.
        context_turns (`int`): Earlier turns of the dialogue to give each clip.
        turn_tables (`dict[str, Path]`, *optional*): {split: table} with further turns.
        on_error (`str`): See [`read_clips`].

    Returns:
        `tuple[dict[str, list[Clip]], list[str]]`: The clips by split, without empty splits, and the label names.

    Raises:
        ValueError: If anything is wrong with a table, naming file and row.
    """
    clips = [clip for split, path in tables for clip in read_clips(path, split, spec, on_error)]
    labels = spec.labels if spec else _label_names(clips)
    _resolve_labels(clips, labels)
    splits = {}
    for split in dict.fromkeys(split for split, _ in tables):
        members = [clip for clip in clips if clip.split == split]
        _check_unique(members)
        if context_turns:
            turn_table = (turn_tables or {}).get(split)
            turns = read_clips(turn_table, split, spec) if turn_table else []
            _add_context(members, turns + members, context_turns)
        members = [clip for clip in members if scope == "all" or clip.in_scope == (scope == "in")]
        splits |= {split: members} if members else {}
    places = first_of([str(path) for _, path in tables])
    require(clips, f"{places}: no row below the header; fill the table")
    require(splits, f"{places}: no clip of scope={scope!r}; choose another `scope`")
    _warn_of_shared_ids(splits)
    _warn_of_unseen_labels(splits)
    if spec is None:
        _warn_of_repeated_texts(splits)
    return splits, labels


def read_clips(path: Path, split: str, spec: DatasetSpec | None = None, on_error: str = "raise") -> list[Clip]:
    """Read one table.

    Custom data has the columns `text`, `label`; optionally `id`, those of `OPTIONAL_FIELDS` and `SPAN_FIELDS`, `clip`,
    `video`, `audio` (paths of raw clips) and `audio_features`, `video_features` (paths of `.npy` files [frames, dim]).
    Paths are relative to the folder of the table. A clip without id is named after its split and row. In a table that
    `datasets` wrote, `label` is a number and the column `label_name` has the name.

    Args:
        path (`Path`): The table: tsv, csv, jsonl or parquet.
        split (`str`): Its split.
        spec ([`DatasetSpec`], *optional*): The data set; None for custom data.
        on_error (`str`): `"raise"` where a raw clip does not exist, or `"skip"`: its path is kept, and the clip is left
            out when it is encoded.

    Raises:
        ValueError: If a column is missing or seems misspelt, a label is empty or -1, a cell holds several values, or
            files are missing.
    """
    clips: list[Clip] = []
    missing_files: list[str] = []
    for number, (where, row) in enumerate(read_rows(path)):
        missing = [column for column in (*(spec.id_columns if spec else ()), "text", "label") if column not in row]
        found = first_of([" ".join(column.split())[:40] for column in row], most=20) if missing else ""
        own = "" if spec is None or {*missing} & {"text", "label"} else "; `name='folder'` reads tables of your own"
        require(not missing, f"{path}: no column {', '.join(missing)}; its header names {found}{own}")
        fields = {name: as_text(value) for name, value in _cells(row, OPTIONAL_FIELDS).items()}
        fields |= read_span(row, where)
        if spec is None:
            clip_id, label = _own_id(row, where) or f"{split}-{number}", _own_label(row, where)
            if number == 0:
                _check_columns(row, path)
            fields |= _own_files(row, path, where, on_error, missing_files)
        else:
            clip_id, label = spec.id_format.format(**row), as_text(row["label"])
        clips.append(Clip(clip_id, _cell_text(row, "text", where), label, where, split, fields))
    others = f", and {len(missing_files) - 1} more files of the table do not" if len(missing_files) > 1 else ""
    next_step = "correct the paths, or leave such clips out with `on_error` (`--on_error`) skip"
    require(not missing_files, f"{''.join(missing_files[:1])} does not exist{others}; {next_step}")
    return clips


# Rows


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`"file:line"`, {lower-case column: value}) for a csv, tsv, jsonl or parquet table.

    Raises:
        ValueError: If the table is of another kind, or a row cannot be read; the message names file and line.
    """
    require(path.suffix in READERS, f"{path}: not a {', '.join(READERS)} table")
    for line, cells in READERS[path.suffix](path):
        where, row = f"{path}:{line}", {}
        for column, value in cells:
            name = column.strip().lower()
            twice = f"{where}: the column {column!r} appears twice; remove or rename one of them"
            require(name not in row or not name, twice)
            row[name] = value
        yield where, row


def _read_separated(path: Path, **options: Any) -> Iterator[tuple[int, Iterable[tuple[str, str]]]]:
    """Read the cells as text, whatever they look like; the last line of a row stands for it."""
    with path.open("rb") as file:
        first = file.readline().decode("utf-8-sig", "replace")
    # Spreadsheets write what they call comma-separated with semicolons or tabs too.
    options = {"sep": max(",;\t", key=first.count)} | options
    options |= {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    options["names"] = range(first.count(options["sep"]) + 1 + MOST_EXTRA_CELLS)
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
    try:
        # This engine gives no cell where a row has none.
        rows = pd.read_csv(path, encoding="utf-8-sig", engine="python", **options).to_numpy().tolist()
    except pd.errors.EmptyDataError:
        return
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise ValueError(f"{path}: {first_line(error)}; correct the row") from None
    line, header = 0, []
    for row in rows:
        cells = [cell for cell in row if cell == cell]
        line += 1 + sum(cell.count("\n") for cell in cells)
        filled = max((number for number, cell in enumerate(cells, 1) if cell.strip()), default=0)
        del cells[max(filled, len(header)) if filled else 0 :]
        header = header or cells
        if cells and cells is not header:
            found = f"{path}:{line}: {len(cells)} cells, but the header names {len(header)}; correct the row"
            require(len(cells) == len(header), found)
            yield line, zip(header, cells, strict=True)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Iterable[tuple[str, Any]]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once_each)
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not a JSON object ({first_line(error)}); correct the line") from None
            found = f"{where}: a JSON {type(row).__name__}, not an object with columns; correct the line"
            require(isinstance(row, dict), found)
            yield number, row.items()


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of a JSON object, with unique names and encodable texts."""
    for text in (text for pair in pairs for text in pair if isinstance(text, str)):
        text.encode()
    names = [name for name, _ in pairs]
    require(len(set(names)) == len(names), "a name appears twice")
    return dict(pairs)


def _read_parquet(path: Path) -> Iterator[tuple[int, Iterable[tuple[str, Any]]]]:
    try:
        with pq.ParquetFile(path) as table:
            groups = [table.metadata.row_group(group) for group in range(table.metadata.num_row_groups)]
            _check_unfolding(path, sum(group.total_byte_size for group in groups), table.metadata.num_rows)
            unfolded = number = 0
            # Few rows at a time: a table may hold features.
            for batch in table.iter_batches(batch_size=64):
                unfolded += batch.nbytes
                _check_unfolding(path, unfolded, number)
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, zip(batch.schema.names, cells, strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _check_unfolding(path: Path, unfolded: int, rows: int) -> None:
    """Raise `ValueError` for a compressed table that is far larger than its file, or has more rows than its file has bytes."""
    size = path.stat().st_size
    require(
        unfolded <= TABLE_UNFOLD_LIMIT * size + TABLE_UNFOLD_SLACK and rows <= size,
        f"{path}: a table of {size} bytes expands to {unfolded} bytes and {rows} rows or more; refused as a "
        "decompression bomb",
    )


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Iterable[tuple[str, Any]]]]]] = {
    ".csv": partial(_read_separated, skipinitialspace=True),
    # The official tables are not quoted; a comma-separated table is quoted as spreadsheets do.
    ".tsv": partial(_read_separated, sep="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


# Cells


def as_text(value: Any) -> str:
    """Return a cell as stripped text; `None` and NaN (pandas' empty cell) become empty text, 0 is a value."""
    return "" if value is None or value != value else str(value).strip()


def read_span(row: dict[str, Any], where: str) -> dict[str, float | None]:
    """Return `start` and `end` of a clip in seconds, as far as `row` has them.

    Raises:
        ValueError: If one is not a time, or the clip would end before it starts; the message begins with `where`.
    """
    span = {name: _seconds(value, where) for name, value in _cells(row, SPAN_FIELDS).items()}
    start, end = span.get("start"), span.get("end")
    ordered = start is None or end is None or start <= end
    require(ordered, f"{where}: `start` {start or 0:g} s is after `end` {end or 0:g} s; correct the cells")
    return span


def _cells(row: dict[str, Any], fields: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the cells of `fields`; the first of a field's columns that `row` has counts."""
    return {name: row[column] for name, columns in fields.items() for column in reversed(columns) if column in row}


def _seconds(value: Any, where: str) -> float | None:
    """Return seconds from a number, from `00:01:02,345`, or None for an empty cell."""
    if not as_text(value):
        return None
    seconds = 0.0
    try:
        for part in str(value).replace(",", ".").split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError:
        seconds = math.nan
    found = f"{where}: {str(value)[:40]!r} is not a time; write seconds or hh:mm:ss,mmm"
    require(0 <= seconds < math.inf, found)
    return seconds


def _cell_text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    found = f"{where}: `{column}` holds a {type(value).__name__}, not text; write one value"
    require(not isinstance(value, (list, dict, bytes)), found)
    return as_text(value)


def _own_id(row: dict[str, Any], where: str) -> str:
    clip_id = _cell_text(row, "id", where)
    found = f"{where}: `id` {ascii(clip_id[:40])} has invisible characters; give another"
    require(clip_id.isprintable(), found)
    return clip_id


def _own_label(row: dict[str, Any], where: str) -> str:
    label = _cell_text(row, "label_name" if "label_name" in row else "label", where)
    found = "the label -1, which means out of scope only next to `label_name`" if label else "no label"
    next_step = f"fill the cell, with {OUT_OF_SCOPE_LABEL} for an out-of-scope clip"
    require(label not in ("", "-1"), f"{where}: {found}; {next_step}")
    return label


def _check_columns(row: dict[str, Any], table: Path) -> None:
    """Raise `ValueError` if a column that is not read seems to be one of files under another name."""
    paths = (*CLIP_COLUMNS, *FEATURE_COLUMNS)
    absent = [column for column in paths if column not in row]
    suffixes = () if len(absent) < len(paths) else (*CLIP_SUFFIXES, ".npy")
    for column in row.keys() - {"id", "text", "label", "label_name", *paths, *OPTIONAL_FIELDS, *SPAN_FIELDS}:
        near = difflib.get_close_matches(column, absent, n=1, cutoff=0.8)
        is_path = str(row[column]).strip().lower().endswith(suffixes)
        wanted = near[0] if near else ", ".join(paths)
        require(
            not near and not is_path,
            f"{table}: the column {column!r} is not read; rename it to {wanted}, or remove it",
        )


def _own_files(
    row: dict[str, Any], table: Path, where: str, on_error: str, missing_files: list[str]
) -> dict[str, Path]:
    """Return {column: path}; note files that do not exist in `missing_files`."""
    files = {}
    for column in (*CLIP_COLUMNS, *FEATURE_COLUMNS):
        value = row.get(column)
        if value in (None, ""):
            continue
        found = f"{where}: `{column}` holds a {type(value).__name__}, not a path"
        next_step = "a table that holds the features themselves loads with `datasets.load_dataset`"
        require(isinstance(value, str) and "\0" not in value, f"{found}; {next_step}")
        path = table.parent / value.strip()
        is_address = f"{where}: `{column}` {value.strip()} is a web address; download the file and give its path"
        require("://" not in value, is_address)
        may_miss = on_error == "skip" and column in CLIP_COLUMNS
        missing_files += [] if may_miss or path.is_file() else [f"{where}: `{column}` {value.strip()}"]
        files[column] = Path(os.path.realpath(path))
    return files


# Labels and ids


def _label_names(clips: list[Clip]) -> list[str]:
    """Return the labels of in-scope clips, sorted.

    Raises:
        ValueError: If two labels look the same.
    """
    names: dict[str, str] = {}
    for clip in clips:
        if clip.label.casefold() != OUT_OF_SCOPE_LABEL.casefold():
            name = names.setdefault(_as_seen(clip.label), clip.label)
            found = f"{clip.where}: labels {ascii(name)} and {ascii(clip.label)} differ in case or invisible"
            require(name == clip.label, f"{found} characters only; write one of them")
    return sorted(names.values())


def _as_seen(label: str) -> str:
    """Normalize a label to what a reader sees: without case, invisible characters, and kinds and numbers of spaces."""
    visible = [part for part in label if part.isspace() or unicodedata.category(part) not in ("Cc", "Cf")]
    return " ".join(unicodedata.normalize("NFC", "".join(visible)).casefold().split())


def _resolve_labels(clips: list[Clip], labels: Sequence[str]) -> None:
    """Give every clip its label in the spelling of `labels`, matched without case.

    Raises:
        ValueError: For the first clip with a label that is neither in `labels` nor `UNK`.
    """
    spelling = {name.casefold(): name for name in (*labels, OUT_OF_SCOPE_LABEL)}
    for clip in clips:
        if clip.label.casefold() not in spelling:
            nearest = spelling[difflib.get_close_matches(clip.label.casefold(), spelling, n=1, cutoff=0.0)[0]]
            raise ValueError(
                f"{clip.where}: unknown label {clip.label!r} of clip {clip.id}; the nearest known one is {nearest!r}"
            )
        clip.label = spelling[clip.label.casefold()]


def _check_unique(clips: list[Clip]) -> None:
    """Raise `ValueError` if two clips of one split have the same id."""
    seen: dict[str, str] = {}
    for clip in clips:
        first = seen.setdefault(clip.id, clip.where)
        found = f"{clip.where}: clip id {clip.id} appears again, first at {first}; remove one of the rows"
        require(first == clip.where, found)


def _warn_of_unseen_labels(splits: dict[str, list[Clip]]) -> None:
    """Warn if clips have a label that no training clip has: a model cannot have learned it."""
    seen = {clip.label for clip in splits.get("train", [])} | {OUT_OF_SCOPE_LABEL}
    for split, clips in splits.items():
        unseen = sorted({clip.label for clip in clips} - seen)
        if unseen and "train" in splits:
            logger.warning(f"no model can answer with labels of {split} that train lacks: {first_of(unseen)}")


def _warn_of_shared_ids(splits: dict[str, list[Clip]]) -> None:
    """Warn if clips of two splits have the same id: either the same clip, or two that feature files cannot tell apart."""
    first: dict[str, str] = {}
    shared = [
        clip.id for split, clips in splits.items() for clip in clips if first.setdefault(clip.id, split) != split
    ]
    if shared:
        logger.warning(
            f"{len(shared)} clip ids occur in more than one split: {first_of(shared)}; "
            "evaluation may include training clips, and feature files have one entry for both"
        )


def _warn_of_repeated_texts(splits: dict[str, list[Clip]]) -> None:
    """Warn of texts with several labels, and of texts that another split shares with training."""
    labels: dict[str, dict[str, set[str]]] = {}
    for split, clips in splits.items():
        found = labels.setdefault(split, {})
        for clip in clips:
            found.setdefault(" ".join(clip.text.casefold().split()), set()).add(clip.label)
        found.pop("", None)
        several = [f"{text!r} ({', '.join(sorted(names))})" for text, names in found.items() if len(names) > 1]
        shared = [] if split == "train" else [repr(text) for text in found if text in labels.get("train", {})]
        for texts, problem in ((several, "have several labels"), (shared, "are in train too")):
            if texts:
                logger.warning(f"{len(texts)} texts of {split} {problem}: {first_of(texts, 3)}")


# Dialogues


def _add_context(clips: list[Clip], turns: list[Clip], context_turns: int) -> None:
    """Give every clip the last `context_turns` turns of its dialogue before it, oldest first.

    Turns are ordered by `utterance_id`, whatever their order in the file. Turns that are not in the table are
    skipped, so the context reaches further back where an utterance in between is missing. A clip whose dialogue_id is
    empty belongs to no dialogue and gets none.
    """
    dialogues: dict[str, dict[int, Clip]] = {}
    for turn in filter(_in_dialogue, turns):
        dialogue_id, position = _place(turn)
        dialogues.setdefault(dialogue_id, {})[position] = turn
    for clip in filter(_in_dialogue, clips):
        dialogue_id, position = _place(clip)
        dialogue = dialogues[dialogue_id]
        earlier = sorted(other for other in dialogue if other < position)[-context_turns:]
        clip.context = [_spoken(dialogue[other]) for other in earlier]


def _in_dialogue(clip: Clip) -> bool:
    return clip.fields.get("dialogue_id") != ""


def _place(clip: Clip) -> tuple[str, int]:
    dialogue_id, utterance_id = clip.fields.get("dialogue_id"), clip.fields.get("utterance_id")
    found = f"{clip.where}: `context_turns` needs the columns dialogue_id and utterance_id; leave `context_turns` at 0"
    require(None not in (dialogue_id, utterance_id), found)
    try:
        return dialogue_id, int(utterance_id)
    except ValueError:
        raise ValueError(f"{clip.where}: utterance_id {utterance_id!r} is not an integer; correct the cell") from None


def _spoken(clip: Clip) -> str:
    speaker = clip.fields.get("speaker")
    return f"{speaker}: {clip.text}" if speaker else clip.text
