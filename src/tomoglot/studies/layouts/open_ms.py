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
from pathlib import Path

from tomoglot.studies.cases import Gathered
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series

_PATIENT = re.compile(r"patient(\d+)")
_TIMED = re.compile(r"(study\d+)_(T1W|T2W|FLAIR)\.nii(?:\.gz)?")
_CROSS = {"T1": "t1w", "T1POST": "t1c", "T2": "t2w", "FLAIR": "flair"}
_LONG = {"T1W": "t1w", "T2W": "t2w", "FLAIR": "flair"}


def matches(root: Path) -> bool:
    """A folder with `cross_sectional/MNI/patientNN` or `longitudinal/raw/patientNN` in it."""
    return bool(_patients(root / "cross_sectional" / "MNI") or _patients(root / "longitudinal" / "raw"))


def read(root: Path) -> Sources:
    """Each cross-sectional patient is one study with its lesion mask; each longitudinal visit is one without."""
    gathered = Gathered()
    masks: dict[str, Path] = {}
    for number, folder in _patients(root / "cross_sectional" / "MNI"):
        subject = f"ms-cross-{number}"
        masks.update((subject, path) for path in sorted(folder.glob("GOLD_STANDARD*.nii*"))[:1])
        for path in _images(folder):
            if (prefix := path.name.partition("_")[0]) in _CROSS:
                gathered.add(subject, "study1", Series(sequence=_CROSS[prefix], path=path))
    for number, folder in _patients(root / "longitudinal" / "raw"):
        for path in _images(folder):
            if match := _TIMED.fullmatch(path.name):
                gathered.add(f"ms-long-{number}", match[1], Series(sequence=_LONG[match[2]], path=path))
            elif not path.name.startswith("gt."):
                evidence = f"{path.name}: wanted studyK_T1W, studyK_T2W or studyK_FLAIR"
                gathered.refuse("unknown-file", evidence, path, subject=f"ms-long-{number}")
    return gathered.sources(
        lambda subject, _: {"labels": {"demyelination": 1.0}, "mask": masks.get(subject), "mask_labels": {1: "plaque"}}
    )


def _patients(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        return []
    found = ((_PATIENT.fullmatch(child.name), child) for child in sorted(folder.iterdir()) if child.is_dir())
    return [(match[1], child) for match, child in found if match is not None]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
