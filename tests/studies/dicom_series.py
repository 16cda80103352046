"""A test-only writer of DICOM series: a volume in RAS+ becomes classic slices, one multi-frame file or a mosaic.

`edit(k, dataset)` is called on each slice before it is written, so that a test can break whatever it likes; it may
return False to leave the slice out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

LPS = np.diag([-1.0, -1.0, 1.0])
Edit = Callable[[int, Dataset], "bool | None"]


def marked_volume(shape: tuple[int, int, int] = (10, 12, 8), *, seed: int = 0) -> np.ndarray:
    """Whole numbers with no symmetry: every flip and every exchange of axes can be told."""
    rng = np.random.default_rng(seed)
    i, j, k = np.indices(shape)
    return (40 * i + 9 * j + 3 * k + rng.integers(0, 30, shape) + 1).astype(np.int16)


def axis_affine(
    order: Sequence[int] = (0, 1, 2),
    flips: Sequence[int] = (1, 1, 1),
    spacing_mm: Sequence[float] = (1.0, 1.0, 2.0),
    origin_mm: Sequence[float] = (-20.0, -30.0, 10.0),
) -> np.ndarray:
    """RAS+ affine whose voxel axis `a` runs along world axis `order[a]` (backwards where `flips[a]` is -1)."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = flips[axis] * spacing_mm[axis]
    affine[:3, 3] = origin_mm
    return affine


