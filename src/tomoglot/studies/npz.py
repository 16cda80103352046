"""NumPy's `.npz` files, read strictly: a zip file of named arrays that says nothing of geometry, units or subject.

The member is unpacked here and not by `numpy.load`: to its end, so that the zip file's check sum counts, and the array
is made only where its header agrees with the length of what holds it. Nothing is unpickled: objects are refused.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.nifti import GIB
from tomoglot.studies.study import Rejected, Volume

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What its parser of headers lets through, of damaged ones.
_NO_HEADER = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, UserWarning)
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    UnicodeDecodeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def read_npz(path: Path, *, key: str, max_bytes: int = 4 * GIB) -> Volume:
    """Read the array `key` of an `.npz` file, axes and values as they are stored, at voxels of 1 x 1 x 1 mm.

    That size says nothing: where the axes point and how long a voxel is must be stated (`stated.read_series`).

    Raises:
        Rejected: `absent`, `not-a-file`, `unreadable`, `damaged-npz`, `no-such-array`, `unsupported-type`,
            `wrong-dimension`, `size-mismatch`, `too-large`, `non-finite-voxels` or `constant-image`.
    """
    name = path.name
    try:
        if not path.exists():
            raise Rejected("absent", f"{name}: there is no such file")
        if not path.is_file():
            raise Rejected("not-a-file", f"{name}: is a folder or a device, wanted a file")
        data = _unpacked(path, key, max_bytes)
    except _BROKEN as error:
        what = f"{name}: is no whole .npz file ({type(error).__name__}); download it again"
        raise Rejected("damaged-npz", what) from error
    except OSError as error:
        raise Rejected("unreadable", f"{name}: {error.strerror or type(error).__name__}") from error
    voxels = _array(data, name)
    if voxels.dtype.kind == "f" and (bad := int((~np.isfinite(voxels)).sum())):
        raise Rejected("non-finite-voxels", f"{name}: {bad} of {voxels.size} voxels are NaN or infinite")
    if voxels.min() == voxels.max():
        raise Rejected("constant-image", f"{name}: all {voxels.size} voxels are {voxels.flat[0]:g}")
    return Volume(voxels=voxels, affine=np.eye(4))


def _unpacked(path: Path, key: str, max_bytes: int) -> bytearray:
    """All bytes of the array's member; zipfile gives no more than the size that was checked, and checks their sum."""
    with zipfile.ZipFile(path) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
        size = sizes.get(f"{key}.npy")
        if size is None:
            evidence = f"{path.name}: none of its {len(sizes)} arrays is called {key!r}; is it a volume of this set?"
            raise Rejected("no-such-array", evidence)
        if size > max_bytes:
            raise Rejected("too-large", f"{path.name}: the array has {size} bytes, the limit is {max_bytes}")
        return bytearray(archive.read(f"{key}.npy"))


def _array(data: bytearray, name: str) -> NDArray[np.generic]:
    stream = io.BytesIO(data)
    try:
        read_header = _HEADERS[np.lib.format.read_magic(stream)]
        shape, by_column, dtype = read_header(stream)
    except _NO_HEADER as error:
        what = f"{name}: the array has no header that NumPy writes ({type(error).__name__}); download it again"
        raise Rejected("damaged-npz", what) from error
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise Rejected("unsupported-type", f"{name}: an array of {str(dtype)[:40]}, wanted real numbers")
    if len(shape) != 3 or min(shape) < 2:
        shown = " x ".join(map(str, shape)) or "one number"
        raise Rejected("wrong-dimension", f"{name}: {shown[:60]}, wanted three axes of at least 2 voxels")
    present, wanted = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if present != wanted:
        raise Rejected("size-mismatch", f"{name}: {present} bytes where the array's header declares {wanted}")
    stored = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    # Half floats hold every Hounsfield unit to 2048, but not their sums.
    kept = np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")
    return stored.reshape(shape, order="F" if by_column else "C").astype(kept, copy=False)
