"""IXI, healthy adults from three London hospitals: `IXI<subject>-<site>-<number>-{T1,T2,PD,MRA}.nii.gz`.

brain-development.org/ixi-dataset, CC BY-SA 3.0; "normal, healthy subjects", hence `normal: 1`. Known from its pages and
from code that reads it, not checked on the data. The archives may be unpacked into one folder or one each (`IXI-T1`).
The 17 files of a DTI series (`-DTI-00` to `-16`) are single directions: they are not read, and one row says so.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tomoglot.studies.cases import Gathered
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series

_FILE = re.compile(r"(IXI\d+)-([A-Za-z]+-\d+)-(T1|T2|PD|MRA|DTI-\d+)\.nii(?:\.gz)?")
_SEQUENCES = {"T1": "t1w", "T2": "t2w", "PD": "pd", "MRA": "mra"}


def matches(root: Path) -> bool:
    """A folder with such files, or with folders of them."""
    return bool(_files(root))


def read(root: Path) -> Sources:
    """Each subject has one study, named by site and number."""
    gathered = Gathered()
    directions: Counter[tuple[str, str]] = Counter()
    for match, path in _files(root):
        if match[3] in _SEQUENCES:
            gathered.add(match[1], match[2], Series(sequence=_SEQUENCES[match[3]], path=path))
        else:
            directions[match[1], match[2]] += 1
    for (subject, study), count in directions.items():
        evidence = f"{count} single directions of a DTI series are not read"
        gathered.refuse("not-read", evidence, subject=subject, study=study, sequence="dti")
    return gathered.sources(lambda *_: {"labels": {"normal": 1.0}})


def _files(root: Path) -> list[tuple[re.Match[str], Path]]:
    paths = (path for pattern in ("IXI*.nii*", "IXI*/IXI*.nii*") for path in sorted(root.glob(pattern)))
    return [(match, path) for path in paths if (match := _FILE.fullmatch(path.name)) and path.is_file()]
