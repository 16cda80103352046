"""Pixels of a DICOM volume: decoded, rescaled slice by slice, put on the grid that the headers give.

Read: uncompressed (little and big endian, deflated), RLE, JPEG baseline and lossless, JPEG-LS, JPEG 2000; 8, 16 and
32 bits, signed or not, and floating point pixels; classic slices, frames of multi-frame files, Siemens mosaics.
Not read, but refused: 12-bit extended JPEG (no free decoder is right about it), one bit a pixel, colour, palettes,
look-up tables in place of slope and intercept. Real World Value Mapping and vendors' private scales are not applied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import Grid, resample
from tomoglot.studies.dicom.decoder import decode
from tomoglot.studies.dicom.files import GIB, Limits
from tomoglot.studies.dicom.header import Header
from tomoglot.studies.dicom.parse import Image, read_image
from tomoglot.studies.dicom.stack import mosaic_reversed, mosaic_side
from tomoglot.studies.dicom.volumes import VolumePlan, group
from tomoglot.studies.study import Frame, Rejected, Volume

AIR_HU = -1024.0
# CT padding that means a value between these cannot be told from tissue, contrast agent or metal of that value.
_TISSUE_HU = (-900.0, 3000.0)
_FLOATS: dict[int, np.dtype[Any]] = {0x7FE00008: np.dtype("<f4"), 0x7FE00009: np.dtype("<f8")}
_BYTES_A_FRAME = GIB // 2

Array = NDArray[Any]
Files = dict[tuple[Path, str], Image]


def read_volume(
    frames: Sequence[Frame], *, resample_tilt: bool = False, limits: Limits | None = None, max_bytes: int = 4 * GIB
) -> Volume:
    """Read the slices of one volume: voxels (i along a row, j down a column, k from slice to slice) and RAS+ affine.

    Headers are read and checked again with `volumes.group`: the frames must give one volume and nothing else. Voxels
    are integers where every slope and intercept is whole, of the smallest type that holds what the bits stored can
    say; else float32. Voxels in the range of Pixel Padding Value become -1024 HU in CT and 0 elsewhere.
    `resample_tilt` accepts a tilted stack and resamples it to slices straight above one another (trilinear, float32).

    Raises:
        Rejected: whatever `parse.read_image` and `volumes.group` refuse, and `several-volumes`, `too-large`,
            `truncated-pixels`, `surplus-pixels`, `unsupported-pixels`, `bad-encapsulation`, `decoder-failed`,
            `codec-missing`, `padding-within-tissue`, `bad-scaling`, `non-finite-voxels`, `constant-image`.
    """
    limits = limits or Limits()
    files = _read_files(frames, limits, max_bytes)
    plan = _one_volume(frames, files, accept_tilt=resample_tilt)
    first = plan.headers[0]
    if (planned := 4 * first.rows * first.columns * len(plan.headers)) > max_bytes:
        raise Rejected("too-large", f"{planned} bytes as float32, the limit is {max_bytes}")
    floats = any(image.pixel_tag in _FLOATS for image in files.values())
    real: Array = np.empty((len(plan.headers), first.rows, first.columns), _real_type(plan.headers, floats=floats))
    for out, header, stored in zip(real, plan.headers, stored_frames(plan.headers, files, limits), strict=True):
        _fill(out, stored, header)
    if real.dtype.kind == "f" and not np.isfinite(real).all():
        raise Rejected("bad-scaling", f"{int((~np.isfinite(real)).sum())} of {real.size} voxels are beyond float32")
    voxels = (_tiles(real[0], first) if first.mosaic_tiles else real).transpose(2, 1, 0)
    if voxels.min() == voxels.max():
        raise Rejected("constant-image", f"all {voxels.size} voxels are {float(voxels.flat[0]):g}")
    return _upright(voxels, plan) if plan.tilt_deg else Volume(voxels=voxels, affine=plan.affine)


def _read_files(frames: Sequence[Frame], limits: Limits, max_bytes: int) -> Files:
    files: Files = {}
    held = 0
    for frame in {(frame.path, frame.member): frame for frame in frames}.values():
        image = files[frame.path, frame.member] = read_image(frame, limits)
        held += len(image.pixels)
        if held > max_bytes:
            raise Rejected("too-large", f"the files of one volume hold more than {max_bytes} bytes of pixels")
    return files


def _one_volume(frames: Sequence[Frame], files: Files, *, accept_tilt: bool) -> VolumePlan:
    headers = []
    for frame in frames:
        there = files[frame.path, frame.member].headers
        if frame.frame >= len(there):
            raise Rejected("truncated-pixels", f"frame {frame.frame + 1} of a file of {len(there)} is wanted")
        headers.append(there[frame.frame])
    grouped = group(headers, accept_tilt=accept_tilt)
    if grouped.refused:
        raise grouped.refused[0][1]
    if len(grouped.volumes) != 1:
        raise Rejected("several-volumes", f"{len(headers)} slices make {len(grouped.volumes)} volumes, wanted one")
    return grouped.volumes[0]


def stored_frames(headers: Sequence[Header], files: Files, limits: Limits) -> Iterator[Array]:
    """Stored values of each header's frame, rows x columns."""
    encoded: dict[tuple[Path, str], list[bytes]] = {}
    for header in headers:
        file = header.where.path, header.where.member
        if header.rows * header.columns * header.bits_allocated // 8 > _BYTES_A_FRAME:
            raise Rejected(
                "too-large", f"{header.rows} x {header.columns} pixels of {header.bits_allocated} bits a frame"
            )
        if not files[file].encapsulated:
            yield _native(files[file], header)
            continue
        if file not in encoded:
            encoded[file] = _encoded_frames(files[file], header.num_frames)
        yield _decompressed(encoded[file][header.where.frame], header, files[file].transfer_syntax, limits)


