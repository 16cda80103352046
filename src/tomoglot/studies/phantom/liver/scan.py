"""From tissue fractions to the acquired series of a liver study: breath, bias, texture, thick slices, noise, gain.

Nothing here sees the disease. Series of one kind share receiver gain and coil profile, as on a scanner: the four
dynamic phases, and the in-phase and out-of-phase echoes, which are also of one breath-hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tomoglot.geometry import Grid
from tomoglot.studies.phantom.acquire import Acquisition, digitise, draw_present, thicken
from tomoglot.studies.phantom.fields import Floats, smooth_field
from tomoglot.studies.phantom.liver.signal import FIELDS_T, SEQUENCES, Scanner, jittered, signals
from tomoglot.studies.phantom.liver.torso import Torso
from tomoglot.studies.phantom.liver.uptake import Circulation, Timing
from tomoglot.studies.study import Volume

GROUPS: Mapping[str, str] = {
    "t2w": "t2w", "dwi": "dwi", "in_phase": "chemical_shift", "out_of_phase": "chemical_shift",
    "pre_contrast": "dynamic", "arterial": "dynamic", "portal_venous": "dynamic", "delayed": "dynamic",
}  # fmt: skip
# Signal to noise in the liver, slices in mm, and how far a breath-hold is off, relative to that of the dynamic phases.
SNR: Mapping[str, tuple[float, float]] = {
    "t2w": (8, 18), "dwi": (5, 11), "chemical_shift": (18, 36), "dynamic": (16, 32),
}  # fmt: skip
SLICES_MM: Mapping[str, tuple[float, float]] = {
    "t2w": (4.0, 7.0), "dwi": (5.0, 7.5), "chemical_shift": (3.5, 6.0), "dynamic": (2.5, 4.0),
}  # fmt: skip
BREATH: Mapping[str, float] = {"t2w": 2.0, "dwi": 2.0, "chemical_shift": 1.5, "dynamic": 1.0}
MISSING_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What holds for a whole visit: the scanner, the bolus, and each acquired series."""

    scanner: Scanner
    timing: Timing
    series: dict[str, Acquisition]
    breath: dict[str, float]  # in units of the asked-for breathing, positive towards the head


def draw_session(rng: np.random.Generator, asked: Sequence[str] | None = None) -> Session:
    """The acquired series, each present with 4 in 5, never none, and how the visit was done."""
    present = draw_present(rng, SEQUENCES, missing_share=MISSING_SHARE, asked=asked)
    scanner = Scanner(field_t=float(rng.choice(FIELDS_T)), fat_left=float(rng.uniform(0.05, 0.18)))
    arrival = float(np.clip(rng.normal(15.0, 1.5), 12, 18))
    # Bolus tracking: the arterial phase follows the arrival.
    timing = Timing(
        arrival_s=arrival,
        arterial=arrival + float(rng.uniform(16.0, 21.0)),
        portal_venous=arrival + float(rng.uniform(50.0, 62.0)),
        delayed=arrival + float(rng.uniform(165.0, 270.0)),
    )
    groups = {
        group: (float(np.exp(rng.uniform(np.log(150), np.log(1500)))), float(rng.uniform(*SNR[group])),
                round(float(rng.uniform(*SLICES_MM[group])), 1), float(rng.standard_normal()))
        for group in SNR
    }  # fmt: skip
    own = rng.standard_normal(len(SEQUENCES)).clip(-2.5, 2.5)
    series, breath = {}, {}
    for name, acquired, off in zip(SEQUENCES, present, own, strict=True):
        gain, snr, slice_mm, shared = groups[GROUPS[name]]
        if acquired:
            series[name] = Acquisition(gain=gain, snr=snr, slice_mm=slice_mm)
            shift = {"chemical_shift": shared, "dynamic": 0.0 if name == "portal_venous" else float(off)}
            breath[name] = round(BREATH[GROUPS[name]] * shift.get(GROUPS[name], float(off)), 3)
    return Session(scanner=scanner, timing=timing, series=series, breath=breath)


def breathe(voxels: Floats, mobile: Floats, grid: Grid, shift_mm: float) -> Floats:
    """Move mobile tissue towards the head by `shift_mm`, less where less mobile: linear interpolation along z."""
    place = np.arange(grid.shape[2], dtype=np.float32) - mobile * np.float32(shift_mm / grid.spacing_mm[2])
    place = place.clip(0, grid.shape[2] - 1.001)
    below = place.astype(np.intp)
    rest = place - below
    lower, upper = (np.take_along_axis(voxels, below + more, axis=2) for more in (0, 1))
    return lower + rest * (upper - lower)


def acquire(
    torso: Torso, session: Session, rng: np.random.Generator, *, fats: tuple[float, float], motion_mm: float, air: bool
) -> dict[str, Volume]:
    """Render every acquired series as int16. `fats` are the shares of fat in liver and carcinoma.

    Fat and water add before the magnitude is taken, so that where they meet they cancel out of phase, as a dark line.
    What is outside the body is noise with `air`, else zero.
    """
    grid = torso.grid
    names = tuple(torso.fractions)
    cover = torso.total()
    inside = cover > 0.02
    mixture = np.stack([torso.fractions[name][inside] for name in names])
    table = jittered(rng, liver_fat=fats[0], lesion_fat=fats[1])
    blood = Circulation(session.timing)
    texture = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), 0.8)[inside]
    texture *= 0.04 / max(float(texture.std()), 1e-6)
    bias = {group: np.exp(0.2 * smooth_field(rng, grid.shape, 4).clip(-2, 2))[inside] for group in SNR}
    volumes = {}
    for name, how in session.series.items():
        clean = np.zeros(grid.shape, dtype=np.float32)
        clean[inside] = np.abs((signals(name, names, table, session.scanner, blood) @ mixture).sum(axis=0))
        clean[inside] *= (1.0 + texture) * bias[GROUPS[name]]
        shift_mm = motion_mm * session.breath[name]
        if shift_mm:
            clean = breathe(clean, torso.mobile, grid, shift_mm)
        affine, covered = grid.affine, cover
        if how.slice_mm is not None and how.slice_mm > 1.2 * grid.spacing_mm[2]:
            clean, affine = thicken(clean, grid, how.slice_mm)
            covered, _ = thicken(cover, grid, how.slice_mm)
        volumes[name] = Volume(voxels=digitise(clean, covered, how, rng, skull_stripped=not air), affine=affine)
    return volumes
