"""The face cut from a head MRI along a plane under the brain: less to recognise a person by, not an anonymous image.

The brain is found by deepbet (Fisch et al. 2024), a network for T1-weighted heads; the plane is that of Quickshear
(Schimke and Hale 2011): below the lower front edge of the brain's hull in profile. Ears, the upper forehead, much of
the orbits and the shape of the skull stay, and who knows a person may know the rest. Both tools are the extra `deface`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from tomoglot.geometry import spacing_mm, to_ras
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.study import Rejected, Volume

# Quickshear's own distance between brain and plane, there in voxels of 1 mm.
_BUFFER_MM = 10.0
# Brains from about one year of age; MNI templates, which are larger than life, have 1,900 ml.
_BRAIN_ML = (600.0, 2400.0)
# Share of its bounding box that a brain fills: 0.43 to 0.53 measured. A stray piece near the nose, which would push
# the plane below the face, enlarges the box; a box or a whole head of a mask fills it otherwise.
_BRAIN_FILL = (0.36, 0.66)
# The lowest quarter of a brain is cerebellum and stem: 16 to 22 mm behind the whole in nine masks, the highest quarter
# 6 before to 1 behind. So an affine that turns the head over, or exchanges its sides with its front, is seen.
_LOW_BEHIND_MM = 8.0
_BRAIN_ONLY_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaced:
    """What came of one volume: `brain-only` is left as it was, as there is no face in it."""

    volume: Volume
    outcome: Literal["cut", "brain-only"]
    brain_ml: float
    removed_ml: float  # of tissue, not of air
    removed_share: float  # of all tissue in the field of view

    def figures(self) -> dict[str, Any]:
        """Everything but the voxels."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "volume"}


def deface(volume: Volume, *, brain: NDArray[np.bool_] | None = None) -> Defaced:
    """Set everything below a plane under the brain to the value of air; no voxel of the brain mask changes.

    `brain` (same voxels) takes the place of the network's mask: for CT, for sequences other than T1-weighted, and for
    brains that it misses. How the head lies is read from the affine; a wrong one is refused where the brain shows it.

    Raises:
        Rejected: `ct-without-brain-mask`, `no-brain-found`, `implausible-brain`, `brain-turned`, `brain-cut` or
            `nothing-removed` (no tissue below the plane: defaced before, or the face is outside the field of view).
        ValueError: the extra is not installed, or `brain` is no mask of this volume.
    """
    check_tools(network=brain is None)
    voxels, voxel_ml = volume.voxels, float(np.prod(spacing_mm(volume.affine))) / 1000
    # Corners are air in nearly every field of view; the least value is not where voxels were standardised.
    ends = [0, -1]
    air = np.median(voxels[np.ix_(ends, ends, ends)].astype(np.float64)).astype(voxels.dtype)
    if brain is None:
        if air < -500:
            raise Rejected(
                "ct-without-brain-mask", f"air is {air:g}, so this is CT: deepbet knows MRI, give a brain mask"
            )
        brain = _found_brain(volume)
    elif brain.shape != voxels.shape or brain.dtype != np.bool_:
        raise ValueError(f"a brain mask of {brain.dtype} {brain.shape}, wanted booleans of {voxels.shape}")
    brain_ml = _check_brain(brain, volume.affine)
    contrast = np.abs(voxels.astype(np.float32) - np.float32(air))
    tissue = contrast > 0.1 * np.quantile(contrast[::2, ::2, ::2], 0.99)
    same = {"brain_ml": brain_ml, "removed_ml": 0.0, "removed_share": 0.0}
    if (tissue & ~brain).sum() < _BRAIN_ONLY_SHARE * brain.sum():
        return Defaced(volume=volume, outcome="brain-only", **same)
    kept = _above_plane(brain, volume.affine)
    if (brain & ~kept).any():
        raise Rejected("brain-cut", f"the plane would cut {int((brain & ~kept).sum())} voxels of the brain mask")
    removed = int((tissue & ~kept).sum())
    if removed * voxel_ml < 1:
        raise Rejected("nothing-removed", "under 1 ml lies below the plane: defaced before, or no face in the field")
    return Defaced(
        volume=Volume(voxels=np.where(kept, voxels, air), affine=volume.affine),
        outcome="cut",
        brain_ml=brain_ml,
        removed_ml=removed * voxel_ml,
        removed_share=removed / int(tissue.sum()),
    )


