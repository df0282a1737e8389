"""Annotation tables: rows of MIntRec, of MIntRec2.0 and of custom data, as one kind of record."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..configuration_amess import OUT_OF_SCOPE_LABEL
from .labels import nearest
from .safe_pickle import first_line


logger = logging.get_logger(__name__)

# The file that holds each split: official names first, then common ones.
SPLIT_FILES = {"train": ("train",), "validation": ("dev", "validation", "valid", "val"), "test": ("test",)}

# Fields that only some sources have, and the columns (lower case) that hold them.
OPTIONAL_FIELDS = {
    "speaker": ("speakername", "speaker"),
    "source": ("source",),
    "dialogue_id": ("dialogue_id",),
    "utterance_id": ("utterance_id",),
    "start": ("start_timestamp", "start"),
    "end": ("end_timestamp", "end"),
}


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
        fields (`dict[str, Any]`): Further fields of the table: speaker, source, dialogue_id, utterance_id, start and
            end (seconds), and for custom data the paths of its files.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        context (`list[str]`): Earlier turns of the dialogue, oldest first, each `"speaker: text"`.
    """

    id: str
    text: str
    label: str
    where: str
    fields: dict[str, Any] = field(default_factory=dict)
    split: str = ""
    context: list[str] = field(default_factory=list)

    @property
    def in_scope(self) -> bool:
        """Whether the clip has one of the known intents."""
        return self.label != OUT_OF_SCOPE_LABEL


def find_split_files(folder: Path, suffixes: Iterable[str] = (".tsv",)) -> dict[str, Path]:
    """Return {split: file} for the annotation tables directly in `folder`.

    Raises:
        ValueError: If there are several tables for one split.
    """
    found = {}
    for split, stems in SPLIT_FILES.items():
        paths = [folder / (stem + suffix) for stem in stems for suffix in suffixes]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise ValueError(f"{folder} holds several files for the split {split}: {names}; keep one of them")
        if paths:
            found[split] = paths[0]
    return found


def _read_separated(path: Path, **csv_options: Any) -> Iterator[tuple[str, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, **csv_options)
        try:
            header = next(rows, [])
            for row in filter(None, rows):
                where = f"{path}:{rows.line_num}"
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} cells, but the header names {len(header)}; correct the row")
                yield where, _lower_columns(zip(header, row, strict=True), where)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: {error}; correct the row") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object with columns; correct the line")
            yield where, _lower_columns(row.items(), where)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the dict of a JSON object, with unique names and encodable texts."""
    for name, value in pairs:
        name.encode()
        if isinstance(value, str):
            value.encode()
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} appears twice")
    return found


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            _check_unfolding(path, _declared_bytes(table.metadata), table.metadata.num_rows)
            unfolded = number = 0
            # Few rows at a time: a table may hold features.
            for batch in table.iter_batches(batch_size=64):
                unfolded += batch.nbytes
                _check_unfolding(path, unfolded, number)
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    where = f"{path}:{number}"
                    yield where, _lower_columns(zip(batch.schema.names, cells, strict=True), where)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def _declared_bytes(metadata: Any) -> int:
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _check_unfolding(path: Path, unfolded: int, rows: int) -> None:
    """Raise `ValueError` for a compressed table that is far larger than its file, or has more rows than its file has bytes."""
    size = path.stat().st_size
    if unfolded > TABLE_UNFOLD_LIMIT * size + TABLE_UNFOLD_SLACK or rows > size:
        raise ValueError(
            f"{path}: a table of {size} bytes expands to {unfolded} bytes and {rows} rows or more; refused as a "
            "decompression bomb"
        )


def _lower_columns(cells: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Return {lower-case column: value}.

    Raises:
        ValueError: If two columns have one name, of which only one could be read.
    """
    row: dict[str, Any] = {}
    for column, value in cells:
        name = column.strip().lower()
        if name in row and name:
            raise ValueError(f"{where}: the column {column!r} appears twice; remove or rename one of them")
        row[name] = value
    return row


# The official tables are not quoted; a comma-separated table is quoted as spreadsheets do.
read_tsv = partial(_read_separated, delimiter="\t", quoting=csv.QUOTE_NONE)

READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _read_separated,
    ".tsv": read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`"file:line"`, {lower-case column: value}) for a csv, tsv, jsonl or parquet table.

    Raises:
        ValueError: If the table is of another kind, or a row cannot be read; the message names file and line.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: not a {', '.join(READERS)} table")
    yield from READERS[path.suffix](path)


def need_columns(path: Path, row: dict[str, Any], columns: Iterable[str]) -> None:
    """Raise `ValueError` if `row` of the table at `path` lacks one of `columns` (lower case)."""
    missing = [column for column in columns if column not in row]
    if missing:
        found = first_of([" ".join(column.split())[:40] for column in row], most=20) or "nothing"
        raise ValueError(f"{path}: no column {', '.join(missing)}; its header names {found}")


def read_mintrec(path: Path) -> list[Clip]:
    """Read a table of MIntRec: columns season, episode, clip, text, label; id `S05_E16_329`."""
    return _read_official(path, ("season", "episode", "clip"), "{season}_{episode}_{clip}")


def read_mintrec2(path: Path) -> list[Clip]:
    """Read a table of MIntRec2.0: columns Dialogue_id, Utterance_id, Text, Label and others; id `dia0_utt3`."""
    return _read_official(path, ("dialogue_id", "utterance_id"), "dia{dialogue_id}_utt{utterance_id}")


