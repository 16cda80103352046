"""BraTS 2021, adult glioma: `BraTS2021_NNNNN/BraTS2021_NNNNN_{t1,t1ce,t2,flair,seg}.nii.gz`.

Baid et al., "The RSNA-ASNR-MICCAI BraTS 2021 benchmark on brain tumor segmentation and radiogenomic classification"
(2021), arXiv 2107.02314: necrotic core is 1, oedema and infiltration 2, enhancing tumour 4; 3 is not used. One study a
subject; every subject has a tumour before treatment, hence `mass: 1`. Cases of the validation set have no mask.

The glioma cases of BraTS 2023 are the same people under other names: never train on one set and score on the other.
"""

from __future__ import annotations

import re
from pathlib import Path

from tomoglot.studies.cases import Gathered, add_case, find_cases
from tomoglot.studies.source import Sources

_CASE = re.compile(r"BraTS2021_\d{5}")
_SEQUENCES = {"t1": "t1w", "t1ce": "t1c", "t2": "t2w", "flair": "flair"}
MASK_LABELS = {1: "necrosis", 2: "oedema", 4: "rim"}
_VISIT = "pre-treatment"


def matches(root: Path) -> bool:
    """A folder with `BraTS2021_NNNNN` folders in it, or one folder further down."""
    return bool(find_cases(root, _CASE))


def read(root: Path) -> Sources:
    """Each case folder is one subject with one study."""
    gathered = Gathered()
    masks: dict[str, Path | None] = {}
    for _, folder in find_cases(root, _CASE):
        where = folder.name, _VISIT
        masks[folder.name] = add_case(gathered, folder, separator="_", sequences=_SEQUENCES, mask="seg", where=where)
    return gathered.sources(
        lambda subject, _: {"labels": {"mass": 1.0}, "mask": masks[subject], "mask_labels": MASK_LABELS}
    )
