"""BraTS 2023: `BraTS-<set>-NNNNN-TTT/BraTS-<set>-NNNNN-TTT-{t1n,t1c,t2w,t2f,seg}.nii.gz`, five sets.

The sets are GLI (adult glioma), SSA (glioma, sub-Saharan Africa), MEN (meningioma), MET (metastases), PED (children).
NNNNN is a subject and TTT a time point: two folders with one NNNNN are one person, and never on two sides of a split.
Every subject has a tumour, hence `mass: 1`. Cases of the validation sets have no mask.

In all five, label 2 is oedema (with infiltration) and 3 enhancing tumour, and 1 is the part of the core that does not
enhance: necrosis in GLI, necrotic or not in the others. The challenge's own evaluation scores 3 as enhancing, 1 and 3
as core and 1, 2 and 3 as whole tumour for each set (rachitsaluja/BraTS-2023-Metrics, `get_tissue_wise_mask`). So the
label conversion of BraTS 2021, where 4 enhances, is wrong here (shaohao011/BrainMVP issue 8).

Later years kept the names of the folders and changed the labels: PED of 2024 has 1 enhancing, 2 non-enhancing, 3 cystic
and 4 oedema, and the others have 4 for a resection cavity. Nothing in a PED case tells its year. So a PED mask is taken
only where a folder's name says BraTS 2023, and no mask where it says another year; the images are taken anyway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered, add_case, find_cases
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Rejected

_CASE = re.compile(r"BraTS-(GLI|SSA|MEN|MET|PED)-(\d{5})-(\d{3})")
_YEAR = re.compile(r"brats[^0-9]{0,8}(20\d\d)", flags=re.IGNORECASE)
_SEQUENCES = {"t1n": "t1w", "t1c": "t1c", "t2w": "t2w", "t2f": "flair"}
_NON_ENHANCING = {1: "non_enhancing", 2: "oedema", 3: "rim"}
MASK_LABELS: Mapping[str, Mapping[int, str]] = {
    "GLI": {1: "necrosis", 2: "oedema", 3: "rim"},
    "SSA": _NON_ENHANCING,
    "MEN": _NON_ENHANCING,
    "MET": _NON_ENHANCING,
    "PED": _NON_ENHANCING,
}


def matches(root: Path) -> bool:
    """A folder with `BraTS-<set>-NNNNN-TTT` folders in it, or one folder further down."""
    return bool(find_cases(root, _CASE))


def read(root: Path) -> Sources:
    """Each case folder is one study, a time point of its subject."""
    gathered = Gathered()
    masks: dict[tuple[str, str], Path | None] = {}
    for case, folder in find_cases(root, _CASE):
        where = subject, time_point = f"BraTS-{case[1]}-{case[2]}", case[3]
        mask = add_case(gathered, folder, separator="-", sequences=_SEQUENCES, mask="seg", where=where)
        try:
            if mask is not None:
                _check_year(case[1], names=(root.resolve().name, folder.parent.name))
            masks[where] = mask
        except Rejected as error:
            gathered.refuse(error.reason, error.evidence, mask, subject=subject, study=time_point, sequence="mask")

    def said(*where: str) -> dict[str, Any]:
        labels = MASK_LABELS[where[0].split("-")[1]]
        return {"labels": {"mass": 1.0}, "mask": masks.get((where[0], where[1])), "mask_labels": labels}

    return gathered.sources(said)


def _check_year(kind: str, *, names: tuple[str, ...]) -> None:
    """Refuse a mask whose numbers may be those of another year: they would be read as other tissue without an error."""
    years = {year for name in names for year in _YEAR.findall(name)}
    advice = 'or read a table whose column mask_labels says what they mean ({"1": "rim", ...})'
    if years - {"2023"}:
        said = " and ".join(sorted(years))
        raise Rejected("mask-labels-unknown", f"the folder says BraTS {said}; these labels are those of 2023; {advice}")
    if kind == "PED" and not years:
        what = "paediatric masks of 2023 and 2024 look alike and number the tissues otherwise"
        raise Rejected("mask-labels-unknown", f"{what}; put the cases in a folder called BraTS2023-PED if so, {advice}")
