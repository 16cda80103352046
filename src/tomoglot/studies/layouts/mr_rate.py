"""MR-RATE, brain and spine MRI with reports: `mri/batchNN/<study>/img/<study>_<series>.nii.gz` and `splits.csv`.

Forithmus/MR-RATE, from its dataset guide (github.com/forithmus/MR-RATE, data-preprocessing/docs/dataset_guide.md),
not checked on the data: a series is `<modality>-raw-<plane>[-N]`; `reports/batchNN_reports.csv` has `report`,
`findings` and `impression` by `study_uid`; `splits.csv` has `patient_uid`, `study_uid`, `split`;
`metadata/batchNN_metadata.csv` has `SeriesNumber` by `study_uid` and `series_id`. Reports are machine translations from
Turkish.

Only the native space is read, and only studies that are unpacked. A study has several series of one kind: of each kind
the first acquired is read (the guide: earlier ones are more likely without contrast agent), axial before sagittal,
coronal and oblique where no number is known; the others are rejected rows `another-<sequence>`. Whether a T1 has
contrast agent and whether a series shows the brain or the spine is not labelled in the set: `t1w` may be either.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.report_table import report_of_sections
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series
from tomoglot.studies.table import cell_text, read_cells

_PLANES = ("axi", "sag", "cor", "obl")
_SERIES = re.compile(rf"(t1w|t2w|flair|swi|mra)-raw-({'|'.join(_PLANES)})(?:-(\d+))?")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_UNNUMBERED = 1_000_000


def matches(root: Path) -> bool:
    """A folder with `splits.csv` and `mri/batchNN`."""
    return (root / "splits.csv").is_file() and any((root / "mri").glob("batch[0-9][0-9]"))


def read(root: Path) -> Sources:
    """Each study folder is one study of the patient that `splits.csv` names for it."""
    gathered = Gathered()
    people = {str(row.get("study_uid")): row for row in read_cells(root / "splits.csv")}
    reports = {str(row.get("study_uid")): row for row in _rows(root / "reports")}
    metadata = _rows(root / "metadata")
    orders = {f"{row.get('study_uid')}_{row.get('series_id')}": cell_text(row.get("SeriesNumber")) for row in metadata}
    for folder in sorted((root / "mri").glob("batch[0-9][0-9]/*")):
        study = folder.name.removesuffix(".zip")
        subject = cell_text(people.get(study, {}).get("patient_uid"))
        if folder.suffix == ".zip" and not folder.with_suffix("").is_dir():
            gathered.refuse("still-packed", "unpack the .zip files where they are", subject=subject or "", study=study)
        elif folder.is_dir() and subject is None:
            # Without its patient a study could come to lie on both sides of a split.
            gathered.refuse("no-subject", "splits.csv names no patient for this study", study=study)
        if subject is None:
            continue
        for path in sorted((folder / "img").glob("*.nii.gz")):
            stem = path.name.removesuffix(".nii.gz")
            match = _SERIES.fullmatch(stem.removeprefix(f"{study}_"))
            if match is None:
                evidence = f"wanted <study>_<series>.nii.gz, a series such as {_SERIES.pattern}"
                gathered.refuse("unknown-file", evidence, path, subject=subject, study=study)
                continue
            number = int(order) if (order := orders.get(stem) or "").isdigit() else _UNNUMBERED
            rank = (number, _PLANES.index(match[2]), int(match[3] or 1))
            gathered.add(subject, study, Series(sequence=match[1], path=path), rank=rank)

    def said(_: str, study: str) -> dict[str, Any]:
        words = [cell_text(reports.get(study, {}).get(part)) or "" for part in ("report", "findings", "impression")]
        split = _SPLITS.get(str(people[study].get("split")).lower())
        return {"report": report_of_sections(*words) if any(words) else None, "split": split}

    return gathered.sources(said)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("batch*.csv")) for row in read_cells(path)]
