"""What a store's studies look like in small: kept with each study as it is written, gathered into tables at the end."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomoglot.store import layout
from tomoglot.studies.appearance import SeriesRow
from tomoglot.studies.curate import Looked
from tomoglot.studies.duplicates import DuplicateRow, find_duplicates
from tomoglot.studies.table import read_rows, write_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Pairs of series of two subjects that show the same, how many leak, and studies that could not be compared."""

    num_duplicates: int = 0
    num_leaks: int = 0
    num_unlooked: int = 0


def keep(folder: Path, looked: Looked) -> None:
    """Put a study's series rows and its picture into the folder that is being written."""
    rows = [row.model_dump(mode="json") for row in looked.series]
    (folder / layout.LOOK_FILE).write_bytes(layout.seal({"series": rows}))
    (folder / layout.PICTURE_FILE).write_bytes(base64.b64decode(looked.picture))


def is_kept(record: Mapping[str, Any]) -> bool:
    """Whether the study of this record was looked at; one that an older version wrote was not."""
    return layout.LOOK_FILE in record["files"]


def gather(store: Path, keys: Sequence[str]) -> Copies:
    """Write `series.parquet` of the studies `keys`, and `duplicates.parquet` with the store's own split."""
    unlooked: list[str] = []
    before = _known_digest(store)
    write_table(_rows(store, keys, unlooked), store / layout.SERIES_FILE, SeriesRow)
    duplicates = store / layout.DUPLICATES_FILE
    if before is None or layout.digest_file(store / layout.SERIES_FILE) != before:
        write_table(find_duplicates(store / layout.SERIES_FILE), duplicates, DuplicateRow)
    pairs = read_rows(duplicates, DuplicateRow)
    leaks = sum(pair.leak for pair in pairs)
    return Copies(num_duplicates=len(pairs), num_leaks=leaks, num_unlooked=len(unlooked))


def forget(store: Path) -> Copies:
    """Remove the tables, which would speak of other studies than the store holds."""
    for name in layout.LOOK_TABLES:
        (store / name).unlink(missing_ok=True)
    return Copies()


def _known_digest(store: Path) -> str | None:
    """Digest of the series table whose duplicates stand beside it, None where that is not sure.

    The search is the one step that takes minutes (9,000 series); a run that changed nothing need not repeat it.
    """
    try:
        files = layout.unseal((store / layout.STORE_FILE).read_bytes(), layout.STORE_FILE)["files"]
        whole = all(layout.digest_file(store / name) == files.get(name) for name in layout.LOOK_TABLES)
    except (OSError, ValueError):
        return None
    return str(files[layout.SERIES_FILE]) if whole else None


def _rows(store: Path, keys: Sequence[str], unlooked: list[str]) -> Iterator[SeriesRow]:
    """The rows of every study, one study in memory at a time; keys of those that have none go into `unlooked`."""
    for key in keys:
        try:
            content = (layout.study_folder(store, key) / layout.LOOK_FILE).read_bytes()
            rows = layout.unseal(content, layout.LOOK_FILE)["series"]
        except (OSError, ValueError):
            unlooked.append(key)
            continue
        picture = f"{layout.STUDIES}/{key}/{layout.PICTURE_FILE}"
        yield from (SeriesRow.model_validate({**row, "picture": picture}) for row in rows)
