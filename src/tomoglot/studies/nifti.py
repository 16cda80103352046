"""NIfTI files, read strictly: a gzip stream to its end so that its CRC counts, and no file that contradicts itself.

The file format: Cox et al., "A (sort of) new image data format standard: NIfTI-1" (2004), and NIfTI-2 (2011).
nibabel reads the header's fields; the bytes are read here, because a reader that stops after the last voxel never
sees the gzip check sum that follows it.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import BinaryIO, TypeAlias

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from tomoglot.geometry import spacing_mm
from tomoglot.studies import atomic
from tomoglot.studies.study import Rejected, Volume

GIB = 1024**3
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
# Deflate cannot do better than 1032 to 1, so a declared size beyond that of the compressed one is a lie.
_DEFLATE_LIMIT = 1032
# Padding that writers leave after the last voxel; anything longer means that the header is about another image.
_PADDING = 512
_LEAST_MM, _MOST_MM = 0.01, 100.0
# (uint8 to uint64, int8 to int64, float32, float64): numbers that a voxel can be.
_KINDS = "uif"
_WRITTEN = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

Header: TypeAlias = nibabel.Nifti1Header


def read_nifti(
    path: Path,
    *,
    channel: int | None = None,
    max_bytes: int = 4 * GIB,
    allow_constant: bool = False,
    flat: bool = False,
) -> Volume:
    """Read one volume from `.nii` or `.nii.gz`, or say why not.

    Voxels keep the stored type where the header has no scaling, and are floats where it has one. A fourth axis of
    one frame is dropped; of a longer one, `channel` is read. `allow_constant` is for masks, which may be empty; `flat`
    for images, which have one voxel along the third axis.

    Raises:
        Rejected: `absent`, `not-a-file`, `unreadable`, `empty-file`, `not-nifti`, `damaged-gzip`, `truncated`,
            `size-mismatch`, `too-large`, `wrong-dimension`, `unsupported-type`, `bad-scaling`,
            `unknown-orientation`, `bad-affine`, `bad-spacing`, `non-finite-voxels`, `constant-image` or
            `no-such-channel`.
    """
    try:
        if not path.exists():
            raise Rejected("absent", f"{path.name}: there is no such file")
        if not path.is_file():
            raise Rejected("not-a-file", f"{path.name}: is a folder or a device, wanted a file")
        header, data = _read_bytes(path, channel, max_bytes)
        _check_depth(header, path.name, flat=flat)
    except OSError as error:
        raise Rejected("unreadable", f"{path.name}: {error.strerror or type(error).__name__}") from error
    affine = _affine(header, path.name)
    voxels = _voxels(header, data, channel, path.name)
    if not allow_constant and voxels.min() == voxels.max():
        raise Rejected("constant-image", f"{path.name}: all {voxels.size} voxels are {voxels.flat[0]:g}")
    return Volume(voxels=voxels, affine=affine)


def write_nifti(path: Path, volume: Volume, *, description: str = "") -> None:
    """Write a volume as NIfTI-1, gzipped where `path` ends in `.gz`; atomic, and the same bytes for the same volume.

    Raises:
        ValueError: a voxel type that NIfTI-1 readers do not share (64-bit integers, complex), or a description
            of more than 79 bytes.
    """
    voxels = volume.voxels.astype(np.uint8) if volume.voxels.dtype == bool else volume.voxels
    if voxels.dtype.name not in _WRITTEN:
        raise ValueError(
            f"{path.name}: voxels of type {voxels.dtype} are not written; convert them to int32 or float32"
        )
    if len(description.encode()) > 79:
        raise ValueError(f"{path.name}: the description has {len(description.encode())} bytes, NIfTI-1 holds 79")
    image = nibabel.Nifti1Image(voxels, volume.affine)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    data = image.to_bytes()
    if path.suffix == ".gz":
        # Straight from zlib: no time and no file name in the gzip header, so equal volumes are equal files.
        squeeze = zlib.compressobj(6, wbits=31)
        data = squeeze.compress(data) + squeeze.flush()
    atomic.write_bytes(path, data)


def _read_bytes(path: Path, channel: int | None, max_bytes: int) -> tuple[Header, bytearray]:
    """Header and all bytes of the file, unpacked; sizes are checked before anything of that size is allocated."""
    file_bytes = path.stat().st_size
    if file_bytes == 0:
        raise Rejected("empty-file", f"{path.name}: 0 bytes")
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP
        stream.seek(0)
        if not packed:
            header = _header(stream.read(540), path.name)
            wanted = _declared_bytes(header, path.name, channel, max_bytes)
            _check_length(file_bytes, wanted, path.name)
            stream.seek(0)
            return header, bytearray(stream.read())
        unpacked = _Unpacked(stream, path.name)
        unpacked.fill(540)
        header = _header(bytes(unpacked.data[:540]), path.name)
        wanted = _declared_bytes(header, path.name, channel, max_bytes)
        if wanted > file_bytes * _DEFLATE_LIMIT + 1024:
            raise Rejected(
                "truncated",
                f"{path.name}: the header declares {wanted} bytes, {file_bytes} compressed bytes cannot hold them",
            )
        # One byte more than may be there: enough to see that there is too much, without unpacking a bomb.
        unpacked.fill(wanted + _PADDING + 1)
        _check_length(len(unpacked.data), wanted, path.name)
        assert unpacked.ended, "a stream that is not longer than asked for was read to its end"
        return header, unpacked.data


class _Unpacked:
    """The content of a gzip file, unpacked as far as asked; the check sum of each member is verified at its end."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.data = bytearray()
        self.ended = False
        self._stream = stream
        self._name = name
        self._member = zlib.decompressobj(wbits=31)
        self._packed = b""

    def fill(self, size: int) -> None:
        """Unpack until `data` has at least `size` bytes or the file ends.

        Raises:
            Rejected: `truncated` where the stream stops early; `damaged-gzip` where it contradicts itself, its
                check sum does not fit, or something that is not gzip follows it.
        """
        while len(self.data) < size and not self.ended:
            self._packed = self._packed or self._stream.read(_CHUNK)
            if self._member.eof:
                self._next_member()
                continue
            if not self._packed and not self._member.unconsumed_tail:
                # Nothing is left to feed, but what was fed may still wait to be given out.
                if not self._step(b""):
                    raise Rejected(
                        "truncated", f"{self._name}: gzip stream stops after {len(self.data)} unpacked bytes"
                    )
                continue
            self._step(self._packed)

    def _step(self, packed: bytes) -> bool:
        try:
            more = self._member.decompress(packed, _CHUNK)
        except zlib.error as error:
            what = str(error).removeprefix("Error -3 while decompressing data: ")
            raise Rejected("damaged-gzip", f"{self._name}: {what}, after {len(self.data)} unpacked bytes") from error
        self.data += more
        self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        return bool(more) or self._member.eof

    def _next_member(self) -> None:
        """After a member: the end, zero padding, or another member (block-gzipped files have many)."""
        if not self._packed:
            self.ended = True
        elif self._packed[:1] == _GZIP[:1]:
            self._member = zlib.decompressobj(wbits=31)
        elif self._packed.strip(b"\0"):
            raise Rejected("damaged-gzip", f"{self._name}: bytes that are not gzip follow the gzip stream")
        else:
            self._packed = b""


