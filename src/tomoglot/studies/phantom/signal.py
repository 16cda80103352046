"""Signal of each sequence from tissue properties: textbook equations, constants calibrated on real scans.

Relaxation times are near published 3 T values (Stanisz 2005; Wansapura 1999) and were moved, and given a gain a tissue,
so that the ratios to white matter stay inside those measured in three real studies (`REAL_RATIOS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEQUENCES = ("t1w", "t1c", "t2w", "flair", "pd", "dwi", "t2s")
TISSUES = ("csf", "gm", "wm", "necrosis", "rim", "oedema", "plaque", "infarct", "blood")
RELAXIVITY_PER_S_MM = 4.3


@dataclass(frozen=True, slots=True)
class Tissue:
    """T1, T2 and T2* in ms, proton density relative to water, ADC in 1e-3 mm2/s, contrast agent in mM."""

    t1_ms: float
    t2_ms: float
    density: float
    adc: float
    t2s_ms: float
    agent_mm: float = 0.0


TABLE: Mapping[str, Tissue] = {
    "csf": Tissue(4000, 900, 1.00, 3.00, 400),
    "gm": Tissue(1400, 93, 0.80, 0.85, 56, 0.02),
    "wm": Tissue(900, 80, 0.71, 0.72, 50, 0.01),
    "necrosis": Tissue(2800, 320, 0.93, 2.20, 160),
    "rim": Tissue(1550, 110, 0.83, 1.15, 62, 0.55),
    "oedema": Tissue(1500, 130, 0.82, 1.45, 85),
    "plaque": Tissue(1300, 118, 0.78, 1.10, 72),
    "infarct": Tissue(1300, 122, 0.80, 0.42, 75),
    "blood": Tissue(620, 75, 0.80, 0.60, 12),
}

# Ratio to white matter in three real multiple sclerosis studies (T1 classes by Otsu, lesions by expert masks).
REAL_RATIOS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("t1w", "gm"): (0.73, 0.79),
    ("t2w", "gm"): (1.20, 1.25),
    ("flair", "gm"): (1.16, 1.18),
    ("t2w", "csf"): (2.7, 2.9),
    ("t1w", "plaque"): (0.62, 0.79),
    ("t2w", "plaque"): (1.6, 2.1),
    ("flair", "plaque"): (1.40, 1.46),
}

# Closes what the equations leave open of those ratios.
GAINS: Mapping[tuple[str, str], float] = {
    ("t1w", "gm"): 0.95,
    ("t1c", "gm"): 0.95,
    ("t2w", "gm"): 0.945,
    ("flair", "gm"): 1.12,
    ("t2w", "csf"): 0.936,
    ("t1w", "plaque"): 0.83,
    ("t1c", "plaque"): 0.83,
    ("t2w", "plaque"): 1.155,
    ("flair", "plaque"): 0.989,
}


def spoiled_echo(tissue: Tissue, repetition_ms: float, flip_degrees: float, echo_ms: float, decay_ms: float) -> float:
    """Spoiled gradient echo: PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE / T2*)."""
    flip = np.deg2rad(flip_degrees)
    left = np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.density * np.sin(flip) * (1 - left) / (1 - np.cos(flip) * left) * np.exp(-echo_ms / decay_ms))


def spin_echo(tissue: Tissue, repetition_ms: float, echo_ms: float) -> float:
    """Spin echo: PD (1 - exp(-TR / T1)) exp(-TE / T2)."""
    return float(tissue.density * (1 - np.exp(-repetition_ms / tissue.t1_ms)) * np.exp(-echo_ms / tissue.t2_ms))


def inversion_recovery(tissue: Tissue, repetition_ms: float, inversion_ms: float, echo_ms: float) -> float:
    """Magnitude of inversion recovery: PD |1 - 2 exp(-TI / T1) + exp(-TR / T1)| exp(-TE / T2)."""
    along = 1 - 2 * np.exp(-inversion_ms / tissue.t1_ms) + np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.density * abs(along) * np.exp(-echo_ms / tissue.t2_ms))


def with_agent(tissue: Tissue) -> Tissue:
    """The tissue after contrast agent: 1/T1 rises by relaxivity times concentration."""
    t1_ms = 1000.0 / (1000.0 / tissue.t1_ms + RELAXIVITY_PER_S_MM * tissue.agent_mm)
    return Tissue(t1_ms, tissue.t2_ms, tissue.density, tissue.adc, tissue.t2s_ms, tissue.agent_mm)


def signal(sequence: str, tissue: Tissue) -> float:
    """Noise-free signal of a tissue in a sequence, in arbitrary units."""
    match sequence:
        case "t1w":
            return spoiled_echo(tissue, 22.0, 20.0, 4.0, tissue.t2s_ms)
        case "t1c":
            return spoiled_echo(with_agent(tissue), 22.0, 20.0, 4.0, tissue.t2s_ms)
        case "t2w":
            return spin_echo(tissue, 4500.0, 100.0)
        case "pd":
            return spin_echo(tissue, 4500.0, 18.0)
        case "flair":
            return inversion_recovery(tissue, 9000.0, 2400.0, 125.0)
        case "dwi":
            return spin_echo(tissue, 6000.0, 85.0) * float(np.exp(-tissue.adc))  # b = 1000 s/mm2
        case "t2s":
            return spoiled_echo(tissue, 650.0, 22.0, 20.0, tissue.t2s_ms)
    raise ValueError(f"no simulated sequence {sequence!r}; there are {', '.join(SEQUENCES)}")


def jittered(rng: np.random.Generator, share: float = 0.04) -> dict[str, Tissue]:
    """The table with T1, T2 and density of each tissue moved by a normal `share` (4 %), within two deviations."""
    moved = {}
    for name, tissue in TABLE.items():
        t1, t2, density = 1.0 + share * rng.standard_normal(3).clip(-2, 2)
        moved[name] = Tissue(
            tissue.t1_ms * t1, tissue.t2_ms * t2, tissue.density * density, tissue.adc, tissue.t2s_ms * t2,
            tissue.agent_mm,
        )  # fmt: skip
    return moved


def signals(sequence: str, table: Mapping[str, Tissue] = TABLE) -> NDArray[np.float32]:
    """Signal of every tissue in `TISSUES` order, divided by nominal white matter's."""
    white = signal(sequence, TABLE["wm"])
    values = [GAINS.get((sequence, name), 1.0) * signal(sequence, table[name]) / white for name in TISSUES]
    return np.asarray(values, dtype=np.float32)
