"""The pages that explain refusals name every reason that the code has, and none that it has not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "src" / "tomoglot" / "studies"
PAGES = ROOT / "docs" / "how-to"
# Reasons that are put together, or that come from another room.
RAW = {"localiser", "derived", "burnt-in", "unknown-sequence", "another-<sequence>", "worker-died", "out-of-memory"}
PULL = {"status-NNN", "status-3NN", "status-403", "status-404"}


def reasons(folder: Path) -> set[str]:
    """The reason that each refusal in a room is built with, where it is a plain word."""
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                place = {"Rejected": 0, "Again": 0, "refuse": 1}.get(name)
                reason = node.args[place] if place is not None and len(node.args) > place else None
                if isinstance(reason, ast.Constant):
                    found.add(str(reason.value))
    return found


def named_in_tables(page: str) -> set[str]:
    rows = [line.split("|")[1] for line in (PAGES / page).read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    return set(re.findall(r"`([a-z][\w<>-]+)`", " ".join(rows)))


@pytest.mark.parametrize(
    ("room", "page", "others"), [("dicom", "raw-dicom.md", RAW), ("dicomweb", "from-a-pacs.md", PULL)]
)
def test_the_page_names_every_reason_and_no_other(room, page, others):
    in_code = reasons(STUDIES / room)
    assert len(in_code) > 10
    assert in_code - named_in_tables(page) == set()
    assert named_in_tables(page) - in_code - others == set()
