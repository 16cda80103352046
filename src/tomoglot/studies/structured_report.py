"""The text of a DICOM structured report (SR): its content tree as headings and lines that `report.read_report` splits.

DICOM PS3.3 section C.17.3 (the tree) and PS3.16 TID 2000 (basic diagnostic imaging report). Who observed and how the
images were acquired (observation and acquisition context), names, dates and UIDs are left out. What people wrote stays:
free text must go through the de-identification of reports before it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tomoglot.studies.encoding import check_text
from tomoglot.studies.study import Rejected

_CONTEXT = ("HAS OBS CONTEXT", "HAS ACQ CONTEXT")
_MAX_DEPTH = 16
_MAX_ITEMS = 10_000
_MAX_LETTERS = 1_000_000


def report_of(dataset: Any) -> str:
    """Text of an SR data set: a line an item ("name: words"), under the titles of the containers they are in.

    Raises:
        Rejected: `not-a-report` where there is no text in a content tree, `report-too-deep`, `report-too-long`,
            `report-unreadable` where the tree is malformed, `report-mojibake`.
    """
    lines: list[str] = []
    letters = 0
    try:
        for number, line in enumerate(_lines(dataset, depth=0)):
            letters += len(line)
            if number >= _MAX_ITEMS or letters > _MAX_LETTERS:
                most = f"{_MAX_ITEMS} lines or {_MAX_LETTERS} letters"
                raise Rejected("report-too-long", f"the structured report has more than {most}")
            lines.append(line)
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, Rejected):
            raise
        what = f"its content tree is malformed ({type(error).__name__})"
        raise Rejected("report-unreadable", f"the structured report cannot be read: {what}") from None
    text = "\n".join(lines).strip()
    # A title alone is a line that ends in its colon: a tree of nothing else says nothing.
    if not any(line and not line.endswith(":") for line in lines):
        raise Rejected("not-a-report", "the structured report holds no text, code or number")
    check_text(text)
    return text


def _lines(item: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise Rejected("report-too-deep", f"the structured report nests more than {_MAX_DEPTH} levels")
    for child in item.get("ContentSequence") or ():
        if str(child.get("RelationshipType", "")) in _CONTEXT:
            continue
        name, kind = _meaning(child.get("ConceptNameCodeSequence")), str(child.get("ValueType", ""))
        words = _words(child, kind)
        if kind == "CONTAINER" and name:
            # An empty line before it: what follows a section belongs to no other one.
            yield ""
            yield f"{name}:"
        elif words:
            yield f"{name}: {words}" if name else words
        yield from _lines(child, depth + 1)


def _words(item: Any, kind: str) -> str:
    if kind == "TEXT":
        return str(item.get("TextValue") or "").replace("\r\n", "\n").strip()
    if kind == "CODE":
        return _meaning(item.get("ConceptCodeSequence"))
    if kind == "NUM":
        measured = (item.get("MeasuredValueSequence") or [{}])[0]
        units = measured.get("MeasurementUnitsCodeSequence")
        unit = str((units or [{}])[0].get("CodeValue") or "")
        return f"{measured.get('NumericValue', '')} {'' if unit == '1' else unit}".strip()
    return ""


def _meaning(codes: Any) -> str:
    return str((codes or [{}])[0].get("CodeMeaning") or "").strip()