def uid(*parts: object) -> str:
    """The same words give the same UID."""
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "MR",
    patient: str = "P1",
    study: str = "S1",
    series: str = "1",
    slope: float | None = None,
    intercept: float | None = None,
    signed: bool = False,
    bits_stored: int = 16,
    padding: int | None = None,
    header: Mapping[str, Any] | None = None,
    edit: Edit | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    shuffle: int | None = None,
    prefix: str = "im",
) -> list[Path]:
    """Write one classic file a slice along the last axis of `voxels`; gives the paths in slice order.

    Column index runs along i, row index along j, as in the world that `affine` (RAS+ mm) describes. `voxels` are real
    values: what is stored is (value - intercept) / slope. `header` sets or (None) deletes attributes by keyword.
    `shuffle` (a seed) mixes file names and instance numbers, so that only geometry gives the order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_slices = voxels.shape[2]
    numbers = np.arange(num_slices)
    if shuffle is not None:
        numbers = np.random.default_rng(shuffle).permutation(num_slices)
    stored = _stored(voxels, slope, intercept, signed=signed)
    paths = []
    for k in range(num_slices):
        dataset = _slice(stored[:, :, k].T, affine @ np.array([0, 0, k, 1.0]), affine, signed=signed)
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
        _identify(dataset, modality=modality, patient=patient, study=study, series=series, number=int(numbers[k]) + 1)
        if slope is not None or intercept is not None or modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = slope or 1, intercept or 0
        if padding is not None:
            dataset.PixelPaddingValue = padding
        _set(dataset, header)
        if edit is not None and edit(k, dataset) is False:
            continue
        paths.append(folder / f"{prefix}{numbers[k]:04d}.dcm")
        save(dataset, paths[-1], transfer_syntax)
    return paths


def write_enhanced(
    path: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    patient: str = "P1",
    study: str = "S1",
    series: str = "1",
    header: Mapping[str, Any] | None = None,
    slopes: Sequence[float] | None = None,
    b_values: Sequence[float] | None = None,
    echoes_ms: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
    edit: Callable[[Dataset], None] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """Write one enhanced MR file. `voxels` is (i, j, k) or (i, j, k, t); frames run k fastest, or as `order` says.

    `slopes` is one a frame and `b_values`, `echoes_ms` one a volume, all in the order of k fastest.
    """
    volumes = voxels if voxels.ndim == 4 else voxels[..., None]
    num_slices, num_volumes = volumes.shape[2:]
    frames = [(k, t) for t in range(num_volumes) for k in range(num_slices)]
    order = range(len(frames)) if order is None else order
    dataset = _slice(volumes[:, :, 0, 0].T.astype(np.uint16), affine[:, 3], affine, signed=False)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset.SliceThickness
    _identify(dataset, modality="MR", patient=patient, study=study, series=series, number=1)
    for keyword in ("EchoTime", "RepetitionTime", "FlipAngle"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(frames)
    dataset.SharedFunctionalGroupsSequence = Items([_shared(affine)])
    groups, pixels = [], []
    for place in order:
        k, t = frames[place]
        slope = 1.0 if slopes is None else slopes[place]
        group = _frame_group(
            affine @ np.array([0, 0, k, 1.0]),
            slope=slope,
            b_value=None if b_values is None else b_values[t],
            echo_ms=None if echoes_ms is None else echoes_ms[t],
        )
        groups.append(group)
        pixels.append(np.round(volumes[:, :, k, t].T / slope).astype(np.uint16))
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.PixelData = np.stack(pixels).tobytes()
    _set(dataset, header)
    if edit is not None:
        edit(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, path, transfer_syntax)
    return path


def write_mosaic(
    path: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    patient: str = "P1",
    study: str = "S1",
    series: str = "1",
    number: int = 1,
    header: Mapping[str, Any] | None = None,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a whole volume as one Siemens mosaic: tiles left to right, top to bottom, with a CSA image header."""
    columns, rows, num_slices = voxels.shape
    side = int(np.ceil(np.sqrt(num_slices)))
    sheet = np.zeros((side * rows, side * columns), dtype=np.uint16)
    for k in range(num_slices):
        top, left = (k // side) * rows, (k % side) * columns
        sheet[top : top + rows, left : left + columns] = voxels[:, :, k].T
    # Image Position of a mosaic is that of the corner of a slice as large as the whole sheet (dcm2niix, nibabel).
    shift = (np.array([columns, rows]) - np.array([columns, rows]) * side) / 2
    corner = affine @ np.array([shift[0], shift[1], 0, 1.0])
    dataset = _slice(sheet, corner, affine, signed=False)
    _identify(dataset, modality="MR", patient=patient, study=study, series=series, number=number)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.Manufacturer = "SIEMENS"
    normal = LPS @ affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    dataset.SpacingBetweenSlices = float(np.linalg.norm(affine[:3, 2]))
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", num_slices)
    csa = csa_header({"NumberOfImagesInMosaic": ("US", [num_slices]), "SliceNormalVector": ("FD", list(normal))})
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa)
    _set(dataset, header)
    if edit is not None:
        edit(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, path)
    return path


