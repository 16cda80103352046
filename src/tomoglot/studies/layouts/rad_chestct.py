"""RAD-ChestCT, chest CT with mined labels and no reports: `{trn,val,tst}NNNNN.npz` and the tables beside them.

Draelos et al., "Machine-learning-based multiple abnormality prediction with large-scale chest computed tomography
volumes", Medical Image Analysis (2021); Zenodo 6406114, 3,630 volumes. Not checked on the data; known from the Zenodo
page, the authors' code (rachellea/ct-volume-preprocessing, their lung segmentation) and public code that reads the set:

- a volume is the array `ct`, int16, Hounsfield units cut to -1000 to 1000, resampled to 0.8 mm;
- `CT_Scan_Metadata_Complete_35747.csv` has `VolumeAcc_DEID` (the file), `MRN_DEID` (the patient, who may have several
  scans), `final_spacing` and `orig_orientation`;
- `img{train,valid,test}_Abnormality_and_Location_Labels.csv` has `NoteAcc_DEID` (the scan) and 84 x 52 columns
  `abnormality*location`, which rules read from the reports.

**Axes.** 0 goes from head to feet, 1 from front to back, 2 from the subject's right to the left. Their code refuses all
but axial slices in the standard orientation, asserts that slices are sorted from the highest position down, and puts
slices first; their table of lung boxes says the same (`sup_axis0min`, `ant_axis1min`, `rig_axis2min`), and one user
found it so by eye. Some public conversions leave the first axis unturned: upside down. Nothing in a file tells, so look
at a page of pictures. A row whose `orig_orientation` is another is refused. Where a volume lay is not released: its
first voxel is put at 0. That the voxels are Hounsfield units is looked at (`stated.read_series`).

The split is that of the names, and a scan's labels are read in the table of its own part. 17 of the 18 findings of
CT-RATE are mapped, by our judgement (`studies.rad_chestct`). A volume without a patient in the metadata is refused: two
scans of one person must count as one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tomoglot.studies.cases import Gathered
from tomoglot.studies.rad_chestct import map_labels
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Stated
from tomoglot.studies.table import cell_number, cell_text, each_row

_VOLUME = re.compile(r"(trn|val|tst)\d+\.npz")
_SPLITS = {"trn": "train", "val": "val", "tst": "test"}
_METADATA = "CT_Scan_Metadata_Complete*.csv"
_LABELS = "img*_Abnormality_and_Location_Labels.csv"
_TABLES = {"imgtrain": "trn", "imgvalid": "val", "imgtest": "tst"}
_STANDARD = [1, 0, 0, 0, 1, 0]
# Directions of the first two axes in LPS, to the feet and to the back; the third, their product, is to the left.
_AXES = (0.0, 0.0, -1.0, 0.0, 1.0, 0.0)


def matches(root: Path) -> bool:
    """A folder with a table of labels and volumes, each in it or one folder further down."""
    return bool(_files(root, _LABELS)) and any(_VOLUME.fullmatch(path.name) for path in _files(root, "*.npz"))


def read(root: Path) -> Sources:
    """Each volume is one study of its patient; rows are gone through one by one, for a table of labels is gigabytes.

    Raises:
        ValueError: a table cannot be read, or is not one of this set.
    """
    gathered, volumes, missing = Gathered(), _files(root, "*.npz"), 0
    here = {path.name for path in volumes}
    metadata = {
        name: {key: row.get(key) for key in ("MRN_DEID", "orig_orientation", "final_spacing")}
        for path in _files(root, _METADATA)
        for row in each_row(path)
        if (name := str(row.get("VolumeAcc_DEID"))) in here
    }
    labels = {
        scan: map_labels(row)
        for path in _files(root, _LABELS)
        for row in each_row(path)
        if f"{(scan := str(row.get('NoteAcc_DEID')))}.npz" in here and scan[:3] == _TABLES.get(path.name.split("_")[0])
    }
    for path in volumes:
        row = metadata.get(path.name, {})
        subject, study = cell_text(row.get("MRN_DEID")), path.stem
        if _VOLUME.fullmatch(path.name) is None:
            gathered.refuse("unknown-file", "wanted trnNNNNN.npz, valNNNNN.npz or tstNNNNN.npz", path)
        elif subject is None:
            evidence = f"no {_METADATA} here names its patient (MRN_DEID); the set has that table"
            gathered.refuse("no-subject", evidence, path, study=study)
        elif [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", str(row["orig_orientation"]))] != _STANDARD:
            evidence = f"orig_orientation in the metadata is {str(row['orig_orientation'])[:60]}, wanted 1,0,0,0,1,0"
            gathered.refuse("unknown-orientation", evidence, path, subject=subject, study=study)
        else:
            # What is not there becomes NaN, which is refused where the file is read.
            step = cell_number(row["final_spacing"])
            stated = Stated(spacing_mm=(step,) * 3, orientation=_AXES, position_mm=(0.0,) * 3, hounsfield=(1, 0))
            gathered.add(subject, study, Series(sequence="ct", path=path, stated=stated))
            missing += study not in labels
    if missing:
        gathered.refuse("labels-absent", f"{missing} volumes have no row in the table of labels of their part")

    def said(_: str, study: str) -> dict[str, Any]:
        found = labels.get(study, {})
        return {"labels": found, "labels_mined": tuple(sorted(found)), "split": _SPLITS[study[:3]]}

    return gathered.sources(said)


def _files(root: Path, name: str) -> list[Path]:
    return sorted([*root.glob(name), *root.glob(f"*/{name}")])