def _header(start: bytes, name: str) -> Header:
    for kind, size, magic in ((nibabel.Nifti1Header, 348, (b"n+1",)), (nibabel.Nifti2Header, 540, (b"n+2",))):
        if len(start) < size or start[:4] not in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            continue
        header = kind(start[:size], check=False)
        if header["magic"].item()[:3] not in magic:
            raise Rejected("not-nifti", f"{name}: not a single-file NIfTI image (voxels elsewhere, or Analyze 7.5)")
        return header
    raise Rejected("not-nifti", f"{name}: does not start with a NIfTI header")


def _declared_bytes(header: Header, name: str, channel: int | None, max_bytes: int) -> int:
    """Bytes that the file must have by its own header; dimensions, type and size are checked on the way."""
    _shape(header, channel, name)
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):  # a code that nibabel does not know is a KeyError
        dtype = np.dtype(np.void)
    if dtype.kind not in _KINDS or dtype.itemsize > 8:
        raise Rejected(
            "unsupported-type", f"{name}: voxels of NIfTI type {int(header['datatype'])}, wanted real numbers"
        )
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset >= int(header["sizeof_hdr"]) and offset == int(offset)):
        raise Rejected("not-nifti", f"{name}: voxels are said to start at byte {offset:g}")
    # In Python's integers: numpy's would wrap around, and an absurd size would look small.
    wanted = int(offset) + math.prod(int(size) for size in _sizes(header)) * dtype.itemsize
    if wanted > max_bytes:
        raise Rejected("too-large", f"{name}: the header declares {wanted} bytes, the limit is {max_bytes}")
    return wanted