def deface_file(path: Path, out: Path) -> Defaced:
    """`deface` one NIfTI file into another under a new header; `out` appears whole or not at all.

    Raises:
        Rejected: as `read_nifti` and `deface`.
        ValueError: as `write_nifti` and `deface`.
    """
    done = deface(read_nifti(path))
    write_nifti(out, done.volume)
    return done


def check_tools(*, network: bool = True) -> None:
    """See that the extra is installed and runs; `network` is whether a brain has to be found.

    Raises:
        ValueError: it is not, or numpy is too new for Quickshear.
    """
    missing = [name for name in ("quickshear", *(["deepbet"] if network else [])) if find_spec(name) is None]
    if missing:
        raise ValueError(f"defacing needs {' and '.join(missing)}: pip install 'tomoglot[deface]'")
    from quickshear import convex_hull

    try:
        with _quiet():
            convex_hull(np.eye(3))
    except ValueError as error:
        raise ValueError(f"quickshear does not run with numpy {np.__version__}: pip install 'numpy<2.5'") from error


def _quiet() -> warnings.catch_warnings[None]:
    """Without what the tools make their libraries say: of old calls that the versions we ask for still have."""
    # numpy 2.5 refuses the cross products of Quickshear 1.2 for good: hence the extra's limit.
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


@cache
def _network() -> Any:
    with _quiet():
        from deepbet import BrainExtraction

        # On the CPU alone: the same mask on every machine, in seconds.
        return BrainExtraction(no_gpu=True)


def _found_brain(volume: Volume) -> NDArray[np.bool_]:
    image = nibabel.Nifti1Image(volume.voxels.astype(np.float32), volume.affine)
    try:
        return np.asarray(_network().run(image)[1].dataobj) > 0
    except (AssertionError, IndexError) as error:
        raise Rejected("no-brain-found", "deepbet finds no brain in this volume; is it a head MRI?") from error


def _check_brain(brain: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    """Millilitres of a mask that can be one brain."""
    voxels = int(brain.sum())
    brain_ml = voxels * float(np.prod(spacing_mm(affine))) / 1000
    sides = [np.ptp(np.nonzero(brain.any(axis=axes))[0]) + 1 for axes in ((1, 2), (0, 2), (0, 1))] if voxels else [1]
    fill = voxels / float(np.prod(sides))
    if not (_BRAIN_ML[0] <= brain_ml <= _BRAIN_ML[1] and _BRAIN_FILL[0] <= fill <= _BRAIN_FILL[1]):
        raise Rejected(
            "implausible-brain",
            f"a brain mask of {brain_ml:.0f} ml that fills {fill:.2f} of its box, wanted {_BRAIN_ML[0]:g} to "
            f"{_BRAIN_ML[1]:g} ml and {_BRAIN_FILL[0]:g} to {_BRAIN_FILL[1]:g}; give a better mask",
        )
    upright, turned = to_ras(brain, affine)
    rows = np.nonzero(upright.any(axis=(0, 1)))[0]
    low = upright[:, :, rows[: max(1, len(rows) // 4)]]
    behind_mm = float(np.nonzero(upright)[1].mean() - np.nonzero(low)[1].mean()) * spacing_mm(turned)[1]
    if behind_mm < _LOW_BEHIND_MM:
        raise Rejected(
            "brain-turned",
            f"the lowest quarter of the brain mask lies {behind_mm:.0f} mm behind the whole, wanted {_LOW_BEHIND_MM:g} "
            "or more: the affine does not say how the head lies, or half the brain is outside the field",
        )
    return brain_ml


def _above_plane(brain: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """What Quickshear keeps of a volume of ones."""
    from quickshear import quickshear

    # It finds edges by rolling, which joins opposite faces of the field: a rim of one voxel keeps them apart.
    mask = nibabel.Nifti1Image(np.pad(brain, 1).astype(np.uint8), affine)
    ones = nibabel.Nifti1Image(np.ones(mask.shape, np.uint8), affine)
    up_mm = spacing_mm(to_ras(brain, affine)[1])[2]
    with _quiet():
        kept = np.asarray(quickshear(ones, mask, _BUFFER_MM / up_mm).dataobj) > 0
    return kept[1:-1, 1:-1, 1:-1]
