"""Labels of RAD-ChestCT as findings of the chest list, for an external test of what was learned on CT-RATE.

The set's tables have a column an abnormality and place (`nodule*right_upper`) with 0 or 1. The mapping is ours
(`rad_chestct.toml`), and not checked on the data: what is scored with it should say so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources

_TABLE = tomllib.loads(resources.files(__package__).joinpath("rad_chestct.toml").read_text(encoding="utf-8"))
_PLACES = {name: frozenset(places.split()) for name, places in _TABLE["places"].items()}
STANDS_FOR: Mapping[str, tuple[tuple[str, str], ...]] = {
    finding: tuple((label.strip(), place.strip()) for label, _, place in (one.partition("@") for one in labels))
    for finding, labels in ((finding, given.split(",")) for finding, given in _TABLE["findings"].items())
}


def map_labels(row: Mapping[str, object]) -> dict[str, float]:
    """Findings of a row of the set's label tables: 1 where any label that stands for one is set, else 0.

    Raises:
        ValueError: a label that a finding rests on has no column, or a cell of it is neither 0 nor 1.
    """
    columns: dict[str, list[tuple[str, object]]] = {}
    for name, value in row.items():
        label, parted, place = name.partition("*")
        if parted:
            columns.setdefault(label, []).append((place, value))
    findings = {}
    for finding, rests_on in STANDS_FOR.items():
        said = False
        for label, places in rests_on:
            if label not in columns:
                raise ValueError(f"no column {label}*<place>: this is no label table of RAD-ChestCT")
            here = [value for place, value in columns[label] if not places or place in _PLACES[places]]
            said |= any([_is_set(value, label) for value in here])
        findings[finding] = float(said)
    return findings


def _is_set(value: object, label: str) -> bool:
    text = str(value).strip()
    if text not in ("0", "1", "0.0", "1.0"):
        # NaN is not above 0 either: an empty cell would pass for a finding that is not there.
        raise ValueError(f"a cell of {label} is {text[:20]!r}, wanted 0 or 1: another table, or half a download?")
    return text.startswith("1")