def _check_length(present: int, wanted: int, name: str) -> None:
    if present < wanted:
        raise Rejected("truncated", f"{name}: {present} bytes where the header declares {wanted}")
    if present > wanted + _PADDING:
        raise Rejected(
            "size-mismatch", f"{name}: more than {_PADDING} bytes follow the {wanted} that the header declares"
        )


def _sizes(header: Header) -> list[int]:
    dim = [int(size) for size in header["dim"]]
    return dim[1 : dim[0] + 1] if 1 <= dim[0] <= 7 else []


def _shape(header: Header, channel: int | None, name: str) -> tuple[int, int, int]:
    sizes = _sizes(header)
    if channel is not None and len(sizes) in (3, 4):
        present = (*sizes, 1)[3]
        if not 0 <= channel < present:
            raise Rejected("no-such-channel", f"{name}: channel {channel}, counted from 0, of {present}")
        sizes = sizes[:3]
    if len(sizes) < 3 or min(sizes[0], sizes[1], 2 * sizes[2]) < 2 or any(size != 1 for size in sizes[3:]):
        shown = " x ".join(map(str, sizes)) or f"{int(header['dim'][0])} axes"
        raise Rejected("wrong-dimension", f"{name}: {shown}, wanted one volume of three axes of at least 2 voxels")
    return sizes[0], sizes[1], sizes[2]


def _check_depth(header: Header, name: str, *, flat: bool) -> None:
    i, j, k = _sizes(header)[:3]
    if flat != (k == 1):
        wanted = "one image (i, j, 1)" if flat else "one volume of three axes of at least 2 voxels"
        raise Rejected("wrong-dimension", f"{name}: {i} x {j} x {k}, wanted {wanted}")


def _affine(header: Header, name: str) -> NDArray[np.float64]:
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
        raise Rejected(
            "unknown-orientation",
            f"{name}: neither sform nor qform is set, so left and right cannot be told; convert the series again",
        )
    steps = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(steps).all() or (steps <= 0).any():
        raise Rejected(
            "bad-spacing", f"{name}: the header's voxel size is {_numbers(steps)}, wanted three positive numbers"
        )
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except HeaderDataError as error:
        raise Rejected("bad-affine", f"{name}: {error}") from error
    if not np.isfinite(affine).all():
        raise Rejected(
            "bad-affine", f"{name}: {int((~np.isfinite(affine)).sum())} of the affine's values are not finite"
        )
    sizes_mm = np.asarray(spacing_mm(affine))
    if (sizes_mm == 0).any() or abs(np.linalg.det(affine[:3, :3] / sizes_mm)) < 1e-3:
        raise Rejected("bad-affine", f"{name}: the affine is singular, voxel axes of {_numbers(sizes_mm)} mm")
    if (sizes_mm < _LEAST_MM).any() or (sizes_mm > _MOST_MM).any():
        raise Rejected(
            "bad-spacing",
            f"{name}: voxels of {_numbers(sizes_mm)} mm, wanted {_LEAST_MM:g} to {_MOST_MM:g}; is the unit mm?",
        )
    return affine


def _voxels(header: Header, data: bytearray, channel: int | None, name: str) -> NDArray[np.generic]:
    shape, dtype = _shape(header, channel, name), header.get_data_dtype()
    # The fourth axis varies slowest: a channel is one piece of the file.
    start = int(header["vox_offset"]) + (channel or 0) * math.prod(shape) * dtype.itemsize
    stored = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start)
    stored = stored.reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)
    if dtype.kind == "f" and (bad := int((~np.isfinite(stored)).sum())):
        raise Rejected("non-finite-voxels", f"{name}: {bad} of {stored.size} voxels are NaN or infinite")
    try:
        slope, shift = header.get_slope_inter()
    except HeaderDataError as error:
        raise Rejected("bad-scaling", f"{name}: {error}") from error
    if slope is None or (slope == 1 and shift == 0):
        return stored
    # float32 holds every product of a 16-bit integer to 1 part in 10 million; wider types need float64.
    wide = np.float32 if stored.dtype.itemsize <= 2 or stored.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.floating] = np.multiply(stored, wide(slope), dtype=wide) + wide(shift)
    if not np.isfinite(scaled).all():
        raise Rejected(
            "bad-scaling", f"{name}: a slope of {slope:g} and an intercept of {shift:g} leave the range of floats"
        )
    return scaled


def _numbers(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)