def _native(image: Image, header: Header) -> Array:
    """One frame of uncompressed pixels, a view of the file's bytes."""
    dtype = _FLOATS[image.pixel_tag] if image.pixel_tag in _FLOATS else _stored_type(header)
    if image.big_endian and dtype.itemsize == 1:
        raise Rejected("unsupported-pixels", "big endian with 8 bits a pixel, whose order of bytes is ambiguous")
    dtype = dtype.newbyteorder(">") if image.big_endian else dtype
    pixels = header.rows * header.columns
    wanted, present = pixels * dtype.itemsize * header.num_frames, len(image.pixels)
    if present < wanted:
        raise Rejected("truncated-pixels", f"{present} bytes of pixels where the header declares {wanted}")
    if present > wanted + 1 and any(memoryview(image.pixels)[wanted:]):
        raise Rejected("surplus-pixels", f"{present} bytes of pixels where the header declares {wanted}")
    offset = header.where.frame * pixels * dtype.itemsize
    frame = np.frombuffer(image.pixels, dtype, count=pixels, offset=offset).reshape(header.rows, header.columns)
    return frame.astype(dtype.newbyteorder("="), copy=False)


def _stored_type(header: Header) -> np.dtype[Any]:
    allocated, stored, high = header.bits_allocated, header.bits_stored, _high_bit(header)
    if allocated not in (8, 16, 32) or not 2 <= stored <= high + 1 <= allocated:
        raise Rejected("unsupported-pixels", f"{stored} bits stored, up to bit {high}, of {allocated} allocated")
    return np.dtype(f"<{'i' if header.signed else 'u'}{allocated // 8}")


def _high_bit(header: Header) -> int:
    return header.bits_stored - 1 if header.high_bit is None else header.high_bit


def _encoded_frames(image: Image, num_frames: int) -> list[bytes]:
    from pydicom.encaps import generate_frames

    table = (image.extended_offsets, image.extended_lengths) if image.extended_offsets else None
    try:
        frames = list(generate_frames(image.pixels, number_of_frames=num_frames, extended_offsets=table))
    except (ValueError, EOFError, struct.error, IndexError) as error:
        raise Rejected("bad-encapsulation", f"fragments cannot be told ({type(error).__name__})") from error
    if len(frames) != num_frames:
        raise Rejected("truncated-pixels", f"{len(frames)} compressed frames where the header declares {num_frames}")
    return frames


def _decompressed(frame: bytes, header: Header, transfer_syntax: str, limits: Limits) -> Array:
    dtype = _stored_type(header)
    options: dict[str, object] = {
        "transfer_syntax_uid": transfer_syntax,
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
    }
    decoded = decode(frame, options, seconds=limits.seconds_per_file)
    if decoded.shape != (header.rows, header.columns) or decoded.dtype.itemsize > dtype.itemsize:
        raise Rejected("decoder-failed", f"decoded to {decoded.shape} of {decoded.dtype}, wanted {dtype}")
    return decoded.astype(dtype, copy=False)


def _scale(header: Header) -> tuple[float, float]:
    return 1.0 if header.slope is None else header.slope, header.intercept or 0.0


def _air(header: Header) -> float:
    """Real value that stands where nothing was measured."""
    return AIR_HU if header.acquisition.modality == "CT" else 0.0