def _read_official(path: Path, id_columns: tuple[str, ...], id_format: str) -> list[Clip]:
    clips = []
    for where, row in read_tsv(path):
        if not clips:
            need_columns(path, row, (*id_columns, "text", "label"))
        fields = optional_fields(row, where)
        clips.append(Clip(id_format.format(**row), row["text"].strip(), row["label"].strip(), where, fields))
    return clips


def optional_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `row`: speaker, source, dialogue_id, utterance_id, start and end (seconds).

    Raises:
        ValueError: If `start` or `end` is not a time; the message begins with `where`.
    """
    fields = {}
    for name, columns in OPTIONAL_FIELDS.items():
        column = next((column for column in columns if column in row), None)
        if column is not None:
            value = row[column]
            fields[name] = parse_seconds(value, where) if name in ("start", "end") else as_text(value)
    check_span(fields.get("start"), fields.get("end"), where)
    return fields


def check_span(start: float | None, end: float | None, where: str) -> None:
    """Raise `ValueError` if a clip would end before it starts."""
    if start is not None and end is not None and start > end:
        raise ValueError(f"{where}: `start` {start:g} s is after `end` {end:g} s; correct the cells")


def as_text(value: Any) -> str:
    """Return a cell as stripped text; `None` and NaN (pandas' empty cell) become empty text, 0 is a value."""
    return "" if value is None or value != value else str(value).strip()


def need_text(row: dict[str, Any], column: str, where: str) -> str:
    """Return the cell in `column` as text; a list or dict is not text.

    Raises:
        ValueError: If the cell holds several values; the message begins with `where`.
    """
    value = row.get(column)
    if isinstance(value, (list, dict, bytes)):
        raise ValueError(f"{where}: `{column}` holds a {type(value).__name__}, not text; write one value")
    return as_text(value)


def parse_seconds(value: str | float | None, where: str) -> float | None:
    """Return seconds from a number, from `00:01:02,345`, or None for an empty cell."""
    if value is None or value == "" or value != value:
        return None
    seconds = 0.0
    try:
        for part in str(value).replace(",", ".").split(":"):
            seconds = 60 * seconds + float(part)
        if not 0 <= seconds < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"{where}: {str(value)[:40]!r} is not a time; write seconds or hh:mm:ss,mmm") from None
    return seconds


def first_of(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` of `names` on one line, for a message, with `...` if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def resolve_labels(clips: list[Clip], labels: Sequence[str]) -> None:
    """Give every clip its label in the spelling of `labels`, matched without case.

    Raises:
        ValueError: For the first clip with a label that is neither in `labels` nor `UNK`.
    """
    spelling = {name.casefold(): name for name in (*labels, OUT_OF_SCOPE_LABEL)}
    for clip in clips:
        label = spelling.get(clip.label.casefold())
        if label is None:
            raise ValueError(
                f"{clip.where}: unknown label {clip.label!r} of clip {clip.id}; "
                f"the nearest known one is {nearest(clip.label, labels)!r}"
            )
        clip.label = label


def warn_of_unseen_labels(splits: dict[str, list[Clip]]) -> None:
    """Warn if clips have a label that no training clip has: a model cannot have learnt it."""
    seen = {clip.label for clip in splits.get("train", [])} | {OUT_OF_SCOPE_LABEL}
    for split, clips in splits.items():
        unseen = sorted({clip.label for clip in clips} - seen)
        if unseen and "train" in splits:
            logger.warning(f"{split} has {len(unseen)} labels that train lacks: {first_of(unseen)}")


def check_unique(clips: list[Clip]) -> None:
    """Raise `ValueError` if two clips of one split have the same id."""
    seen: dict[str, str] = {}
    for clip in clips:
        if clip.id in seen:
            raise ValueError(
                f"{clip.where}: clip id {clip.id} appears again, first at {seen[clip.id]}; remove one of the rows"
            )
        seen[clip.id] = clip.where


def warn_of_shared_ids(splits: dict[str, list[Clip]]) -> None:
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


def add_context(clips: list[Clip], turns: list[Clip], context_turns: int) -> None:
    """Give every clip the last `context_turns` turns of its dialogue before it, oldest first.

    Turns are ordered by `utterance_id`, whatever their order in the file. Turns that are not in the table are
    skipped, so the context reaches further back where an utterance in between is missing. A clip whose dialogue_id is
    empty belongs to no dialogue and gets none.

    Args:
        clips (`list[Clip]`): Clips of one split.
        turns (`list[Clip]`): All clips of that split that may serve as context, including `clips`.
        context_turns (`int`): Maximum number of turns to add.

    Raises:
        ValueError: If a clip has no `dialogue_id` or no integer `utterance_id`.
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
    if dialogue_id is None or utterance_id is None:
        raise ValueError(
            f"{clip.where}: `context_turns` needs the columns dialogue_id and utterance_id; leave `context_turns` at 0"
        )
    try:
        return dialogue_id, int(utterance_id)
    except ValueError:
        raise ValueError(f"{clip.where}: utterance_id {utterance_id!r} is not an integer; correct the cell") from None


def _spoken(clip: Clip) -> str:
    speaker = clip.fields.get("speaker")
    return f"{speaker}: {clip.text}" if speaker else clip.text
