"""Concentration of contrast agent over time: an arterial bolus, the portal blood behind it, and tissue fed by both.

Tissue is one compartment with two inlets (Materne 2002, Magn Reson Med 47:135): dC/dt = a Ca + p Cp - C (a + p) / v.
With a high arterial inflow `a`, no portal inflow and a small volume of distribution `v`, this alone gives arterial
hyperenhancement and washout; with little inflow and a large volume, late and lasting enhancement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEP_S = 1.0
END_S = 420.0
GUT_DELAY_S, GUT_TRANSIT_S = 9.0, 22.0  # from aorta to portal vein: a plug, then a mixing chamber


@dataclass(frozen=True, slots=True)
class Uptake:
    """Arterial and portal inflow per minute, volume of distribution, and how much later the agent arrives."""

    arterial: float = 0.0
    portal: float = 0.0
    volume: float = 0.0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds after injection: when the bolus reaches the aorta, and the middle of each phase."""

    arrival_s: float = 15.0
    arterial: float = 34.0
    portal_venous: float = 70.0
    delayed: float = 200.0


def aorta_mm(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Agent in arterial blood in mM after 0.1 mmol/kg, from its arrival on.

    Two passes of the bolus and a slow decay: the population average of Parker 2006, Magn Reson Med 56:993, table 1.
    """
    minutes = seconds / 60.0
    first = 0.809 / (0.0563 * np.sqrt(2 * np.pi)) * np.exp(-((minutes - 0.17046) ** 2) / (2 * 0.0563**2))
    second = 0.330 / (0.132 * np.sqrt(2 * np.pi)) * np.exp(-((minutes - 0.365) ** 2) / (2 * 0.132**2))
    slow = 1.050 * np.exp(-0.1685 * minutes) / (1 + np.exp(-38.078 * (minutes - 0.483)))
    return np.where(seconds >= 0, first + second + slow, 0.0)


def followed(inflow: NDArray[np.float64], rate_per_s: float) -> NDArray[np.float64]:
    """What a compartment holds that takes in `inflow` per second and loses `rate_per_s` of its content, exactly stepped
    for an inflow that is constant over each step.
    """
    kept = float(np.exp(-rate_per_s * STEP_S))
    gained = inflow * (1.0 - kept) / rate_per_s
    held = np.zeros_like(inflow)
    for step in range(1, inflow.size):
        held[step] = held[step - 1] * kept + gained[step - 1]
    return held


class Circulation:
    """Blood of one subject, and what tissues hold of the agent at each phase."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.seconds = np.arange(0.0, END_S, STEP_S)
        self.arterial = aorta_mm(self.seconds - timing.arrival_s)
        mixed = followed(self.arterial / GUT_TRANSIT_S, 1.0 / GUT_TRANSIT_S)
        self.portal = np.interp(self.seconds - GUT_DELAY_S, self.seconds, mixed)

    def curve(self, uptake: Uptake) -> NDArray[np.float64]:
        """Concentration in mM at every second."""
        inflow = uptake.arterial * self.arterial + uptake.portal * self.portal
        if uptake.volume <= 0 or uptake.arterial + uptake.portal <= 0:
            return np.zeros_like(self.seconds)
        held = followed(inflow / 60.0, (uptake.arterial + uptake.portal) / uptake.volume / 60.0)
        return np.interp(self.seconds - uptake.delay_s, self.seconds, held)

    def at(self, phase: str, uptake: Uptake) -> float:
        """Concentration in mM in a phase; nothing before contrast."""
        if phase == "pre_contrast":
            return 0.0
        return float(np.interp(getattr(self.timing, phase), self.seconds, self.curve(uptake)))
