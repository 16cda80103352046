"""Multiple sclerosis MRI of Ljubljana, as `cross_sectional/MNI/patientNN` and `longitudinal/raw/patientNN`.

Cross-sectional: Lesjak et al., "A novel public MR image dataset of multiple sclerosis patients with lesion
segmentations based on multi-rater consensus", Neuroinformatics (2017), doi 10.1007/s12021-017-9348-7.
Longitudinal: Lesjak et al., "Validation of white-matter lesion change detection methods on a novel publicly available
MRI image database", Neuroinformatics (2016). Both are CC BY: cite them in what you publish from these data.

Every subject has multiple sclerosis, hence `demyelination: 1`; nothing is known about other findings, and there are no
reports. The longitudinal `gt` marks lesions that *changed* between two visits. It is no lesion mask of either, so it is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tomoglot.studies.source import RejectedRow, Sources
from tomoglot.studies.study import Series, Study

_PATIENT = re.compile(r"patient(\d+)")
_TIMED = re.compile(r"(study\d+)_(T1W|T2W|FLAIR)\.nii(?:\.gz)?")
_CROSS = {"T1": "t1w", "T1POST": "t1c", "T2": "t2w", "FLAIR": "flair"}
_LONG = {"T1W": "t1w", "T2W": "t2w", "FLAIR": "flair"}


def matches(root: Path) -> bool:
    """A folder with `cross_sectional/MNI/patientNN` or `longitudinal/raw/patientNN` in it."""
    return bool(_patients(root / "cross_sectional" / "MNI") or _patients(root / "longitudinal" / "raw"))


def read(root: Path) -> Sources:
    """Each cross-sectional patient is one study with its lesion mask; each longitudinal visit is one without."""
    studies: list[Study] = []
    rejected: list[RejectedRow] = []
    for number, folder in _patients(root / "cross_sectional" / "MNI"):
        files = {path.name.partition("_")[0]: path for path in _images(folder)}
        masks = sorted(folder.glob("GOLD_STANDARD*.nii*"))
        found = {sequence: files[prefix] for prefix, sequence in _CROSS.items() if prefix in files}
        studies.append(_study(f"ms-cross-{number}", "study1", found, masks[0] if masks else None))
    for number, folder in _patients(root / "longitudinal" / "raw"):
        visits: dict[str, dict[str, Path]] = {}
        for path in _images(folder):
            if match := _TIMED.fullmatch(path.name):
                visits.setdefault(match[1], {})[_LONG[match[2]]] = path
            elif not path.name.startswith("gt."):
                evidence = f"{path.name}: wanted studyK_T1W, studyK_T2W or studyK_FLAIR"
                where = {"subject": f"ms-long-{number}", "file": path.name}
                rejected.append(RejectedRow(reason="unknown-file", evidence=evidence, **where))
        studies.extend(_study(f"ms-long-{number}", visit, visits[visit], None) for visit in sorted(visits))
    return Sources(studies=studies, rejected=rejected)


def _study(subject: str, visit: str, files: Mapping[str, Path], mask: Path | None) -> Study:
    series = tuple(Series(sequence=sequence, path=path) for sequence, path in sorted(files.items()))
    labels = {"demyelination": 1.0}
    return Study(subject=subject, study=visit, series=series, labels=labels, mask=mask, mask_labels={1: "plaque"})


def _patients(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        return []
    found = ((_PATIENT.fullmatch(child.name), child) for child in sorted(folder.iterdir()) if child.is_dir())
    return [(match[1], child) for match, child in found if match is not None]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
