"""MIMIC-CXR-JPG, chest radiographs with reports: `files/p10/p<subject>/s<study>/<dicom_id>.jpg` and its tables.

Johnson et al., "MIMIC-CXR-JPG" (2019), arXiv 1901.07042, and physionet.org/content/mimic-cxr-jpg; credentialed access.
From those pages and what public code reads, not checked on the data. Tables `mimic-cxr-2*-metadata.csv[.gz]`
(`dicom_id`, `subject_id`, `study_id`, `ViewPosition`), `-split` (by `dicom_id`: train, validate, test) and `-chexpert`,
or where that is not there `-negbio` (labels by `study_id`: 1, 0, -1 uncertain, blank not mentioned; both were mined
from the reports, none is a reader's). Reports are a set of their own, MIMIC-CXR: `files/p10/p<subject>/s<study>.txt`,
in the same folder or in `mimic-cxr-reports/`.

Views are PA and AP (frontal), LATERAL and LL (lateral); others, and pictures without one, are rows `unknown-view`. A
study keeps one of each, PA before AP. Labels are named and kept as in `chexpert`: uncertain stays unknown. The
pictures' grey values were equalised by the set; the size of a pixel is not in it (see `radiograph.LONGER_MM`). Labels
that radiologists gave to the test set (version 2.1) are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.layouts.chexpert import count_uncertain, labels_of
from tomoglot.studies.report import read_report
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Report, Series
from tomoglot.studies.table import cell_text, read_cells

_VIEWS = {
    "PA": ("cxr_frontal", 0), "AP": ("cxr_frontal", 1), "LATERAL": ("cxr_lateral", 0), "LL": ("cxr_lateral", 1),
}  # fmt: skip
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_REPORT_FOLDERS = ("files", "mimic-cxr-reports/files")


def matches(root: Path) -> bool:
    """A folder with `files` and the table of metadata."""
    return (root / "files").is_dir() and _table(root, "metadata") is not None


def read(root: Path) -> Sources:
    """Each study of the set is one study of up to two views."""
    gathered, absent = Gathered(), 0
    splits = {str(row["dicom_id"]): str(row["split"]) for row in _cells(root, "split")}
    sides: dict[str, str | None] = {}
    mined = _cells(root, "chexpert") or _cells(root, "negbio")
    labels = {str(cell_text(row["study_id"])): row for row in mined}
    for row in _cells(root, "metadata"):
        picture, person, number = (str(cell_text(row[name])) for name in ("dicom_id", "subject_id", "study_id"))
        where = {"subject": f"p{person}", "study": f"s{number}"}
        path = _folder(root / "files", **where) / f"{picture}.jpg"
        view = (cell_text(row.get("ViewPosition")) or "").upper()
        if not path.is_file():
            # Many keep a part of the set: a row for each picture that they left out would bury the others.
            absent += 1
        elif view not in _VIEWS:
            evidence = f"its view is {view or 'not given'}, wanted one of {', '.join(_VIEWS)}"
            gathered.refuse("unknown-view", evidence, path, **where)
        else:
            sequence, rank = _VIEWS[view]
            gathered.add(where["subject"], where["study"], Series(sequence=sequence, path=path), rank=(rank, picture))
            sides[where["study"]] = _SPLITS.get(splits.get(picture, ""))
    if absent:
        gathered.refuse("pictures-absent", f"{absent} pictures of the table of metadata are not here")
    count_uncertain(gathered, [row for number, row in labels.items() if f"s{number}" in sides])

    def said(subject: str, study: str) -> dict[str, Any]:
        known = labels_of(labels.get(study[1:], {}))
        report = _report(root, gathered, subject=subject, study=study)
        return {"labels": known, "labels_mined": tuple(sorted(known)), "report": report, "split": sides[study]}

    return gathered.sources(said)


def _report(root: Path, gathered: Gathered, *, subject: str, study: str) -> Report | None:
    for folder in _REPORT_FOLDERS:
        path = _folder(root / folder, subject=subject, study=study).with_suffix(".txt")
        if path.is_file():
            try:
                return read_report(path.read_text("utf-8"))
            except UnicodeDecodeError:
                gathered.refuse("report-unreadable", "cannot be read as UTF-8 text", path, subject=subject, study=study)
    return None


def _folder(files: Path, *, subject: str, study: str) -> Path:
    return files / subject[:3] / subject / study


def _table(root: Path, name: str) -> Path | None:
    found = (path for suffix in (".csv", ".csv.gz") for path in sorted(root.glob(f"mimic-cxr-2*-{name}{suffix}")))
    return next(found, None)


def _cells(root: Path, name: str) -> list[dict[str, Any]]:
    path = _table(root, name)
    return [] if path is None else read_cells(path)
