"""Header sets that we wrote: an open half, for writing the rules, and a blind half that was frozen before them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pydicom

from tomoglot.studies.acquisition import Acquisition

DATA = Path(__file__).parent / "data"
BLIND_SHA256 = "de9701c20ec56ef01d75b44e099bfbe2c9694d34914f5c94e5097bbcd823a98c"
_TEXTS = ("contrast_agent", "acquisition_type", "body_part", "kernel")
_WHOLE = ("temporal_position", "echo_number", "num_slices")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSet:
    """One header and what it shows; `lie` says which of its words are untrue. `wanted` None: nothing can be told."""

    row: int
    wanted: str | None
    kind: str
    lie: str
    acquisition: Acquisition


def read_header_sets(half: str) -> list[HeaderSet]:
    """All rows of headers_open.psv or headers_blind.psv."""
    lines = (DATA / f"headers_{half}.psv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split("|")
    return [_read(number, dict(zip(names, line.split("|"), strict=True))) for number, line in enumerate(lines[1:], 2)]


def blind_half_is_frozen() -> bool:
    """Whether the blind half is, to the byte, what was written before any rule was."""
    return hashlib.sha256((DATA / "headers_blind.psv").read_bytes()).hexdigest() == BLIND_SHA256


def _read(number: int, row: dict[str, str]) -> HeaderSet:
    def split(text: str) -> tuple[str, ...]:
        return tuple(text.split("\\")) if text else ()

    extra: dict[str, str] = dict(one.split("=", 1) for one in row["extra"].split(";") if one)
    more: dict[str, object] = {name: extra[name] for name in _TEXTS if name in extra}
    more |= {name: int(extra[name]) for name in _WHOLE if name in extra}
    more |= {name: float(extra[name]) for name in ("b_value", "kilovolts", "trigger_ms") if name in extra}
    if "burnt_in" in extra:
        more["burnt_in"] = True
    timing = {ours: float(row[theirs]) if row[theirs] else None for ours, theirs in _NUMBERS.items()}
    acquisition = Acquisition(
        modality=extra.get("modality", "MR"),
        manufacturer=row["vendor"],
        description=row["description"],
        protocol=row["protocol"],
        sequence_name=row["sequence_name"],
        scanning_sequence=split(row["scanning"]),
        sequence_variant=split(row["variant"]),
        image_type=split(row["image_type"]),
        **timing,
        **more,
    )
    wanted = None if row["want"] == "-" else row["want"]
    return HeaderSet(row=number, wanted=wanted, kind=row["kind"], lie=row["lie"], acquisition=acquisition)


def read_dicom_acquisitions(folder: Path) -> dict[str, list[Acquisition]]:
    """One acquisition of each folder of DICOM files below each sub-folder of `folder` (a series each), by pydicom."""
    found = {}
    for data in sorted(one for one in folder.iterdir() if one.is_dir()):
        first = {path.parent: path for path in sorted(data.rglob("*.dcm"), reverse=True)}
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in first.values()]
        found[data.name] = [_of_dicom(header) for header in headers]
    return {name: series for name, series in found.items() if series}


def _of_dicom(header: pydicom.Dataset) -> Acquisition:
    values: dict[str, object] = {}
    for ours, keyword in _KEYWORDS.items():
        value = header.get(keyword)
        if value is None or value == "":
            continue
        if ours in {"image_type", "scanning_sequence", "sequence_variant"}:
            values[ours] = (value,) if isinstance(value, str) else tuple(value)
        else:
            values[ours] = float(value) if ours in _NUMBERS or ours == "b_value" else str(value)
    return Acquisition(**values)


_KEYWORDS = {
    "modality": "Modality", "image_type": "ImageType", "description": "SeriesDescription", "protocol": "ProtocolName",
    "sequence_name": "SequenceName", "scanning_sequence": "ScanningSequence", "sequence_variant": "SequenceVariant",
    "repetition_ms": "RepetitionTime", "echo_ms": "EchoTime", "inversion_ms": "InversionTime", "flip_deg": "FlipAngle",
    "b_value": "DiffusionBValue", "contrast_agent": "ContrastBolusAgent", "body_part": "BodyPartExamined",
    "field_tesla": "MagneticFieldStrength", "manufacturer": "Manufacturer",
}  # fmt: skip
_NUMBERS = {
    "repetition_ms": "tr", "echo_ms": "te", "inversion_ms": "ti", "flip_deg": "flip", "field_tesla": "tesla",
}  # fmt: skip
