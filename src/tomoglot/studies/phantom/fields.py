"""Smooth random fields, for displacement, bias and irregular shapes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

Floats = NDArray[np.float32]


@lru_cache(maxsize=64)
def spline_rows(size: int, knots: int) -> Floats:
    """Matrix (size x knots) that reads a cubic spline through `knots` even control values at `size` places."""
    spline = make_interp_spline(np.arange(knots), np.eye(knots), k=min(3, knots - 1))
    return spline(np.linspace(0, knots - 1, size)).astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Floats:
    """Smooth random field of about unit variance: a cubic spline through a knots^3 grid of normal values."""
    field = rng.standard_normal((knots,) * 3, dtype=np.float32)
    for size in shape:  # each pass replaces the first axis and moves it last
        field = np.tensordot(field, spline_rows(size, knots), axes=(0, 1))
    return field
