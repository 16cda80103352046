"""BIDS derivatives: `sub-*/[ses-*/]anat/*[_space-<name>][_desc-preproc]_<suffix>.nii.gz`, as fMRIPrep and others write.

Brain Imaging Data Structure 1.10, "BIDS Derivatives"; a folder whose `dataset_description.json` says `derivative`. Read
are images with `desc-preproc` or without `desc`, the subject's own space before any template's; another space or
description of the same sequence is a rejected row `another-<sequence>`. A mask is read only where its name says lesion
(`label-lesion`, `desc-lesion`): a brain mask or a tissue segmentation is none, and is left out without a row.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tomoglot.studies.cases import Gathered
from tomoglot.studies.sequence import known_sequence
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series

_FILE = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)*)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?")
_FOLDERS = ("anat", "dwi", "ct")
_OWN_SPACES = ("", "orig", "individual", "t1w", "t2w", "flair")


def matches(root: Path) -> bool:
    """A folder whose `dataset_description.json` has `DatasetType` derivative, and that has `sub-*` folders."""
    try:
        said = json.loads((root / "dataset_description.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    is_derivative = isinstance(said, dict) and str(said.get("DatasetType")).lower() == "derivative"
    return is_derivative and any(path.is_dir() for path in root.glob("sub-*"))


def read(root: Path) -> Sources:
    """Each session is one study; a subject without sessions has one."""
    gathered = Gathered()
    masks: dict[tuple[str, str], tuple[bool, Path]] = {}
    for folder in sorted(path for path in root.glob("sub-*") if path.is_dir()):
        for session in sorted(path for path in folder.glob("ses-*") if path.is_dir()) or [folder]:
            for path in sorted(path for name in _FOLDERS for path in (session / name).glob("*.nii*")):
                match = _FILE.fullmatch(path.name)
                if match is None:
                    continue
                entities = dict(entity.split("-", 1) for entity in match["entities"].rstrip("_").split("_") if entity)
                foreign = entities.get("space", "").lower() not in _OWN_SPACES
                sequence, description = known_sequence(match["suffix"]), entities.get("desc", "")
                key = folder.name, session.name
                if match["suffix"] in ("mask", "dseg"):
                    if "lesion" in f"{description} {entities.get('label', '')}".lower():
                        masks[key] = min(masks.get(key, (foreign, path)), (foreign, path))
                elif sequence is not None and description in ("", "preproc"):
                    sequence = "t1c" if sequence == "t1w" and "ce" in entities else sequence
                    gathered.add(*key, Series(sequence=sequence, path=path), rank=(foreign, description == ""))
    return gathered.sources(lambda *key: {"mask": masks[key][1] if key in masks else None})
