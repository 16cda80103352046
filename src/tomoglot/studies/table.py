"""Tables: studies read from CSV, TSV, JSONL or Parquet, and rows written to Parquet. DuckDB carries both."""

from __future__ import annotations

import csv
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

import duckdb
from pydantic import BaseModel

from tomoglot.studies import atomic
from tomoglot.studies.lesion import check_mask_labels
from tomoglot.studies.report import read_report
from tomoglot.studies.sequence import canonical_sequence, sequence_in_file_name
from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.split import check_split
from tomoglot.studies.study import Rejected, Report, Series, Study

COLUMNS = ("subject", "study", "sequence", "path", "report", "labels", "mask", "mask_labels", "split", "simulated")
LABEL_PREFIX = "label:"
_MISSING = frozenset(("", "nan", "na", "n/a", "null", "none", "<na>"))
_TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_LONGEST_LINE = 64 << 20

Row = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)


def read_table(path: Path, *, root: Path | None = None, columns: Mapping[str, str] | None = None) -> Sources:
    """Read a table with one row a series into studies, in the order in which they first appear.

    Columns: subject, study (default: the subject), sequence (default: told from the file name), path, report (text,
    or the name of a `.txt` file below `root`), `label:<finding>` columns or one JSON column `labels`, mask, mask_labels
    (JSON: what the mask's numbers mean, `{"1": "plaque"}`), split, simulated. All but subject may be missing. `columns`
    maps the names in the file to these. A relative path starts at `root` (default: the table's folder). What cannot be
    used is a rejected row; the rest of the study is kept.

    Raises:
        ValueError: the file is no such table, has no subject column, or its split puts a subject on two sides.
    """
    rows = _renamed(read_cells(path), columns or {}, path.name)
    if rows and not any("subject" in row for row in rows):
        found = sorted({name for row in rows for name in row})
        near = difflib.get_close_matches("subject", found, n=1, cutoff=0.3)
        hint = f"; the nearest is {near[0]!r}: map it with columns={{{near[0]!r}: 'subject'}}" if near else ""
        raise ValueError(f"{path.name}: no column 'subject' among {', '.join(found)}{hint}")
    drafts: dict[tuple[str, str], _Draft] = {}
    rejected: list[RejectedRow] = []
    sides: list[tuple[str, str]] = []
    for number, row in enumerate(rows, start=1):
        subject = cell_text(row.get("subject"))
        if subject is None:
            rejected.append(RejectedRow(reason="no-subject", evidence=f"row {number} of {path.name} names no subject"))
            continue
        study, side = cell_text(row.get("study")) or subject, cell_text(row.get("split"))
        if side is not None:
            sides.append((subject, side))
        draft = drafts.setdefault((subject, study), _Draft(subject, study, root or path.parent))
        draft.add(row)
    for draft in drafts.values():
        rejected.extend(draft.rejected)
    check_split(sides)
    return Sources(studies=[draft.built() for draft in drafts.values()], rejected=rejected)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, TSV (also with `.gz`), JSONL or Parquet file as they stand; a CSV's cells are text.

    Raises:
        ValueError: the file does not exist, has another suffix, or cannot be read as what its suffix says.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: there is no such table")
    readers = dict.fromkeys((".csv", ".tsv", ".csv.gz", ".tsv.gz"), _read_delimited)
    readers |= {".jsonl": _read_lines, ".parquet": _read_parquet}
    reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
    if reader is None:
        raise ValueError(f"{path.name}: a table ends in {', '.join(readers)}")
    try:
        return reader(path)
    except (duckdb.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        # The first line only: the rest of DuckDB's message quotes the row, which may hold a report.
        what = str(error).splitlines()[0].replace(str(path), path.name)[:200]
        raise ValueError(f"{path.name}: cannot be read as {path.suffix[1:]}: {what}") from None


def each_row(path: Path) -> Iterator[Mapping[str, str | None]]:
    """Rows of a CSV file one after the other, where all of a wide table at once would not fit into the memory.

    Raises:
        ValueError: the file cannot be read as CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: cannot be read as CSV: {str(error)[:200]}") from None


def write_table(rows: Iterable[BaseModel], path: Path, model: type[BaseModel]) -> int:
    """Write rows to Parquet, atomically, and return how many; with no rows, the columns of `model` are still there.

    Field types become column types: text, numbers, booleans, tuples (lists), mappings (maps), nested models
    (structs). A float that is not finite is written as missing. `read_rows` reads them back.
    """
    fields = {name: _sql_type(field.annotation) for name, field in model.model_fields.items()}
    spelled = ", ".join(f"{_quoted(name)}: {_literal(kind)}" for name, kind in fields.items())
    with atomic.replacing(path) as part, atomic.scratch(path) as lines:
        count = 0
        with lines.open("w", encoding="utf-8") as file:
            for row in rows:
                count += 1
                file.write(row.model_dump_json() + "\n")
        with duckdb.connect() as connection:
            source = f"read_json({_literal(str(lines))}, format='newline_delimited', columns={{{spelled}}}"
            source = f"{source}, maximum_object_size={_LONGEST_LINE})"
            connection.execute(f"COPY (SELECT * FROM {source}) TO {_literal(str(part))} (FORMAT parquet)")
    return count


def read_rows(path: Path, model: type[Model]) -> list[Model]:
    """Read what `write_table` wrote, each row validated by `model`.

    Raises:
        ValueError: the file is not there, is not Parquet, or its rows are of another model.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: there is no such table")
    return [model.model_validate(row) for row in read_cells(path)]


class _Draft:
    """A study that is being put together from its rows."""

    def __init__(self, subject: str, study: str, root: Path) -> None:
        self.subject, self.study, self.root = subject, study, root
        self.series: dict[str, Path] = {}
        self.labels: dict[str, float] = {}
        self.values: dict[str, Any] = {}
        self.rejected: list[RejectedRow] = []
        self._in_conflict: set[str] = set()

    def add(self, row: Row) -> None:
        """Take in one row; what cannot be used becomes a rejected row."""
        self._try(self._add_series, row)
        self._try(self._add_report, row)
        for finding, value in _labels(row).items():
            self._try(self._add_label, finding, value)
        mask, split, simulated = cell_text(row.get("mask")), cell_text(row.get("split")), row.get("simulated")
        if mask is not None:
            self._try(self._keep, "mask", self.root / mask)
        if cell_text(row.get("mask_labels")) is not None:
            self._try(self._add_mask_labels, row["mask_labels"])
        if split is not None:
            self.values.setdefault("split", split)
        if cell_text(simulated) is not None:
            self.values["simulated"] = self.values.get("simulated", False) or cell_number(simulated) != 0

    def built(self) -> Study:
        """The study, without what was in conflict."""
        # Without its meaning a mask would be stored in the file's own numbers: both go.
        refused = self._in_conflict | ({"mask"} if "mask_labels" in self._in_conflict else set())
        kept = {name: value for name, value in self.values.items() if name not in refused}
        labels = {
            name: value for name, value in self.labels.items() if f"{LABEL_PREFIX}{name}" not in self._in_conflict
        }
        series = tuple(Series(sequence=sequence, path=path) for sequence, path in self.series.items())
        return Study(subject=self.subject, study=self.study, series=series, labels=labels, **kept)

    def _try(self, add: Any, *values: Any) -> None:
        try:
            add(*values)
        except Rejected as error:
            self.rejected.append(RejectedRow.of(error, subject=self.subject, study=self.study))

    def _add_series(self, row: Row) -> None:
        given = cell_text(row.get("path"))
        if given is None:
            return
        path = self.root / given
        name = cell_text(row.get("sequence")) or sequence_in_file_name(path.name)
        if name is None:
            raise Rejected("no-sequence", f"{path.name}: no sequence is given and the file name tells none")
        sequence = canonical_sequence(name)
        kept = self.series.setdefault(sequence, path)
        if kept != path:
            evidence = f"{path.name}: a second {sequence} of the same study, {kept.name} is kept; name them apart"
            raise Rejected("duplicate-series", evidence)

    def _add_report(self, row: Row) -> None:
        given = row.get("report")
        if cell_text(given) is None:
            return
        self._keep("report", _report(str(given), self.root))

    def _add_label(self, finding: str, value: Any) -> None:
        if cell_text(value) is None:
            return
        number = cell_number(value)
        if not 0 <= number <= 1:
            raise Rejected("bad-label", f"label {finding!r}: wanted 0, 1 or a number between, true, false, yes or no")
        if self.labels.setdefault(finding, number) != number:
            self._refuse_conflict(f"{LABEL_PREFIX}{finding}", "labels")

    def _add_mask_labels(self, given: Any) -> None:
        try:
            read = json.loads(given) if isinstance(given, str) else given
            labels = {int(number): str(name) for number, name in dict(read).items()}
            check_mask_labels(labels)
        except (TypeError, ValueError) as error:
            self._in_conflict.add("mask_labels")
            what = error.evidence if isinstance(error, Rejected) else 'wanted JSON such as {"1": "plaque"}'
            raise Rejected("bad-mask-labels", f"{what}; the mask is left out") from None
        self._keep("mask_labels", labels)

    def _keep(self, name: str, value: Report | Path | dict[int, str]) -> None:
        if self.values.setdefault(name, value) != value:
            self._refuse_conflict(name, name)

    def _refuse_conflict(self, key: str, name: str) -> None:
        first_time = key not in self._in_conflict
        self._in_conflict.add(key)
        if first_time:
            raise Rejected(f"conflicting-{name}", f"rows of one study disagree on {key}; it is left out")


def _renamed(rows: list[dict[str, Any]], columns: Mapping[str, str], file_name: str) -> list[dict[str, Any]]:
    found = {name for row in rows for name in row}
    for theirs, ours in columns.items():
        if ours not in COLUMNS and not ours.startswith(LABEL_PREFIX):
            raise ValueError(f"columns: {ours!r} is none of {', '.join(COLUMNS)} or {LABEL_PREFIX}<finding>")
        if rows and theirs not in found:
            raise ValueError(f"columns: {file_name} has no column {theirs!r}; it has {', '.join(sorted(found))}")
    # Ours are found whatever their case; a mapped name wins over a column that happens to have our name.
    return [
        {
            (name.lower() if name.lower() in COLUMNS else name): value
            for name, value in row.items()
            if name not in columns
        }
        | {ours: row[theirs] for theirs, ours in columns.items() if theirs in row}
        for row in rows
    ]


def _report(given: str, root: Path) -> Report:
    """A report from a cell: its text, or the text of a `.txt` file below `root`."""
    if "\n" in given or not given.strip().lower().endswith(".txt"):
        return read_report(given)
    path = (root / given.strip()).resolve()
    if not path.is_relative_to(root.resolve()):
        raise Rejected("report-outside", f"{path.name}: lies outside the table's folder")
    try:
        return read_report(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise Rejected("report-absent", f"{path.name}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("report-unreadable", f"{path.name}: cannot be read as UTF-8 text") from error


def _labels(row: Row) -> dict[str, Any]:
    labels = {name[len(LABEL_PREFIX) :]: value for name, value in row.items() if name.startswith(LABEL_PREFIX)}
    whole = row.get("labels")
    if isinstance(whole, str) and cell_text(whole) is not None:
        try:
            whole = json.loads(whole)
        except json.JSONDecodeError:
            return labels | {"labels": "not JSON"}
    if isinstance(whole, Mapping):
        return labels | {str(name): value for name, value in whole.items()}
    return labels if cell_text(whole) is None else labels | {"labels": "not JSON"}


def cell_text(value: Any) -> str | None:
    """A cell as text, or None where it is missing (empty, NaN, null)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # A column of whole numbers with a gap is read as floats by many tools: 7.0 is the subject 7.
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return None if text.lower() in _MISSING else text


def cell_number(value: Any) -> float:
    """A cell as a number; NaN, which is in no range, where it is none."""
    text = str(value).strip().lower()
    try:
        return _TRUTH[text] if text in _TRUTH else float(text)
    except ValueError:
        return math.nan


def _read_delimited(path: Path) -> list[dict[str, Any]]:
    separator = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    options = f"header=true, all_varchar=true, delim={_literal(separator)}, quote='\"', escape='\"', comment=''"
    return _select(f"read_csv({_literal(_no_pattern(path))}, {options}, max_line_size={_LONGEST_LINE})")


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    return _select(f"read_parquet({_literal(_no_pattern(path))})")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Each object by itself: a reader that guesses column types would turn the subject "007" into 7.
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name}: every line must be a JSON object")
    return rows


def _select(source: str) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM {source}")
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _no_pattern(path: Path) -> str:
    # DuckDB reads * ? [ in a path as a pattern; each in brackets of its own means itself.
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_type(annotation: Any) -> str:
    """DuckDB's type for a field's type; what has none is kept as JSON text."""
    plain: dict[Any, str] = {str: "VARCHAR", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}
    if annotation in plain:
        return plain[annotation]
    origin, inner = (
        typing.get_origin(annotation),
        [kind for kind in typing.get_args(annotation) if kind is not Ellipsis],
    )
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        return _sql_type(kinds[0]) if len(kinds) == 1 else "JSON"
    if origin in (tuple, list) and len(set(inner)) == 1:
        return f"{_sql_type(inner[0])}[]"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"MAP({_sql_type(inner[0])}, {_sql_type(inner[1])})"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return f"STRUCT({', '.join(f'{_quoted(name)} {_sql_type(field.annotation)}' for name, field in fields)})"
    return "JSON"
