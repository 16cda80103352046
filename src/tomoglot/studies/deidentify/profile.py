"""What the Basic Application Level Confidentiality Profile (DICOM PS3.15 annex E) says to do with each attribute.

`profile.json` holds its table; `tests/studies/confidentiality_table.py` makes it from packages that read the standard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from tomoglot.config import Settings

Retained = Literal[
    "uids", "device", "institution", "characteristics", "full-dates", "descriptors", "structured-content"
]
# Name on the command line, code of the option (PS3.16 CID 7050), its meaning there.
RETAINABLE: dict[Retained, tuple[str, str]] = {
    "uids": ("113110", "Retain UIDs Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
    "full-dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "descriptors": ("113105", "Clean Descriptors Option"),
    "structured-content": ("113104", "Clean Structured Content Option"),
}
_BASIC = ("113100", "Basic Application Confidentiality Profile")
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_REFUSED = {
    "safe-private": "no table of safe private attributes is at hand, so all private attributes are removed",
    "graphics": "text in overlays and annotations cannot be told from drawing, so both are removed",
    "pixels": "burnt-in text is found and its file refused; it is not painted over",
    "faces": "a plane cut from NIfTI heads (deface) does not do what the standard's option says",
}
# Of several actions that depend on the kind of object, the one that every kind allows: an empty or dummy value stands
# where an attribute may be required. None of them leaves the original.
_SAFEST = {"Z/D": "D", "X/Z": "Z", "X/D": "D", "X/Z/D": "D", "X/Z/U*": "U"}
Action = Literal["X", "Z", "D", "U", "C", "K", ""]


class Options(Settings):
    """What is kept beyond the basic profile. By default only time: each subject's dates are moved by one offset."""

    retain: frozenset[Retained] = frozenset()
    dates: Literal["shifted", "removed"] = "shifted"
    look_at_pixels: bool = True
    deface: bool = False  # NIfTI files alone: see studies/deface.py
    subject_from_study: bool = False  # each study without a Patient ID is of another person

    @classmethod
    def retaining(cls, names: Iterable[str], **others: Any) -> Self:
        """Options by their names in `RETAINABLE`; `others` are the other settings of this class.

        Raises:
            ValueError: an option that is not known, or that cannot be kept as the standard means it.
        """
        chosen = frozenset(names)
        for name in sorted(chosen - RETAINABLE.keys()):
            why = _REFUSED.get(name, f"there is no such option; known are {', '.join(sorted(RETAINABLE))}")
            raise ValueError(f"retain {name!r}: {why}")
        return cls(retain=frozenset(name for name in RETAINABLE if name in chosen), **others)

    @property
    def keeps_dates(self) -> bool:
        """Whether dates stay as they are."""
        return "full-dates" in self.retain

    @property
    def shifts_dates(self) -> bool:
        """Whether dates are moved by one offset a subject."""
        return self.dates == "shifted" and not self.keeps_dates

    @property
    def codes(self) -> list[tuple[str, str]]:
        """Code and meaning of the profile and of each option, for De-identification Method Code Sequence."""
        dates = [_MODIFIED_DATES] if self.shifts_dates else []
        return [_BASIC, *sorted([*dates, *(RETAINABLE[name] for name in self.retain)])]


@cache
def _table() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    table = json.loads(Path(__file__).with_name("profile.json").read_text(encoding="utf-8"))
    return table["basic"], table["options"]


def attributes() -> tuple[str, ...]:
    """Every attribute of the table: eight hexadecimal digits, `x` for any."""
    return tuple(_table()[0])


def action_for(tag: int, vr: str, options: Options) -> Action:
    """X remove, Z empty, D dummy, U another UID, C clean, K keep; empty where the table does not list the attribute.

    An attribute that the options' edition of the table does not know yet has no option, but for dates and times, which
    follow the date option as all others do.
    """
    basic, by_option = _table()
    digits = f"{tag:08x}"
    if digits not in basic:
        digits = next((wild for wild in _wild(digits) if wild in basic), digits)
    if digits == "0040a160" and "structured-content" in options.retain:  # Text Value: an item of what is cleaned
        return "C"
    if digits not in basic:
        return ""
    chosen = {*options.retain, *(["modified-dates"] if options.shifts_dates else [])}
    actions = {action for option, action in by_option.get(digits, {}).items() if option in chosen}
    if "K" in actions or "C" in actions:
        return "K" if "K" in actions else "C"
    if vr in ("DA", "DT", "TM") and digits not in by_option and tag >> 16 != 0x0010:
        if options.keeps_dates:
            return "K"
        if options.shifts_dates:
            return "C"
    action = basic[digits]
    return _SAFEST.get(action, action)  # type: ignore[return-value]


def _wild(digits: str) -> tuple[str, str]:
    return digits[:2] + "xx" + digits[4:], digits[:2] + "xxxxxx"
