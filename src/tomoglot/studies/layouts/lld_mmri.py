"""LLD-MMRI, liver lesions on eight MRI phases: `images/MR*/<study>/<series>.nii.gz` and `labels/Annotation.json`.

Lou et al., "SDR-Former" (2024), arXiv 2402.17246; github.com/LMMMEng/LLD-MMRI2023, CC BY-NC. From that repository's
code and README, not checked on the data: `Annotation_info` lists for each patient its series with `phase`,
`pixel_spacing`, `slice_thickness` and the `category` of each lesion. Its issue 2: the headers say 1 x 1 x 1 mm, the
true spacing is in the annotation, and the affine is orthonormal; `stated.read_series` applies it. Inferred: that the
slice thickness is the step from slice to slice (a gap would add to it), that axes and slice order are as the headers
say.

Each patient is given for one class of seven, so the other six are labelled absent. Boxes are not read, nor is
`classification_dataset`, whose cut-outs have no place in space. There are no reports.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Stated

PHASES = {
    "t2wi": "t2w", "dwi": "dwi", "inphase": "in_phase", "outphase": "out_of_phase", "cpre": "pre_contrast",
    "ca": "arterial", "cv": "portal_venous", "cdelay": "delayed",
}  # fmt: skip
# In the order of the set's numbers, 0 to 6; -1 is not given (its validation and test cases).
CLASSES = {
    "hepatichemangioma": "haemangioma", "intrahepaticcholangiocarcinoma": "icc", "hepaticabscess": "abscess",
    "hepaticmetastasis": "metastasis", "hepaticcyst": "cyst", "focalnodularhyperplasia": "fnh",
    "hepatocellularcarcinoma": "hcc",
}  # fmt: skip


def matches(root: Path) -> bool:
    """A folder with `labels/Annotation*.json` and `images/MR*`."""
    return any((root / "labels").glob("Annotation*.json")) and any((root / "images").glob("MR*"))


def read(root: Path) -> Sources:
    """Each patient is one study of up to eight series, found by the annotation.

    Raises:
        ValueError: an annotation file is not what is described above.
    """
    gathered = Gathered()
    present: dict[str, set[str]] = defaultdict(set)
    for path in sorted((root / "labels").glob("Annotation*.json")):
        try:
            listed = json.loads(path.read_text("utf-8"))["Annotation_info"]
            for patient, item in ((patient, item) for patient, items in listed.items() for item in items):
                file = root / "images" / patient / item["studyUID"] / f"{item['seriesUID']}.nii.gz"
                # DICOM's order, which the set's own code keeps: the step from row to row comes first.
                down, across = (float(step) for step in item["pixel_spacing"])
                stated = Stated(spacing_mm=(across, down, float(item["slice_thickness"])))
                sequence = PHASES.get(_flat(item["phase"]))
                if sequence is None:
                    evidence = f"its phase is none of the eight: {', '.join(PHASES)}"
                    gathered.refuse("unknown-phase", evidence, file, subject=patient, study=item["studyUID"])
                else:
                    gathered.add(patient, item["studyUID"], Series(sequence=sequence, path=file, stated=stated))
                present[patient].update(_classes(item))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path.name}: no annotation of LLD-MMRI as its code reads it ({what})") from None

    def said(patient: str, _: str) -> dict[str, Any]:
        classes = CLASSES.values() if present[patient] else ()
        return {"labels": {name: float(name in present[patient]) for name in classes}}

    return gathered.sources(said)


def _classes(item: Mapping[str, Any]) -> Iterator[str]:
    """Classes of the lesions in a series, given by number or by name."""
    for lesion in item["annotation"]["lesion"].values():
        given = str(lesion["category"])
        if given in map(str, range(len(CLASSES))):
            yield list(CLASSES.values())[int(given)]
        elif _flat(given) in CLASSES:
            yield CLASSES[_flat(given)]


def _flat(name: object) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
