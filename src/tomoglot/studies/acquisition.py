"""How a series was acquired, as far as its header says: facts to name it by, none that identify a person."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """Physics and words of one DICOM series (or of a JSON sidecar); None or empty where the header says nothing.

    Words (`description`, `protocol`) may hold a name that somebody typed there: they are read, never written out.
    """

    modality: str = ""  # DICOM's: MR, CT, PT, SC, ...
    image_type: tuple[str, ...] = ()
    description: str = ""
    protocol: str = ""
    sequence_name: str = ""
    scanning_sequence: tuple[str, ...] = ()
    sequence_variant: tuple[str, ...] = ()
    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    flip_deg: float | None = None
    echo_number: int | None = None
    b_value: float | None = None  # s/mm²
    contrast_agent: str = ""
    acquisition_type: str = ""  # 2D or 3D
    temporal_position: int | None = None
    trigger_ms: float | None = None
    body_part: str = ""
    kernel: str = ""
    kilovolts: float | None = None
    field_tesla: float | None = None
    manufacturer: str = ""
    num_slices: int | None = None
    burnt_in: bool | None = None
