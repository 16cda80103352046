"""CT-RATE, chest CT with reports and 18 mined labels: `{train,valid}[_fixed]/**/<split>_<subject>_<scan>_<n>.nii.gz`.

Hamamci et al., "Developing generalist foundation models from a multimodal dataset for 3D computed tomography" (2024),
arXiv 2403.17834; CC BY-NC-SA. From the set's own pages and code (its README, `download_scripts/fix_metadata.py`,
CT-CLIP issue 50), not checked on the data: subject, scan and reconstruction in the name; tables `metadata/`,
`radiology_text_reports/` and `multi_abnormality_labels/` by `VolumeName`; lists `no_chest_*.txt` of scans of other
parts of the body, which are left out.

The first release (`train`, `valid`) has stored values and headers without geometry: slope, intercept, spacing, position
and orientation are in `metadata/`. The second (`train_fixed`, `valid_fixed`) has both in the files, beside the same
table. Where both releases of a volume are there, the second is read. `stated.read_series` looks at the voxels, so no
file is scaled twice and none not at all, whatever folder it was moved to.

Two reconstructions of one scan are two studies (`a_1`, `a_2`) of one subject with the same report: retrieval must count
them as one. Labels were mined from the reports by a classifier; they are not a reader's.

The set has two sides, and everybody scores on its `valid`: here that is `test`. To choose on, `val` is 5 % of the
subjects of its `train`, by a hash of their names (`split.split_subjects`, seed 0): inferred, the same in every store,
and no subject moves when others are downloaded later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.report_table import report_of_sections
from tomoglot.studies.source import Sources
from tomoglot.studies.split import split_subjects
from tomoglot.studies.study import Report, Series, Stated
from tomoglot.studies.table import cell_text, read_cells

FINDINGS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
_VOLUME = re.compile(r"((?:train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
# The second release first: of two files of one volume the first is kept.
_FOLDERS = ("train_fixed", "valid_fixed", "train", "valid")
_TABLES = {
    "metadata": ("metadata/train_metadata.csv", "metadata/validation_metadata.csv"),
    "reports": ("radiology_text_reports/train_reports.csv", "radiology_text_reports/validation_reports.csv"),
    "labels": (
        "multi_abnormality_labels/train_predicted_labels.csv",
        "multi_abnormality_labels/valid_predicted_labels.csv",
    ),
}
_LISTS = ("metadata/no_chest_train.txt", "metadata/no_chest_valid.txt")
_FRACTIONS = {"train": 0.95, "val": 0.05}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

Row = Mapping[str, Any]


def matches(root: Path) -> bool:
    """A folder, or one with `dataset` in it, that has the reports and one of the four folders of volumes."""
    base = _base(root)
    has_table = any((base / path).is_file() for path in _TABLES["reports"])
    return has_table and any((base / name).is_dir() for name in _FOLDERS)


def read(root: Path) -> Sources:
    """Each reconstruction is one study; scans that are not of the chest are rejected rows `not-chest`."""
    base, gathered = _base(root), Gathered()
    tables = {name: _by_volume(base, paths) for name, paths in _TABLES.items()}
    listed = [base / path for path in _LISTS if (base / path).is_file()]
    elsewhere = {Path(line.strip()).name for path in listed for line in path.read_text("utf-8").splitlines()}
    if not listed:
        evidence = "no metadata/no_chest_*.txt is here: scans of other parts of the body are not left out"
        gathered.refuse("exclusions-absent", evidence)
    for folder in _FOLDERS:
        for path in sorted((base / folder).rglob("*.nii.gz")):
            match = _VOLUME.fullmatch(path.name)
            if match is None:
                wanted = "wanted <train or valid>_<subject>_<scan>_<reconstruction>.nii.gz"
                gathered.refuse("unknown-file", wanted, path)
                continue
            subject, study = match[1], f"{match[2]}_{match[3]}"
            is_fixed, metadata = folder.endswith("_fixed"), tables["metadata"].get(path.name)
            if path.name in elsewhere:
                evidence = "the set lists this scan as not one of the chest"
                gathered.refuse("not-chest", evidence, path, subject=subject, study=study)
            elif not is_fixed and metadata is None:
                evidence = "of the first release, and without a row of metadata: neither geometry nor units are known"
                gathered.refuse("no-metadata", evidence, path, subject=subject, study=study)
            else:
                stated = Stated(hounsfield=(1, 0)) if is_fixed else _stated(metadata or {})
                gathered.add(subject, study, Series(sequence="ct", path=path, stated=stated))

    def said(subject: str, study: str) -> dict[str, Any]:
        volume = f"{subject}_{study}.nii.gz"
        mined = tables["labels"].get(volume, {})
        labels = {
            finding.lower().replace(" ", "_"): float(value)
            for finding in FINDINGS
            if (value := cell_text(mined.get(finding))) in ("0", "1")
        }
        split = "test"
        if subject.startswith("train"):
            split = split_subjects([subject], fractions=_FRACTIONS, seed=0)[subject]
        report = _report(tables["reports"].get(volume, {}))
        return {"report": report, "labels": labels, "labels_mined": tuple(sorted(labels)), "split": split}

    return gathered.sources(said)


def _report(row: Row) -> Report | None:
    parts = [cell_text(row.get(name)) or "" for name in ("Findings_EN", "Impressions_EN")]
    parts = ["" if part.lower().startswith("not given") else part for part in parts]
    return report_of_sections("", *parts) if any(parts) else None


def _stated(row: Row) -> Stated:
    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float(number) for number in _NUMBER.findall(str(row.get(name, ""))))

    # What is not there becomes NaN, which is refused where the file is read.
    steps = (*numbers("XYSpacing"), *numbers("ZSpacing"))
    i, j, k = steps if len(steps) == 3 else (float("nan"),) * 3
    slope, intercept = (*numbers("RescaleSlope"), float("nan"))[0], (*numbers("RescaleIntercept"), float("nan"))[0]
    return Stated(
        spacing_mm=(i, j, k),
        orientation=numbers("ImageOrientationPatient"),
        position_mm=numbers("ImagePositionPatient"),
        hounsfield=(slope, intercept),
    )


def _by_volume(base: Path, paths: tuple[str, ...]) -> dict[str, Row]:
    tables = (read_cells(base / path) for path in paths if (base / path).is_file())
    return {str(row.get("VolumeName")): row for table in tables for row in table}


def _base(root: Path) -> Path:
    return root / "dataset" if (root / "dataset").is_dir() else root
