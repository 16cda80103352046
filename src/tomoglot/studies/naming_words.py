"""Words in headers that say what a series shows, in nine languages: the vocabulary is `naming_words.toml`.

A text is folded once (case, accents, separators), then looked up by one alternation a concept: linear in its length.
What a match hands on is the concept's name, never the text it was found in.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

# A DICOM description holds 64 characters. What is longer was not written by a scanner; its end is not read.
_READ_CHARACTERS = 1024
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ACCENT = re.compile(r"[\u0300-\u036f]")
_SEPARATOR = re.compile(r"[^a-z0-9*+\u3040-\u30ff\u3400-\u9fff]+")
_DIXON = re.compile(r"dixon|flex|ideal")
_B_VALUE = re.compile(r"(?<![a-z0-9])b ?=? ?([0-9]{1,4})(?![0-9])")


def fold(text: str) -> str:
    """Lower case without accents, words parted by single spaces; a star and a plus sign are kept, for T2* and +C."""
    text = unicodedata.normalize("NFKC", text[:_READ_CHARACTERS])
    text = _ACCENT.sub("", unicodedata.normalize("NFD", _CAMEL.sub(" ", text)).casefold())
    return _SEPARATOR.sub(" ", unicodedata.normalize("NFC", text).replace("+", " + ")).strip()


def _pattern(words: str) -> re.Pattern[str]:
    latin, _, anywhere = words.partition(" | ")
    whole = "|".join(latin.split()).replace("_", " ").replace("~", " ?")
    return re.compile("|".join((rf"(?<![a-z0-9])(?:{whole})(?![a-z0-9*])", *anywhere.split())))


def _patterns(section: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: _pattern(" ".join(words.split())) for name, words in section.items()}


_VOCABULARY = tomllib.loads(resources.files(__package__).joinpath("naming_words.toml").read_text(encoding="utf-8"))
MARK = _patterns(_VOCABULARY["mark"])
NO_NAME = _patterns(_VOCABULARY["no_name"])
_FAMILY = _patterns(_VOCABULARY["family"])
_PHASE = _patterns(_VOCABULARY["phase"])
_WIDER = {name: frozenset(wider.split()) for name, wider in _VOCABULARY["wider"].items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What one folded text says: families, contrast medium given or not (or None), phases, b-values."""

    families: frozenset[str]
    contrast: bool | None
    phases: frozenset[str]
    b_values: frozenset[int]
    text: str  # folded; for looking up, never for writing out


def read_words(text: str) -> Words:
    """Every concept that `text` names."""
    folded = fold(text)
    families = {name for name, pattern in _FAMILY.items() if pattern.search(folded)}
    last = folded.rsplit(" ", 1)[-1]
    if last in _VOCABULARY["dixon"] and _DIXON.search(folded):
        families.add(_VOCABULARY["dixon"][last])
    families -= {wide for name in families for wide in _WIDER.get(name, ())}
    sides = MARK["both"].sub(" ", folded)
    rest = MARK["without"].sub(" ", sides)
    without, given = rest != sides, MARK["with"].search(rest) is not None
    return Words(
        families=frozenset(families),
        contrast=None if without == given else given,
        phases=frozenset(name for name, pattern in _PHASE.items() if pattern.search(folded) and "asl" not in families),
        b_values=frozenset(int(value) for value in _B_VALUE.findall(folded)),
        text=folded,
    )
