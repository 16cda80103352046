"""Report text without identifiers: rules over labels, titles, forms of dates and numbers, and the names one knows.

What this cannot promise: a name that stands bare in a sentence, with no title, label, signature or known form, stays;
so do years, rare diseases, professions and anything that a reader recognises from the story. It lowers the risk of a
chance finding; it does not make a text anonymous, and texts that leave a hospital need a person who reads them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

Found = re.Match[str]
_UMLAUTS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ø": "oe", "å": "aa"}
)
_OF_NAMES = "dr prof mr mrs ms md phd jr sr ii iii herr frau von van der den de la le du del di da med"
_TITLES = frozenset(_OF_NAMES.split())


def deidentify_text(text: str, *, names: Sequence[str] = (), identifiers: Sequence[str] = ()) -> str:
    """Replace what identifies a person by markers such as `[name]`, `[date]` and `[id]`.

    `names` are names known from elsewhere, as in a header (`Doe^Jane^^Dr`) or written out: each of their parts goes,
    in any case and with or without accents, but for parts that a report needs as words ("white"), which go where they
    stand beside another part or a title. `identifiers` (patient id, accession number, institution) go as they are.
    Years alone are kept. Time is linear in the length of the text.
    """
    for value in sorted({value.strip() for value in identifiers if len(value.strip()) >= 3}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "[id]", text, flags=re.IGNORECASE)
    text = _without_known(text, names)
    for rule in rules():
        text = _replaced(text, rule)
    # Names of one person in two pieces, met by two rules.
    return re.sub(r"\[name\](?:[ ,.]{0,2}\[name\]){1,8}", "[name]", text)


class Rule(NamedTuple):
    """A line of `rules.txt`: what takes the place of what matches, and which function of this module decides."""

    marker: str
    when: Callable[[str, str], str]
    pattern: re.Pattern[str]


@cache
def _lines() -> tuple[str, ...]:
    text = Path(__file__).with_name("rules.txt").read_text(encoding="utf-8")
    return tuple(line for line in re.sub(r"\n {4}", "\t", text).splitlines() if line and line[0] != "#")


@cache
def words(name: str) -> frozenset[str]:
    """A list of words of `rules.txt`."""
    return frozenset(next(line for line in _lines() if line.startswith(f"words {name}\t")).split()[2:])


@cache
def rules() -> tuple[Rule, ...]:
    """The rules in their order, with the pieces of patterns put in."""
    pieces: dict[str, str] = {}
    found = []
    for line in _lines():
        if line.startswith("words "):
            name = line.split(maxsplit=2)[1]
            pieces[name] = "|".join(sorted(words(name), key=len, reverse=True))
            continue
        parts = re.fullmatch(r"(define|\[[^]]+\]) (\w+) (.+)", line.replace("\t", ""))
        assert parts is not None, f"rules.txt: {line[:40]!r} is neither words nor define nor a rule"
        kind, name, pattern = parts.groups()
        pattern = re.sub(r"\{([A-Z_]+)\}", lambda piece: pieces[piece[1]], pattern)
        if kind == "define":
            pieces[name] = pattern
        else:
            found.append(Rule(kind, _DECIDES[name], re.compile(pattern)))
    return tuple(found)


def _always(text: str, marker: str) -> str:
    return marker


def _titled(text: str, marker: str) -> str:
    """Replace the leading words that may be a name: it ends before a word of the report's own."""
    end = 0
    for word in re.finditer(r"[^\s,]+", text):
        bare = word.group().strip(".").casefold()
        # What is in lower case is a particle ("van der"), as the pattern lets nothing else through.
        if len(bare) > 1 and bare in words("NOT_NAMES") and not word.group().islower():
            break
        end = word.end()
    return marker + text[end:] if end else text


def _person(text: str, marker: str) -> str:
    # Without a title, a name that stands for a sign or a disease is taken for that.
    first = text.split(maxsplit=1)[0].strip(".,").casefold()
    return text if all(part in words("EPONYMS") for part in first.split("-")) else _titled(text, marker)


def _several(text: str, marker: str) -> str:
    # Two capitalised words may be a person; if one of them is medicine, they are not.
    return marker if _person(text, marker) == marker else text


def _month(text: str, marker: str) -> str:
    month = next(word for word in re.findall(r"[^\W\d_]+", text) if word.casefold() in words("MONTHS"))
    return text if month in words("ALSO_WORDS") and not re.search(r"(?:19|20)\d{2}", text) else marker


def _place(text: str, marker: str) -> str:
    found = text.split()
    return text if found[0].casefold() in words("ANY_PLACE") and len(found) <= 3 else marker


_DECIDES = {
    "always": _always, "titled": _titled, "person": _person, "several": _several, "month": _month, "place": _place,
}  # fmt: skip


def _replaced(text: str, rule: Rule) -> str:
    def one(found: Found) -> str:
        if "x" not in rule.pattern.groupindex:
            return rule.when(found.group(), rule.marker)
        start, end = (edge - found.start() for edge in found.span("x"))
        return found.group()[:start] + rule.when(found["x"], rule.marker) + found.group()[end:]

    return rule.pattern.sub(one, text)


def _without_known(text: str, names: Iterable[str]) -> str:
    parts = {part for name in names for part in re.split(r"[\s^=,;/\\.]+", name) if part}
    parts = {part for part in parts if part.casefold() not in _TITLES and not part.isdigit()}
    forms = {form for part in parts for form in _forms(part) if len(form) >= 2 or not form.isascii()}
    if not forms:
        return text
    also_words = words("ALSO_MEDICINE") | words("NOT_NAMES")
    sure = sorted((form for form in forms if form.casefold() not in also_words), key=len, reverse=True)
    # Two letters ("Li", "An") are words of other languages: only where they are written as a name is.
    long = [re.escape(form) for form in sure if len(form) > 2 or not form.isascii()]
    short = [re.escape(form) for form in sure if len(form) == 2 and form.isascii()]
    # Scripts without spaces between words have no word borders to look for.
    bounded = "|".join(form for form in long if ord(form[0]) < 0x2E80)
    free = [form for form in long if ord(form[0]) >= 0x2E80]
    if bounded:
        text = re.sub(rf"(?<![^\W_])(?:{bounded})(?:(?=['’]s\b)|(?![^\W_]))", "[name]", text, flags=re.IGNORECASE)
    for form in free:
        text = text.replace(form, "[name]")
    exact = {shape for form in short for shape in (form.capitalize(), form.upper())}
    unsure = {form for form in forms if form.casefold() in also_words} | {part for part in parts if len(part) == 1}
    exact |= {re.escape(shape) for form in unsure for shape in (form.capitalize(), form.upper())}
    if exact:
        either = "|".join(sorted(exact, key=len, reverse=True))
        beside = r"(?:\[name\]|Dr\.?|Prof\.?|Mr\.?|Mrs\.?|Ms\.?|Herrn?|Frau|Mme|Sra?\.?|Patient:?|Name:?)"
        for pattern in (
            rf"({beside},?[ ]{{1,2}})(?:{either})\b(?:(?<=\b\w)\.)?",
            rf"\b(?:{either})\.?(,?[ ]{{1,2}}\[name\])",
        ):
            text = re.sub(pattern, lambda found: found[0].replace(found[0].replace(found[1], ""), "[name]"), text)
    return text


def _forms(part: str) -> set[str]:
    """A part of a name as it is, without accents, and with umlauts written out."""
    composed = unicodedata.normalize("NFC", part)
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", part) if not unicodedata.combining(letter))
    return {composed, bare, composed.translate(_UMLAUTS)}