def _real_type(headers: Sequence[Header], *, floats: bool) -> np.dtype[Any]:
    """Smallest integer type that holds every real value the bits stored can say, or float32."""
    scales = {(*_scale(header), header.bits_stored, header.signed) for header in headers}
    if floats or any(slope % 1 or intercept % 1 for slope, intercept, *_ in scales):
        return np.dtype(np.float32)
    ends = [int(_air(header)) for header in headers[:1] if header.padding is not None]
    for slope, intercept, bits, signed in scales:
        low = -(1 << bits - 1) if signed else 0
        ends += [int(slope) * end + int(intercept) for end in (low, low + (1 << bits) - 1)]
    kinds = (np.int16, np.uint16, np.int32, np.uint32)
    fit = (kind for kind in kinds if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max)
    return np.dtype(next(fit, np.float32))


def _fill(out: Array, stored: Array, header: Header) -> None:
    """Write the real values of one slice."""
    slope, intercept = _scale(header)
    padded = None
    if header.padding is not None:
        # Before bits are cut: -2000 in 16 bits is a common padding of data that claim 12.
        padded = (stored >= header.padding[0]) & (stored <= header.padding[1])
        _check_padding(header, int(padded.sum()))
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise Rejected(
            "non-finite-voxels", f"{int((~np.isfinite(stored)).sum())} of {stored.size} values are not finite"
        )
    if stored.dtype.kind != "f" and header.bits_stored < header.bits_allocated:
        # To the top and back: what lies above falls out, and the shift down repeats the sign where there is one.
        up, down = header.bits_allocated - 1 - _high_bit(header), header.bits_allocated - header.bits_stored
        stored = np.left_shift(stored, up)
        np.right_shift(stored, down, out=stored)
    if slope == 1 and intercept == 0:
        np.copyto(out, stored, casting="unsafe")
    elif out.dtype.kind != "f":
        # In the type of the result: what wraps around on the way comes back, since every result fits.
        times, plus = np.array([slope, intercept]).astype(np.int64).astype(out.dtype)
        whole = stored if slope == 1 else np.multiply(stored, times, dtype=out.dtype, casting="unsafe")
        np.add(whole, plus, out=out, dtype=out.dtype, casting="unsafe")
    else:
        # float32 holds products of 16-bit integers to 1 part in 10 million; wider types need more on the way.
        wide = np.float32 if stored.dtype.itemsize <= 2 or stored.dtype == np.float32 else np.float64
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(np.multiply(stored, slope, dtype=wide), wide(intercept), out=out, casting="same_kind")
    if padded is not None:
        out[padded] = _air(header)


def _check_padding(header: Header, count: int) -> None:
    """CT only: padding that means water, say, would punch holes where tissue has that value."""
    slope, intercept = _scale(header)
    low, high = sorted(value * slope + intercept for value in header.padding or ())
    if count and header.acquisition.modality == "CT" and high > _TISSUE_HU[0] and low < _TISSUE_HU[1]:
        shown = f"{count} pixels of a slice are padding, which stands for {low:g} to {high:g} HU, as tissue does"
        raise Rejected("padding-within-tissue", shown)


def _tiles(sheet: Array, header: Header) -> Array:
    """Tiles of a mosaic as slices x rows x columns, in the order of the grid."""
    side, (rows, columns) = mosaic_side(header), sheet.shape
    tiles = sheet.reshape(side, rows // side, side, columns // side).swapaxes(1, 2)
    tiles = tiles.reshape(side * side, rows // side, columns // side)[: header.mosaic_tiles]
    return tiles[::-1] if mosaic_reversed(header) else tiles


def _upright(voxels: Array, plan: VolumePlan) -> Volume:
    """Resample a leaning stack on a grid whose slices lie straight above one another, wide enough for all of it."""
    columns, lean = plan.affine[:3, :2], plan.affine[:3, 2]
    # How far each slice moves along i and j, in voxels.
    moves = columns.T @ lean / (columns**2).sum(axis=0)
    far = moves * (plan.shape[2] - 1)
    before, after = np.ceil(np.maximum(-far, 0)), np.ceil(np.maximum(far, 0))
    affine = plan.affine.copy()
    affine[:3, 2] = lean - columns @ moves
    affine[:3, 3] -= columns @ before
    shape = (plan.shape[0] + int(before[0] + after[0]), plan.shape[1] + int(before[1] + after[1]), plan.shape[2])
    straight = resample(voxels, plan.affine, Grid(shape, affine), outside=_air(plan.headers[0]))
    return Volume(voxels=straight, affine=affine)
