"""The preprocessing plan: everything done to a volume between the archive and the encoder.

It is written into the store that it shaped and into the card of every checkpoint trained from it. Later stages apply
it or refuse; nobody has to remember a window or a spacing.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tomoglot.config import Settings

# What is measured of every volume when it is stored, and so what an intensity rule may name.
PERCENTILES = (1, 5, 50, 95, 99)
# Finer than any scanner, and coarser than any organ: what lies outside is a slip of the keyboard.
SPACINGS_MM = (0.05, 100.0)


class Plan(Settings):
    """How volumes are laid out and scaled.

    Geometry is applied once, when the store is written: RAS+ axes, then `spacing_mm` (None keeps the finest series'
    own grid, on which the other series of the study are resampled), then a centred field of `field_voxels` (None
    keeps the whole field of view). Intensity is applied to each crop, from statistics of the whole volume kept in
    the catalogue, so that a crop never needs the rest of its volume:

    - ``zscore``: subtract the mean and divide by the standard deviation of the non-zero voxels; zero stays zero
    - ``percentile``: `percentiles` (two of `PERCENTILES`) of the non-zero voxels to 0 and 1, clipped
    - ``window``: `window_hu` to 0 and 1, clipped (CT)
    """

    spacing_mm: tuple[float, float, float] | None = None
    field_voxels: tuple[int, int, int] | None = None
    intensity: Literal["zscore", "percentile", "window"] = "zscore"
    percentiles: tuple[float, float] = (1.0, 99.0)
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    clip_zscore: float = Field(5.0, gt=0)
    codec: Literal["zstd", "lz4"] = "zstd"
    chunk_voxels: int = Field(32, ge=8, le=128)

    @property
    def zero_is_background(self) -> bool:
        """Whether a real value of zero stands for "nothing here"; in Hounsfield units it is water."""
        return self.intensity != "window"

    @property
    def background(self) -> float:
        """Real value of a place where nothing was imaged."""
        return 0.0 if self.zero_is_background else self.window_hu[0]

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = SPACINGS_MM
        if self.spacing_mm is not None and not all(least <= size <= most for size in self.spacing_mm):
            raise ValueError(f"spacing_mm must lie within {least:g} to {most:g} mm, got {self.spacing_mm}")
        if self.field_voxels is not None and min(self.field_voxels) < 1:
            raise ValueError(f"field_voxels needs at least one voxel along each axis, got {self.field_voxels}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must rise within 0..100, got {self.percentiles}")
        if not {low, high} <= set(PERCENTILES):
            measured = ", ".join(map(str, PERCENTILES))
            raise ValueError(f"the catalogue measures the percentiles {measured} of a volume, got {self.percentiles}")
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError(f"window_hu must rise, got {self.window_hu}")
        return self
