"""What crosses from studies to the store: subjects, studies, series and reports. Anything may be missing.

A subject is a person under a pseudonym; a study is one visit; a series is one acquisition, named by what it shows
(`t1w`, `flair`, `ct`); a volume is its voxels. No message built here carries a path's folders or a subject's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Grid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """Voxels of one series and the affine that takes their indices to RAS+ millimetres."""

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        i, j, k = self.voxels.shape
        return Grid((i, j, k), self.affine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where one slice of a DICOM volume is: a file, or a member of a zip file, and which of its frames."""

    path: Path
    member: str = ""
    frame: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a data set's own table says of a series, because its files may not: see `stated.read_series`.

    `spacing_mm` is along the file's voxel axes; `orientation` and `position_mm` are DICOM's (directions of the first
    two axes, centre of the first voxel, LPS). `hounsfield` is the slope and intercept from stored values to Hounsfield
    units, (1, 0) where the files are said to hold them already.
    """

    spacing_mm: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None
    position_mm: tuple[float, ...] | None = None
    hounsfield: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One acquisition: what it shows, and the file or folder that holds it.

    A DICOM series lists its `frames` in slice order; a mosaic, which holds a whole volume in one image, is one frame.
    `alias` stands for its files in tables, where their names, which may name a person, never stand. `channel` is one
    volume of a NIfTI file with four axes; `untilt` allows a leaning stack of slices to be resampled.
    """

    sequence: str
    path: Path
    frames: tuple[Frame, ...] = ()
    alias: str = ""
    channel: int | None = None
    untilt: bool = False
    stated: Stated | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A radiologist's report: the whole text, and its sections where they could be told apart."""

    text: str
    findings: str = ""
    impression: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One visit of one subject.

    `labels` holds known findings only: 1 present, 0 absent, no key where unknown; `labels_mined` names those of them
    that rules read from the report (`findings.mine_labels`) and no reader gave. `mask_labels` says what the numbers in
    the mask file mean, in the words of `lesion.LESIONS`; where it is empty, the file's numbers are kept as they are.
    """

    subject: str
    study: str
    series: tuple[Series, ...] = ()
    report: Report | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    labels_mined: tuple[str, ...] = ()
    mask: Path | None = None
    mask_labels: Mapping[int, str] = field(default_factory=dict)
    split: str | None = None
    simulated: bool = False


class Rejected(ValueError):
    """A file, series or study that is not accepted: a stable reason and the evidence that shows it.

    `reason` is a short slug that tables can count (`truncated-gzip`); `evidence` is a sentence with the numbers, and
    what to do next where that helps. Neither may hold anything that identifies a person.
    """

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(f"{reason}: {evidence}")
        self.reason = reason
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        """Keep both parts when the error crosses a process."""
        return type(self), (self.reason, self.evidence)