def csa_header(values: Mapping[str, tuple[str, Sequence[float]]]) -> bytes:
    """Siemens' "SV10" table: name, VR and text items."""
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(values), 77)
    for name, (vr, items) in values.items():
        out += name.encode().ljust(64, b"\0") + struct.pack("<i", len(items)) + vr.encode().ljust(4, b"\0")
        out += struct.pack("<3i", 0, len(items), 77)
        for item in items:
            text = (str(item) if isinstance(item, int) else f"{item:.8f}").encode() + b"\0"
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text.ljust(-(-len(text) // 4) * 4, b"\0")
    return out


def save(dataset: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Write with a file meta group; encodes the pixels where the transfer syntax asks for it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, dataset, file_meta=meta, preamble=b"\0" * 128)
    from pydicom.uid import UID

    if UID(transfer_syntax).is_encapsulated:
        file.compress(transfer_syntax, generate_instance_uid=False)
    else:
        meta.TransferSyntaxUID = transfer_syntax
    file.save_as(path, enforce_file_format=True)


def _stored(voxels: np.ndarray, slope: float | None, intercept: float | None, *, signed: bool) -> np.ndarray:
    stored = np.round((voxels.astype(np.float64) - (intercept or 0)) / (slope or 1))
    kind = np.int16 if signed else np.uint16
    limits = np.iinfo(kind)
    assert stored.min() >= limits.min and stored.max() <= limits.max, "values do not fit what is stored"
    return stored.astype(kind)


def _slice(pixels: np.ndarray, corner: np.ndarray, affine: np.ndarray, *, signed: bool) -> Dataset:
    # `pixels` is rows x columns; `corner` the RAS+ place of its first.
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    axes = LPS @ (affine[:3, :3] / steps)
    dataset = Dataset()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.ImagePositionPatient = [f"{v:.8g}" for v in LPS @ corner[:3]]
    dataset.ImageOrientationPatient = [f"{v:.8g}" for v in (*axes[:, 0], *axes[:, 1])]
    dataset.PixelSpacing = [f"{steps[1]:.8g}", f"{steps[0]:.8g}"]
    dataset.SliceThickness = f"{steps[2]:.8g}"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def _identify(dataset: Dataset, *, modality: str, patient: str, study: str, series: str, number: int) -> None:
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.SOPInstanceUID = uid(patient, study, series, number, "instance")
    dataset.StudyInstanceUID = uid(patient, study)
    dataset.SeriesInstanceUID = uid(patient, study, series)
    dataset.FrameOfReferenceUID = uid(patient, study, "frame")
    dataset.PatientID, dataset.PatientName = patient, f"Name^{patient}"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.AccessionNumber = f"ACC{study}"[:16]
    dataset.StudyID = study[:16]
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200102"
    dataset.StudyTime = dataset.ContentTime = "101112"
    dataset.AcquisitionTime = "101112"
    dataset.Modality = modality
    dataset.Manufacturer = "TESTMAKER"
    dataset.SeriesNumber = int(series) if series.isdigit() else 1
    dataset.InstanceNumber, dataset.AcquisitionNumber = number, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M", "ND"]
    if modality == "CT":
        dataset.KVP, dataset.SeriesDescription, dataset.BodyPartExamined = 120, "Head", "HEAD"
        return
    # A plain T1-weighted spin echo: TR and TE both short.
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.MRAcquisitionType = "SE", "NONE", "2D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.FlipAngle = 500, 10, 90
    dataset.MagneticFieldStrength, dataset.SeriesDescription = 1.5, "T1 SE"


def _shared(affine: np.ndarray) -> Dataset:
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    axes = LPS @ (affine[:3, :3] / steps)
    group, orientation, measures, timing = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{v:.8g}" for v in (*axes[:, 0], *axes[:, 1])]
    group.PlaneOrientationSequence = Items([orientation])
    measures.PixelSpacing = [f"{steps[1]:.8g}", f"{steps[0]:.8g}"]
    measures.SliceThickness = f"{steps[2]:.8g}"
    group.PixelMeasuresSequence = Items([measures])
    timing.RepetitionTime, timing.FlipAngle = 500, 90
    group.MRTimingAndRelatedParametersSequence = Items([timing])
    return group


def _frame_group(corner: np.ndarray, *, slope: float, b_value: float | None, echo_ms: float | None) -> Dataset:
    group, position, rescale, echo = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [f"{v:.8g}" for v in LPS @ corner[:3]]
    group.PlanePositionSequence = Items([position])
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, 0, "US"
    group.PixelValueTransformationSequence = Items([rescale])
    echo.EffectiveEchoTime = 10.0 if echo_ms is None else echo_ms
    group.MREchoSequence = Items([echo])
    if b_value is not None:
        diffusion = Dataset()
        diffusion.DiffusionBValue = float(b_value)
        diffusion.DiffusionDirectionality = "NONE" if b_value == 0 else "ISOTROPIC"
        group.MRDiffusionSequence = Items([diffusion])
    return group


def _set(dataset: Dataset, header: Mapping[str, Any] | None) -> None:
    for keyword, value in (header or {}).items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
