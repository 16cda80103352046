"""Augmentation, drawing apart from applying: what was drawn is a few numbers that can be logged and replayed.

Flips are off by default, because reports name sides: a flipped volume makes "left" wrong. A flip updates the affine,
so that world positions stay true.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tomoglot.config import Settings

Flips = tuple[bool, bool, bool]


class Augment:
    """Namespace of the settings."""

    class Config(Settings):
        """How much to vary; every default is off.

        Attributes:
            flip_probability: of flipping along i, j, k.
            jitter_voxels: largest shift of a crop along an axis that it covers whole; zeros come in at the edge.
            scale: foreground is multiplied by 1 +- this, drawn for each sequence.
            shift: added to the foreground, +- this, in units of the plan's intensities.
            gamma: the foreground's range is raised to a power between 1 / (1 + gamma) and 1 + gamma.
            noise: largest standard deviation of Gaussian noise on the foreground.
        """

        flip_probability: tuple[float, float, float] = (0.0, 0.0, 0.0)
        jitter_voxels: int = Field(0, ge=0)
        scale: float = Field(0.0, ge=0, lt=1)
        shift: float = Field(0.0, ge=0)
        gamma: float = Field(0.0, ge=0)
        noise: float = Field(0.0, ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one sample gets. `scale`, `shift`, `gamma` and `noise` have one value a channel."""

    flips: Flips = (False, False, False)
    jitter_voxels: tuple[int, int, int] = (0, 0, 0)
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    noise_seed: int = 0


def draw(rng: np.random.Generator, config: Augment.Config, *, channels: int = 1) -> Drawn:
    """Draw one sample's augmentation. The same numbers are taken from `rng` whatever is switched on."""
    flips = rng.random(3) < np.asarray(config.flip_probability)
    jitter = rng.integers(-config.jitter_voxels, config.jitter_voxels, size=3, endpoint=True)
    scale, shift, gamma = (rng.uniform(-1.0, 1.0, size=channels) for _ in range(3))
    noise = rng.random(channels)
    return Drawn(
        flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])),
        jitter_voxels=(int(jitter[0]), int(jitter[1]), int(jitter[2])),
        scale=tuple((1.0 + config.scale * scale).tolist()),
        shift=tuple((config.shift * shift).tolist()),
        gamma=tuple(((1.0 + config.gamma) ** gamma).tolist()),
        noise=tuple((config.noise * noise).tolist()),
        noise_seed=int(rng.integers(2**63)),
    )


def apply(volumes: NDArray[np.float32], drawn: Drawn) -> NDArray[np.float32]:
    """Change `volumes` (c, i, j, k) in place and return it; zero voxels (background, not acquired) stay zero."""
    if any(drawn.flips):
        volumes[...] = flip(volumes, drawn.flips)
    for channel in range(len(volumes)):
        _vary(volumes[channel], drawn, channel)
    return volumes


def flip(array: NDArray[np.generic], flips: Flips) -> NDArray[np.generic]:
    """Flip the last three axes (i, j, k); a contiguous copy. Masks go through here with the volumes' flips."""
    axes = tuple(axis - 3 for axis in range(3) if flips[axis])
    return np.flip(array, axes).copy()


def flip_affine(affine: NDArray[np.float64], shape: tuple[int, int, int], flips: Flips) -> NDArray[np.float64]:
    """Affine of the flipped array: each voxel keeps its world position."""
    turn = np.eye(4)
    for axis in range(3):
        if flips[axis]:
            turn[axis, axis] = -1.0
            turn[axis, 3] = shape[axis] - 1
    return affine @ turn


def _vary(volume: NDArray[np.float32], drawn: Drawn, channel: int) -> None:
    """Gamma, scale, shift and noise of one channel's foreground, in place."""
    scale, shift, gamma, noise = (
        values[channel] if values else neutral
        for values, neutral in ((drawn.scale, 1.0), (drawn.shift, 0.0), (drawn.gamma, 1.0), (drawn.noise, 0.0))
    )
    if (scale, shift, gamma, noise) == (1.0, 0.0, 1.0, 0.0):
        return
    foreground = volume != 0
    values = volume[foreground]
    if values.size == 0:
        return
    low, high = values.min(), values.max()
    if gamma != 1.0 and high > low:
        values = ((values - low) / (high - low)) ** np.float32(gamma) * (high - low) + low
    values = values * np.float32(scale) + np.float32(shift)
    if noise > 0:
        # A stream of its own for each channel: hiding one sequence must not change the noise of the next.
        source = np.random.Generator(np.random.Philox(np.random.SeedSequence([drawn.noise_seed, channel])))
        values += np.float32(noise) * source.standard_normal(values.size, dtype=np.float32)
    volume[foreground] = values
