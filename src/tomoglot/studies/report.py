"""Report text: its sections and its sentences, both in time linear in the length of the text."""

from __future__ import annotations

import re

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
    headings = list(_HEADING.finditer(text))
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for place, heading in enumerate(headings):
        end = headings[place + 1].start() if place + 1 < len(headings) else len(text)
        section = _SECTION_OF.get((heading["line"] or heading["inline"]).lower())
        if section is not None:
            parts[section].append(text[heading.end() : end].strip())
    joined = {section: "\n".join(part for part in found if part) for section, found in parts.items()}
    return Report(text=text.strip(), **joined)


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
