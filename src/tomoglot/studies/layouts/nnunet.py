"""nnU-Net raw data: `dataset.json`, `imagesTr/<case>_<channel>.nii.gz`, `labelsTr/<case>.nii.gz`, the same in `Ts`.

From nnU-Net's documentation (`dataset_format.md`, `dataset_conversion.md` of its first version). A mask is read only
where every label is a lesion tissue that we know, and a row says so where not. Where `labelsTs` is there, its cases are
the test set and the others are for training; else the split is drawn. A case is taken for a subject: the format does
not say which cases are of one person.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.dataset_json import read_dataset_json
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series

_FILE = re.compile(r"(.+)_(\d{4})\.nii(?:\.gz)?")


def matches(root: Path) -> bool:
    """A folder with `dataset.json` and NIfTI files that number their channels in `imagesTr`."""
    return (root / "dataset.json").is_file() and any(root.glob("imagesTr/*_0000.nii*"))


def read(root: Path) -> Sources:
    """Each case is one subject with one study; each channel is one series.

    Raises:
        ValueError: `dataset.json` is not that of nnU-Net.
    """
    data = read_dataset_json(root)
    gathered = Gathered()
    parts: dict[str, str] = {}
    for part in ("Tr", "Ts"):
        for path in sorted(root.glob(f"images{part}/*.nii*")):
            match = _FILE.fullmatch(path.name)
            if match is None or int(match[2]) >= len(data.sequences) or parts.get(match[1], part) != part:
                evidence = f"wanted <case>_<channel> in one folder, channels 0000 to {len(data.sequences) - 1:04d}"
                gathered.refuse("unknown-file", evidence, path)
            else:
                parts[match[1]] = part
                gathered.add(match[1], "scan", Series(sequence=data.sequences[int(match[2])], path=path))
    masks = {
        (part, path.name.removesuffix(".gz").removesuffix(".nii")): path
        for part in ("Tr", "Ts")
        for path in root.glob(f"labels{part}/*.nii*")
    }
    tested = any(part == "Ts" for part, _ in masks)
    data.refuse_masks(gathered)

    def said(case: str, _: str) -> dict[str, Any]:
        split = {"Tr": "train", "Ts": "test"}[parts[case]] if tested else None
        return {"split": split, **data.mask(masks.get((parts[case], case)))}

    return gathered.sources(said)
