"""What one DICOM image says about itself before its pixels are touched."""

from __future__ import annotations

from dataclasses import dataclass, field

from tomoglot.studies.acquisition import Acquisition
from tomoglot.studies.study import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One slice: a classic image, one frame of a multi-frame image, or a whole mosaic.

    The first group identifies a person: it is pseudonymised before anything is written and is in no message.
    """

    patient_id: str
    study_uid: str
    series_uid: str
    sop_uid: str
    accession: str = ""
    names: tuple[str, ...] = ()  # of people in the header, as DICOM writes them: "Doe^Jane"
    study_date: str = ""

    where: Frame
    acquisition: Acquisition = field(default_factory=Acquisition)
    sop_class: str = ""
    transfer_syntax: str = ""
    series_number: int | None = None
    acquisition_number: int | None = None
    instance_number: int | None = None
    acquisition_time: str = ""
    frame_of_reference: str = ""
    num_frames: int = 1

    rows: int = 0
    columns: int = 0
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns: DICOM's order
    position_mm: tuple[float, float, float] | None = None  # LPS, centre of the first voxel
    orientation: tuple[float, float, float, float, float, float] | None = None
    thickness_mm: float | None = None
    slice_step_mm: float | None = None  # Spacing Between Slices
    tilt_deg: float | None = None
    mosaic_tiles: int | None = None  # Siemens: number of images in the mosaic
    slice_normal: tuple[float, float, float] | None = None  # LPS, the way slices of a mosaic run (Siemens CSA header)

    bits_allocated: int = 0
    bits_stored: int = 0
    high_bit: int | None = None
    signed: bool = False
    samples: int = 1
    photometric: str = ""
    slope: float | None = None
    intercept: float | None = None
    rescale_type: str = ""
    padding: tuple[float, float] | None = None  # lowest and highest stored value that means "no data"
