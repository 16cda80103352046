"""Phrases in text: rules that are read once into a tree of words, and found in time linear in the text.

A phrase is words, matched without case, British or American, singular or plural (`phrases.toml`). In a phrase (a|b) is
one of several, [a] may be missing, `..` is up to four words without a comma and `...` up to nine, commas among them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

_TOKEN = re.compile(r"[a-z]+n['’]t\b|\d+(?:[.,]\d+)+|[a-z]+|\d+|[.,;:!?()\[\]/]", re.IGNORECASE)
# A word longer than this is not language; cut, it costs what any other costs.
_LONGEST_WORD = 40
_GAPS = {"..": 4, "...": 9}
HARD = frozenset(".;!()[]")
_NO_GAP = HARD | {":", "normal", "but", "however"}
_MOST_PATTERNS = 1500  # of one phrase: optional words multiply


Pattern = tuple[str, ...]


def read_rules(name: str) -> dict[str, Any]:
    """A TOML file of rules that lies in this folder."""
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


_SPELLING = read_rules("phrases.toml")
_AMERICAN = tuple(pair.split("/") for pair in _SPELLING["american"].split())


def words_of(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words and signs of a text, folded, and where each stands in it."""
    places = [match.span() for match in _TOKEN.finditer(text)]
    return [fold(text[start : min(end, start + _LONGEST_WORD)]) for start, end in places], places


def fold(word: str) -> str:
    """Lower case, American, singular: the form in which rules and texts meet."""
    word = word.lower()
    if word[-3:-1] in ("n'", "n’"):
        return "cannot" if word.startswith("can") else "not"
    if len(word) <= 3 or not word.isalpha():
        return word
    for british, american in _AMERICAN:
        word = word.replace(british, american)
    if word in _SPELLING["singular"]:
        return str(_SPELLING["singular"][word])
    if word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("sses"):
        return word[:-2]
    return word[:-3] + "y" if word.endswith("ies") else word.removesuffix("s")


_PART = re.compile(r"[()\[\]|]|[^\s()\[\]|]+")


def _spelled_out(phrase: str) -> set[Pattern]:
    """Every row of words that a phrase with (a|b) and [a] stands for."""
    parts = _PART.findall(phrase)

    def read(at: int, closing: str) -> tuple[set[Pattern], int]:
        rows: set[Pattern] = set()
        current: set[Pattern] = {()}
        while at < len(parts) and parts[at] != closing:
            part, at = parts[at], at + 1
            if part == "|":
                rows, current = rows | current, {()}
                continue
            if part in "([":
                inner, at = read(at, ")" if part == "(" else "]")
                inner = inner | {()} if part == "[" else inner
            else:
                inner = {(part if part in _GAPS else fold(part),)}
            current = {(*left, *right) for left in current for right in inner}
        return rows | current, at + 1

    return read(0, "")[0] - {()}


Name = tuple[str, str]


@dataclass(slots=True)
class Phrases:
    """Phrases as a tree of words: what phrases share is walked once. `names` are those of the phrases that end here."""

    names: list[Name] = field(default_factory=list)
    following: dict[str, Phrases] = field(default_factory=dict)

    def add(self, pattern: Pattern, name: Name) -> None:
        """One more row of words."""
        node = self
        for part in pattern:
            node = node.following.setdefault(part, Phrases())
        if name not in node.names:
            node.names.append(name)


def read_phrases(named: Iterable[tuple[str, Name]]) -> Phrases:
    """A tree of phrases, one a line, each with the name that its finds are given."""
    tree = Phrases()
    for lines, name in named:
        for phrase in lines.splitlines():
            patterns = _spelled_out(phrase)
            assert len(patterns) <= _MOST_PATTERNS, f"{phrase!r} stands for {len(patterns)} rows of words"
            for pattern in patterns:
                tree.add(pattern, name)
    return tree


def matches(phrases: Phrases, words: Sequence[str]) -> Iterator[tuple[int, int, Name]]:
    """Every place where a phrase holds: its start, its end, and its name."""
    for start, word in enumerate(words):
        node = phrases.following.get(word)
        if node is not None:
            yield from dict.fromkeys((start, end, name) for end, name in _ends(node, words, start + 1))


def _ends(node: Phrases, words: Sequence[str], at: int) -> Iterator[tuple[int, Name]]:
    """Where the phrases end that go on from here. Their length and their gaps are bounded, and so is the work."""
    for name in node.names:
        yield at, name
    if at < len(words) and words[at] in node.following:
        yield from _ends(node.following[words[at]], words, at + 1)
    for gap in node.following.keys() & _GAPS.keys():
        for skipped in range(min(_GAPS[gap], len(words) - at) + 1):
            last = words[at + skipped - 1] if skipped else ""
            if last in _NO_GAP or (gap == ".." and last == ","):
                break
            yield from _ends(node.following[gap], words, at + skipped)
