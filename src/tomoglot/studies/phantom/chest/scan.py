"""From Hounsfield units to an acquired CT series: dose, kernel, slice thickness, noise. Nothing here sees the disease.

A reconstruction is one series of a scan. Two of one scan share its dose and its breath, and differ in kernel, noise
and slices, as in CT-RATE; each is a study of its own there and here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from tomoglot.studies.phantom.acquire import thicken
from tomoglot.studies.phantom.chest.thorax import Thorax
from tomoglot.studies.phantom.chest.tissue import AIR_HU
from tomoglot.studies.phantom.fields import Floats
from tomoglot.studies.study import Volume

SLICES_MM = (1.0, 5.0)
LOWEST_HU, HIGHEST_HU = -1024, 3071
TABLE_MM = -121.0  # height of the table's top


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """How one series is made of a scan: kernel, slice thickness, and noise in the middle of the body."""

    kernel: str  # soft or sharp
    slice_mm: float
    noise_hu: float  # at 2 mm voxels of that kernel
    blur_mm: float  # standard deviation of the kernel

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One scan: relative dose, depth of breath (0 full, 1 out), half the width of the field, reconstructions."""

    dose: float
    breath: float
    half_mm: float
    series: tuple[Reconstruction, ...]


def draw_session(rng: np.random.Generator, again_share: float) -> Session:
    """One scan, with a second reconstruction in `again_share` of subjects."""
    dose, breath = float(np.exp(rng.uniform(np.log(0.3), np.log(1.8)))), float(rng.beta(1.1, 4.0))
    half_mm = float(rng.choice([160.0, 160.0, 150.0, 142.0]))
    again, sharp_first = rng.random() < again_share, rng.random() < 0.5
    series = []
    for sharp in (sharp_first, not sharp_first):
        level = float(rng.uniform(20, 34) if sharp else rng.uniform(8, 14)) / np.sqrt(dose)
        series.append(
            Reconstruction(
                kernel="sharp" if sharp else "soft",
                slice_mm=round(float(rng.uniform(*SLICES_MM)), 1),
                noise_hu=round(level, 2),
                blur_mm=round(float(rng.uniform(0.3, 0.7) if sharp else rng.uniform(1.1, 1.8)), 2),
            )
        )
    return Session(dose=dose, breath=breath, half_mm=half_mm, series=tuple(series[: 2 if again else 1]))


def put_table(thorax: Thorax) -> None:
    """The table under the back: a thin shell of carbon fibre about foam."""
    x, y = (thorax.grid.affine[a, 3] + thorax.grid.spacing_mm[a] * np.arange(thorax.grid.shape[a]) for a in (0, 1))
    top = TABLE_MM + 6.0 * (x[:, None] / 160.0) ** 2
    shell = thorax.solid((np.abs(y[None, :] - top) - 1.0).astype(np.float32))[:, :, None]
    thorax.hu += np.where(thorax.body > 0, 0, shell * np.float32(650.0))


def noise_of(thorax: Thorax, how: Reconstruction, rng: np.random.Generator) -> Floats:
    """Noise with the kernel's grain, stronger in the middle of the body and at the shoulders."""
    step = thorax.grid.spacing_mm[0]
    white = rng.standard_normal(thorax.grid.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, how.blur_mm / step) if how.kernel == "soft" else white
    grain /= max(float(grain.std()), 1e-6)
    x, y, z = thorax.seen
    path = 0.65 + 0.5 * np.exp(-(x**2 + y**2) / 90.0**2) + 0.7 * np.clip((z - 70.0) / 40.0, 0, 1)
    # Larger voxels hold more photons: noise falls with the root of their volume, here as measured from 2 mm.
    return (np.float32(how.noise_hu * min(1.5, (2.0 / step) ** 0.75)) * path * grain).astype(np.float32)


def reconstruct(thorax: Thorax, how: Reconstruction, rng: np.random.Generator, *, half_mm: float, air: bool) -> Volume:
    """One series as int16 Hounsfield units, cut to `half_mm` on each side; outside the body plain air unless `air`."""
    grid = thorax.grid
    clean = ndimage.gaussian_filter(thorax.hu, how.blur_mm / np.asarray(grid.spacing_mm))
    if how.kernel == "sharp":  # a kernel that lifts edges
        clean += np.float32(0.35) * (clean - ndimage.gaussian_filter(clean, 1.6 / grid.spacing_mm[0]))
    noisy = clean + noise_of(thorax, how, rng)
    if not air:
        noisy = np.where(thorax.body > 0.5, noisy, np.float32(AIR_HU))
    affine = grid.affine
    if how.slice_mm > 1.2 * grid.spacing_mm[2]:
        noisy, affine = thicken(noisy, grid, how.slice_mm)
    cut = max(0, round(grid.shape[0] / 2 - half_mm / grid.spacing_mm[0]))
    noisy, affine = noisy[cut : grid.shape[0] - cut], affine.copy()
    affine[0, 3] += cut * grid.spacing_mm[0]
    return Volume(voxels=np.clip(np.rint(noisy), LOWEST_HU, HIGHEST_HU).astype(np.int16), affine=affine)
