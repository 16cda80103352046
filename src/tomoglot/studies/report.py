"""Report text: its sections and its sentences, both in time linear in the length of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tomoglot.studies.study import Report

_FINDINGS = ("findings", "finding", "observations", "results")
_IMPRESSION = ("impression", "impressions", "conclusion", "conclusions", "opinion", "summary", "assessment")
_OTHER = (
    "technique", "protocol", "comparison", "indication", "history", "clinical history", "clinical information",
    "clinical indication", "clinical details", "procedure", "procedures", "examination", "exam", "contrast",
    "recommendation", "recommendations", "addendum",
)  # fmt: skip
_SECTION_OF = dict.fromkeys(_FINDINGS, "findings") | dict.fromkeys(_IMPRESSION, "impression")
_TITLES = "|".join(sorted((*_FINDINGS, *_IMPRESSION, *_OTHER), key=len, reverse=True))
# Each alternative is tried at one place only (a line's start, or a word in capitals), and nothing in it repeats
# without a bound: the search stays linear on any text.
_HEADING = re.compile(
    rf"(?:^[ \t#*]{{0,8}}(?P<line>(?i:{_TITLES}))[ \t*]{{0,4}}(?::|$)"
    rf"|\b(?P<inline>{_TITLES.upper()})[ \t]{{0,4}}:)[ \t*]{{0,4}}",
    re.MULTILINE,
)
_ABBREVIATIONS = frozenset(
    ("dr", "mr", "mrs", "ms", "prof", "no", "fig", "vs", "approx", "e.g", "i.e", "ca", "incl", "resp", "st", "cf")
)
_END = re.compile(r"[.!?][\"')\]]{0,3}(?=\s)")
_ITEM = re.compile(r"^(?:[-*•]|\(?\d{1,2}[.)])(?:\s+|$)")
_SPACES = re.compile(r"\s+")


def read_report(text: str) -> Report:
    """Split a report into findings and impression where headings tell them apart; the whole text is kept.

    A heading stands at the start of a line ("Findings:") or in capitals anywhere ("IMPRESSION:"). A section that
    occurs twice is joined. Text under another heading (technique, comparison) belongs to neither.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for section, part in _sections(text):
        if section in parts:
            parts[section].append(part)
    joined = {section: "\n".join(part for part in found if part) for section, found in parts.items()}
    return Report(text=text.strip(), **joined)


def spoken(text: str) -> str:
    """What a report says of its own images: findings and impression, or all but the first paragraph of other sections.

    Where no heading names findings or impression, they may stand anywhere: only the paragraph right under another
    heading (indication, technique, comparison) is left out.
    """
    sections = list(_sections(text))
    if any(section in ("findings", "impression") and part for section, part in sections):
        return "\n\n".join(part for section, part in sections if section in ("findings", "impression"))
    return "\n\n".join(part if not section else part.partition("\n\n")[2] for section, part in sections)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Each section's kind ("" before the first heading, "other" under one that is neither of ours) and its text."""
    headings = list(_HEADING.finditer(text))
    yield "", text[: headings[0].start() if headings else len(text)].strip()
    for place, heading in enumerate(headings):
        end = headings[place + 1].start() if place + 1 < len(headings) else len(text)
        name = (heading["line"] or heading["inline"]).lower()
        yield _SECTION_OF.get(name, "other"), text[heading.end() : end].strip()


def report_body(text: str) -> str:
    """Findings and impression, or the whole text where headings tell neither apart.

    The technique is left out: it names the sequences acquired, which an image need not be read to know.
    """
    parts = read_report(text)
    return " ".join(part for part in (parts.findings, parts.impression) if part) or parts.text


def sentences(text: str) -> list[str]:
    """The sentences of a report, in order, without headings, list marks and empty ones.

    A sentence ends at a full stop, question or exclamation mark before white space (so "1.5 cm" stays whole and so
    does "approx. 3 mm"), at an empty line, at a heading and before a list item. Other line breaks are spaces.
    """
    found: list[str] = []
    for block in _blocks(_HEADING.sub("\n\n", text)):
        found.extend(_sentences_of_block(block))
    return found


def _blocks(text: str) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        stripped = line.strip()
        item = _ITEM.match(stripped)
        if not stripped or item:
            blocks.append([])
        if stripped:
            blocks[-1].append(stripped[item.end() :] if item else stripped)
    return [" ".join(block) for block in blocks if block]


def _sentences_of_block(block: str) -> list[str]:
    found, start = [], 0
    for end in _END.finditer(block):
        # Only the last few characters are looked at: a word longer than these is no abbreviation.
        tail = block[max(start, end.start() - 12) : end.start()]
        word = tail.rsplit(maxsplit=1)[-1].lstrip("(").lower() if tail.strip() else ""
        if block[end.start()] == "." and (word in _ABBREVIATIONS or (word.isdigit() and end.start() - start <= 2)):
            continue
        found.append(block[start : end.end()])
        start = end.end()
    found.append(block[start:])
    tidy = (_ITEM.sub("", _SPACES.sub(" ", sentence).strip(), count=1) for sentence in found)
    return [sentence for sentence in tidy if any(letter.isalnum() for letter in sentence)]
