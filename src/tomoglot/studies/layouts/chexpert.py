"""CheXpert, chest radiographs with 14 labels: `{train,valid,test}.csv` and `train/patient*/study*/view*_frontal.jpg`.

Irvin et al., "CheXpert" (2019), arXiv 1901.07031, and CheXpert Plus, Chambon et al. (2024), arXiv 2405.19538. From the
papers and what public code reads, not checked on the data: `Path` (from the folder of the release on),
`Frontal/Lateral`, `AP/PA` and a column a label with 1, 0, -1 or nothing. Plus adds reports: `df_chexpert_plus_*.csv`
with `path_to_image`, `frontal_lateral`, `ap_pa`, `report`, `section_findings`, `section_impression`; its pictures are
PNG, and it is read with or without the tables of labels. Inferred: that they lie under `PNG/` or beside the tables.

**Uncertain** (-1) is neither present nor absent: the finding stays unknown, as a label mined from a report does here,
and one row `uncertain-labels` counts them. So is a blank: the report did not mention it. Labels of `train` were mined
from reports; those of `valid` and `test` are radiologists'.

Five labels have the name of a finding of ours, and support devices are taken for medical material, so that a model of
one set can be asked about the other: inferred, and a lung opacity is wider here than in the simulated cohort. The rest
keeps names of its own (`LABELS`). `normal` is 1 where neither finding nor device was found, 0 where any label is 1,
else unknown.

A study keeps one frontal and one lateral view, PA before AP and the first before the next; others are rows `another-*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.report_table import report_of_sections
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series
from tomoglot.studies.table import cell_text, read_cells

NORMAL, DEVICES = "No Finding", "Support Devices"
LABELS = {
    "Cardiomegaly": "cardiomegaly", "Lung Opacity": "lung_opacity", "Consolidation": "consolidation",
    "Atelectasis": "atelectasis", "Pleural Effusion": "pleural_effusion", DEVICES: "medical_material",
    "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum", "Lung Lesion": "nodule_or_mass",
    "Edema": "pulmonary_oedema", "Pneumonia": "pneumonia", "Pneumothorax": "pneumothorax",
    "Pleural Other": "pleural_other", "Fracture": "fracture",
}  # fmt: skip
_TABLES = ("train.csv", "valid.csv", "test.csv")
_PLUS = "df_chexpert_plus_*.csv"
_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_PLACE = re.compile(r"(?:^|.*/)((train|valid|test)/(patient\d+)/(study\d+)/view(\d+)_(?:frontal|lateral)\.(?:jpg|png))")
_VIEWS = {"frontal": "cxr_frontal", "lateral": "cxr_lateral"}

Row = Mapping[str, Any]


def matches(root: Path) -> bool:
    """A folder with `train.csv` or `valid.csv` beside `train/patient*` or `valid/patient*`, or with Plus's table."""
    tables = any((root / name).is_file() for name in _TABLES)
    return (tables and any(root.glob("*/patient*/study*"))) or any(root.glob(_PLUS))


def read(root: Path) -> Sources:
    """Each study folder is one study of its patient."""
    gathered, absent = Gathered(), 0
    labelled: dict[tuple[str, str], Row] = {}
    told: dict[tuple[str, str], Row] = {}
    splits: dict[tuple[str, str], str] = {}
    seen: set[Path] = set()
    for row, (place, view, projection), tells in _pictures(root):
        match = _PLACE.fullmatch(place)
        if match is None or view not in _VIEWS:
            gathered.refuse("unknown-file", "wanted <split>/patient*/study*/view*_<frontal or lateral>", Path(place))
            continue
        path, key = _file(root, match[1]), (match[3], match[4])
        if path is None:
            # Many keep a part of the set: a row for each picture that they left out would bury the others.
            absent += 1
            continue
        (told if tells else labelled)[key] = row
        splits[key] = _SPLITS[match[2]]
        if path not in seen:  # both tables name it
            rank = (projection != "pa", int(match[5]))
            gathered.add(*key, Series(sequence=_VIEWS[view], path=path), rank=rank)
            seen.add(path)
    if absent:
        gathered.refuse("pictures-absent", f"{absent} pictures of the tables are not here")
    count_uncertain(gathered, list(labelled.values()))

    def said(subject: str, study: str) -> dict[str, Any]:
        key = (subject, study)
        labels, words = labels_of(labelled.get(key, {})), told.get(key, {})
        texts = [cell_text(words.get(name)) or "" for name in ("report", "section_findings", "section_impression")]
        split = splits[key]
        return {
            "labels": labels,
            "labels_mined": tuple(sorted(labels)) if split == "train" else (),
            "report": report_of_sections(*texts) if any(texts) else None,
            "split": split,
        }

    return gathered.sources(said)


def labels_of(row: Row) -> dict[str, float]:
    """Labels of one row in our names, those that are 1 or 0 alone."""
    given = {name: _value(row.get(name)) for name in (*LABELS, NORMAL)}
    labels = {ours: value for name, ours in LABELS.items() if (value := given[name]) in (0.0, 1.0)}
    if 1.0 in labels.values():
        labels["normal"] = 0.0
    elif given[NORMAL] == 1.0:
        labels["normal"] = 1.0
    return {name: float(value) for name, value in labels.items()}


def count_uncertain(gathered: Gathered, rows: list[Row]) -> None:
    """One row that says how many labels are uncertain, where any is."""
    counts = [sum(_value(row.get(name)) == -1.0 for name in LABELS) for row in rows]
    if any(counts):
        studies = sum(count > 0 for count in counts)
        evidence = f"{sum(counts)} labels of {studies} studies are -1, uncertain, and stay unknown"
        gathered.refuse("uncertain-labels", evidence)


def _pictures(root: Path) -> Iterator[tuple[Row, tuple[str, str, str], bool]]:
    """Every picture of every table: its row, its place, view and projection, and whether the table tells reports."""
    labels = [(root / name, ("Path", "Frontal/Lateral", "AP/PA"), False) for name in _TABLES]
    plus = [(path, ("path_to_image", "frontal_lateral", "ap_pa"), True) for path in sorted(root.glob(_PLUS))]
    for table, columns, tells in (*labels, *plus):
        for row in read_cells(table) if table.is_file() else ():
            place, view, projection = (cell_text(row.get(column)) or "" for column in columns)
            yield row, (place, view.lower(), projection.lower()), tells


def _file(root: Path, place: str) -> Path | None:
    named = (root / folder / place for folder in ("", "PNG"))
    both = (path.with_suffix(suffix) for path in named for suffix in (".jpg", ".png"))
    return next((path for path in both if path.is_file()), None)


def _value(cell: object) -> float | None:
    text = cell_text(cell)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a label is {text[:20]!r}, wanted 1, 0, -1 or nothing: is this another table?") from None
