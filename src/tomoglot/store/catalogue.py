"""The catalogue: one typed row a study, kept in Parquet and asked by DuckDB."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from pydantic import BaseModel, ConfigDict

from tomoglot.geometry import Grid
from tomoglot.store import layout
from tomoglot.studies.atomic import replacing, scratch

AffineRows = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]


class Intensity(BaseModel):
    """How stored int16 becomes a real intensity (stored * scale + offset), and statistics of the real values.

    `mean`, `std` and `percentiles` (keys "1", "5", "50", "95", "99") are of those voxels of the whole stored volume
    that are not background, and `foreground` is their share. Background is zero, or in CT what lies at the window's
    lower end or below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float
    offset: float
    mean: float
    std: float
    percentiles: dict[str, float]
    foreground: float


class StudyRow(BaseModel):
    """One study of the store. `shape` is (i, j, k) in voxels, `affine` takes voxel indices to RAS+ mm.

    `native_shape` and `native_affine` are the grid of the study's finest series as its file had it, before any axis was
    turned: what is predicted goes back there. None in a store of format 1, which did not keep them. `labels_mined`
    names the labels that rules read from the report. `mask_kept` is the share of the mask's voxels that the plan's
    field holds, `mask_field` a centred field that would hold all of it; None where no voxel is marked, or in a
    study that an older version wrote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    subject: str
    study: str
    split: str
    simulated: bool
    sequences: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: AffineRows
    intensities: dict[str, Intensity]
    report: str | None
    labels: dict[str, float]
    has_mask: bool
    digest: str
    native_shape: tuple[int, int, int] | None = None
    native_affine: AffineRows | None = None
    labels_mined: tuple[str, ...] = ()
    mask_kept: float | None = None
    mask_field: tuple[int, int, int] | None = None

    @property
    def grid(self) -> Grid:
        """Shape and affine as a grid."""
        return Grid(self.shape, np.asarray(self.affine, dtype=np.float64))

    @property
    def native_grid(self) -> Grid:
        """Grid of the study's finest series, as its file had it.

        Raises:
            ValueError: the store was written before that was kept.
        """
        if self.native_shape is None or self.native_affine is None:
            raise ValueError(
                f"study {self.key}: this store (format 1) does not know the grid that its studies came on; run "
                "`tomoglot ingest` again into it, which adds the grid to each study"
            )
        return Grid(self.native_shape, np.asarray(self.native_affine, dtype=np.float64))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k."""
        return self.grid.spacing_mm


_COLUMNS = {
    "key": "VARCHAR",
    "subject": "VARCHAR",
    "study": "VARCHAR",
    "split": "VARCHAR",
    "simulated": "BOOLEAN",
    "sequences": "VARCHAR[]",
    "shape": "INTEGER[]",
    "spacing_mm": "DOUBLE[]",
    "affine": "DOUBLE[][]",
    "intensities": 'MAP(VARCHAR, STRUCT(scale DOUBLE, "offset" DOUBLE, mean DOUBLE, std DOUBLE, '
    "percentiles MAP(VARCHAR, DOUBLE), foreground DOUBLE))",
    "report": "VARCHAR",
    "labels": "MAP(VARCHAR, DOUBLE)",
    "has_mask": "BOOLEAN",
    "digest": "VARCHAR",
    "native_shape": "INTEGER[]",
    "native_affine": "DOUBLE[][]",
    "labels_mined": "VARCHAR[]",
    "mask_kept": "DOUBLE",
    "mask_field": "INTEGER[]",
}


def write_catalogue(rows: Iterable[StudyRow], path: Path) -> None:
    """Write rows to Parquet, sorted by subject and study; the file appears whole or not at all."""
    ordered = sorted(rows, key=lambda row: (row.subject, row.study))
    records = [{**row.model_dump(mode="json"), "spacing_mm": row.spacing_mm} for row in ordered]
    _write_parquet(records, _COLUMNS, path)


def read_catalogue(path: Path) -> tuple[StudyRow, ...]:
    """Read what `write_catalogue` wrote, in its order; columns that an older version did not write are left out.

    Raises:
        ValueError: the file is not a readable catalogue.
    """
    try:
        with _connect() as connection:
            table = connection.execute("SELECT * FROM read_parquet(?) LIMIT 0", [str(path)]).description or ()
            there = {column[0] for column in table}
            fields = [name for name, field in StudyRow.model_fields.items() if field.is_required() or name in there]
            found = connection.execute(f"SELECT {', '.join(fields)} FROM read_parquet(?)", [str(path)]).fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path.name}: not a readable catalogue ({type(error).__name__})") from error
    return tuple(StudyRow.model_validate(dict(zip(fields, values, strict=True))) for values in found)


def study_digest(row: Mapping[str, Any], arrays: Mapping[str, str]) -> str:
    """Digest of a study's content: its row and its decoded voxels, whatever its files are called or compressed by."""
    # Without the names of mined labels where there are none: what had none before they were kept is the same content.
    # Without what is said of the raw mask: stores of before it was kept hold the same.
    beside = {"mask_kept", "mask_field"} | ({"labels_mined"} if not row.get("labels_mined") else set())
    said = {name: value for name, value in row.items() if name not in beside}
    return layout.digest_of({"row": {**said, "digest": ""}, "arrays": dict(arrays)})


def store_digest(rows: tuple[StudyRow, ...]) -> str:
    """Digest of a store's content: the digests of its studies, in sorted order."""
    return layout.digest_of(sorted(row.digest for row in rows))


def query(store: Path, sql: str) -> list[dict[str, Any]]:
    """Ask the store in SQL; the tables are `catalogue`, `accepted` and `rejected`, and `series` and `duplicates` where
    its studies were looked at.

    The question is asked of copies in memory, and once they are loaded the engine can reach no file and no network.

    Raises:
        ValueError: the SQL is wrong; the engine's own message says where.
    """
    with _connect() as connection:
        looks = [name for name in layout.LOOK_TABLES if (store / name).is_file()]
        for table in (layout.CATALOGUE_FILE, layout.ACCEPTED_FILE, layout.REJECTED_FILE, *looks):
            name = table.removesuffix(".parquet")
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet(?)", [str(store / table)])
        connection.execute("SET enable_external_access = false")
        try:
            answer = connection.execute(sql)
        except duckdb.Error as error:
            raise ValueError(f"the question cannot be answered: {error}") from error
        names = [column[0] for column in answer.description or ()]
        return [dict(zip(names, values, strict=True)) for values in answer.fetchall()]


def _write_parquet(records: list[dict[str, Any]], columns: dict[str, str], path: Path) -> None:
    types = "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items()) + "}"
    # Rows go through a file of JSON lines: inserting them one by one is a hundred times slower.
    with replacing(path) as part, scratch(path) as lines, _connect() as connection:
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        source = f"read_json('{_quoted(lines)}', format = 'newline_delimited', columns = {types})"
        connection.execute(f"COPY (SELECT * FROM {source}) TO '{_quoted(part)}' (FORMAT parquet)")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _connect() -> duckdb.DuckDBPyConnection:
    settings = {"threads": "1", "autoinstall_known_extensions": "false", "preserve_insertion_order": "true"}
    return duckdb.connect(":memory:", config=settings)
