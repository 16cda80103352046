"""UCSF-PDGM, glioma before operation: `UCSF-PDGM-NNNN[_FUnnnd]_nifti/UCSF-PDGM-NNNN_{T1,T1c,T2,FLAIR,...}.nii.gz`.

Calabrese et al., "The University of California San Francisco preoperative diffuse glioma MRI dataset" (2022), doi
10.1148/ryai.220058; TCIA doi 10.7937/tcia.bdgf-8v37, CC BY 4.0. Known from the paper and from code that reads it, not
checked on the data: 1 necrosis and non-enhancing core, 2 oedema, 4 enhancing tumour (another number in a mask is
refused); bias-corrected copies end in `_bias` and are read only where the plain file is not there; diffusion tensor
maps and brain masks are left out. Every subject has a glioma, hence `mass: 1`.

Six studies are follow-ups of another subject: renamed `_FUnnnd` since version 3, under numbers of their own before;
they are put under their subject here. Many cases are in BraTS 2021 as well: never train on one and score on the other.
"""

from __future__ import annotations

import re
from pathlib import Path

from tomoglot.studies.cases import Gathered, find_cases
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series

_CASE = re.compile(r"UCSF-PDGM-(\d{3,4})(?:_(FU\d+d))?(?:_nifti)?")
_FILE = re.compile(r"UCSF-PDGM-\d{3,4}(?:_FU\d+d)?_(\w+?)(_bias)?\.nii(?:\.gz)?")
_SEQUENCES = {
    "T1": "t1w", "T1c": "t1c", "T2": "t2w", "FLAIR": "flair", "SWI": "swi", "DWI": "dwi", "ADC": "adc", "ASL": "asl"
}  # fmt: skip
_LEFT_OUT = re.compile(r"DTI_\w+|brain(?:_parenchyma)?_segmentation|FA|MD|AD|RD|L[123]")
_SAME_SUBJECT = {"0315": "0433", "0278": "0431", "0175": "0396", "0138": "0429", "0181": "0409", "0289": "0391"}
MASK_LABELS = {1: "necrosis", 2: "oedema", 4: "rim"}


def matches(root: Path) -> bool:
    """A folder with `UCSF-PDGM-NNNN_nifti` folders in it, or one folder further down."""
    return bool(find_cases(root, _CASE))


def read(root: Path) -> Sources:
    """Each case folder is one study."""
    gathered = Gathered()
    masks: dict[tuple[str, str], Path] = {}
    for case, folder in find_cases(root, _CASE):
        number = case[1].zfill(4)
        subject = f"UCSF-PDGM-{_SAME_SUBJECT.get(number, number)}"
        study = case[2] or (f"follow-up-{number}" if number in _SAME_SUBJECT else "pre-treatment")
        files = {
            (match[1], bool(match[2])): path
            for path in sorted(folder.glob("*.nii*"))
            if (match := _FILE.fullmatch(path.name))
        }
        for (name, corrected), path in files.items():
            if name == "tumor_segmentation":
                masks[subject, study] = path
            elif name in _SEQUENCES and (not corrected or (name, False) not in files):
                gathered.add(subject, study, Series(sequence=_SEQUENCES[name], path=path))
            elif name not in _SEQUENCES and not _LEFT_OUT.fullmatch(name):
                evidence = f"wanted {', '.join(_SEQUENCES)} or tumor_segmentation after the case's name"
                gathered.refuse("unknown-file", evidence, path, subject=subject, study=study)
    return gathered.sources(lambda *key: {"labels": {"mass": 1.0}, "mask": masks.get(key), "mask_labels": MASK_LABELS})
