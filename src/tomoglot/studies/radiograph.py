"""Radiographs and other flat images as volumes of one voxel along k: JPG, PNG, and NIfTI of one slice.

A picture is read as it is shown: upright, the subject's right on its left. So i runs to the picture's left, j up, k
along the ray, and x of a frontal view is the subject's right as in every other volume; y is up and z says nothing, for
a ray has no depth (see also phantom.chest.radiograph). The middle of the picture lies at 0, which puts the views of one
study on one grid where they have one size. A lateral view may face either way: a picture does not say, and none is
turned here.

JPG and PNG hold no size of a pixel that can be trusted. Where none is stated, the longer side is taken for `LONGER_MM`,
that of a full chest detector (14 x 17 inch): assumed, and wrong for what was cut, as it is for everybody who scales
images to one size. In pixels: a plan of `s` mm keeps LONGER_MM / s of them along the longer side.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import spacing_mm, to_ras
from tomoglot.studies.nifti import read_nifti
from tomoglot.studies.study import Rejected, Volume

SUFFIXES = (".jpg", ".jpeg", ".png")
LONGER_MM, RAY_MM = 430.0, 1.0
MOST_PIXELS = 64_000_000
# Grey is stored as three equal channels by many; JPEG's rounding parts them by a step or two.
GREY_TOLERANCE = 6
_UPRIGHT, _ORIENTATION_TAG = (0, 1), 0x0112


def is_radiograph(sequence: str, path: Path) -> bool:
    """Whether a series is one image, by what it is called or by its file, and not a stack of slices."""
    return sequence.startswith("cxr_") or path.suffix.lower() in SUFFIXES


def read_radiograph(
    path: Path, *, stated_mm: tuple[float, float, float] | None = None, allow_constant: bool = False
) -> Volume:
    """One image as a volume (i, j, 1): a picture by its suffix, anything else as NIfTI of one slice.

    `stated_mm` is the spacing of a picture's pixels, where something states it. A NIfTI slice that stands upright in
    its world is turned into the coordinates above; one that lies is taken to have them. `allow_constant` is for masks.

    Raises:
        Rejected: what `read_nifti` refuses; for pictures `absent`, `damaged-image`, `too-large`, `colour-image`,
            `turned-image`, `constant-image` or `bad-spacing`.
    """
    if path.suffix.lower() not in SUFFIXES:
        return _in_plane(read_nifti(path, flat=True, allow_constant=allow_constant))
    grey = _read_grey(path)
    if not allow_constant and grey.min() == grey.max():
        raise Rejected("constant-image", f"{path.name}: all {grey.size} pixels are {grey.flat[0]:g}")
    steps = stated_mm or (*(LONGER_MM / max(grey.shape),) * 2, RAY_MM)
    if not all(np.isfinite(step) and step > 0 for step in steps):
        raise Rejected("bad-spacing", f"{path.name}: its pixel size is no three positive numbers")
    voxels = np.ascontiguousarray(grey[::-1, ::-1].T)[:, :, None]
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = affine[:3, :3] @ (-(np.asarray(voxels.shape) - 1) / 2)
    return Volume(voxels=voxels, affine=affine)


def _in_plane(slice_: Volume) -> Volume:
    """A slice with i to the right (or front), j to the head, k through it; its places in that plane stay."""
    voxels, affine = to_ras(slice_.voxels, slice_.affine)
    order = {0: (1, 2, 0), 1: (0, 2, 1), 2: (0, 1, 2)}[voxels.shape.index(1)]
    plane = np.diag([*(spacing_mm(affine)[axis] for axis in order), 1.0])
    plane[:2, 3] = affine[order[:2], 3]
    return Volume(voxels=np.transpose(voxels, order), affine=plane)


def _read_grey(path: Path) -> NDArray[np.generic]:
    """Rows and columns of a picture in one channel, in the numbers of the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("pictures are read by Pillow: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise Rejected("too-large", f"{path.name}: {size} pixels, the limit is {MOST_PIXELS}")
                if image.getexif().get(_ORIENTATION_TAG, 1) not in _UPRIGHT:
                    evidence = f"{path.name}: its EXIF tag asks viewers to turn it; save it upright, without the tag"
                    raise Rejected("turned-image", evidence)
                if image.mode in ("1", "P", "PA", "LA", "CMYK", "YCbCr"):
                    # Whether a palette is one of colours is seen below.
                    pixels = np.asarray(image.convert("RGB"))
                else:
                    pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise Rejected("absent", f"{path.name}: there is no such file") from error
    except Image.DecompressionBombError as error:
        raise Rejected("too-large", f"{path.name}: more than {MOST_PIXELS} pixels") from error
    except (OSError, SyntaxError) as error:
        raise Rejected("damaged-image", f"{path.name}: is no whole JPG or PNG") from error
    if pixels.ndim == 2:
        return pixels
    channels = pixels[:, :, :3].astype(np.int16)
    apart = int((channels.max(axis=2) - channels.min(axis=2)).max())
    if apart > GREY_TOLERANCE:
        raise Rejected("colour-image", f"{path.name}: channels lie up to {apart} of 255 apart, wanted grey")
    return np.asarray(np.rint(channels.mean(axis=2)).astype(np.uint8))
