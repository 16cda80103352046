"""The sentences that the findings labeller is scored on: ours, from no report, with what each says of each finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tomoglot.studies.findings import LISTS, label_sentence

_SIGNS = {"+": "present", "-": "absent", "?": "uncertain"}
CERTAINTIES = ("present", "absent", "uncertain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A sentence, the list it is asked for, and what it says; findings that it does not mention are not in `told`."""

    organ: str
    text: str
    told: Mapping[str, str]


def path_of(half: str) -> Path:
    return Path(__file__).parent / "data" / f"findings_{half}.psv"


def read_sentences(half: str) -> list[Sentence]:
    """Those of `open` (rules were written beside them), `blind` (before the rules) or `fresh` (after them)."""
    lines = path_of(half).read_text(encoding="utf-8").splitlines()[1:]
    rows = ([part.strip() for part in line.split("|")] for line in lines)
    return [
        Sentence(organ=organ, text=text, told={word[1:]: _SIGNS[word[0]] for word in told.split()})
        for organ, text, told in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Right answers, wrong ones given and right ones missed."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else float("nan")

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed) if self.right + self.missed else float("nan")

    @property
    def f1(self) -> float:
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else float("nan")


def score(sentences: Iterable[Sentence]) -> dict[tuple[str, str], Count]:
    """Counts by (finding, certainty); ("", certainty) is over all findings. What a sentence does not say counts too."""
    tally: Counter[tuple[str, str, str]] = Counter()
    for one in sentences:
        given = label_sentence(one.text, LISTS[one.organ])
        for kind, finding, said in _answers(one.told, given):
            tally[finding, said, kind] += 1
            tally["", said, kind] += 1
    keys = {key[:2] for key in tally}
    return {
        key: Count(right=tally[*key, "right"], wrong=tally[*key, "wrong"], missed=tally[*key, "missed"]) for key in keys
    }


def _answers(told: Mapping[str, str], given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for finding in {*told, *given}:
        if told.get(finding) == given.get(finding):
            yield "right", finding, told[finding]
            continue
        if finding in told:
            yield "missed", finding, told[finding]
        if finding in given:
            yield "wrong", finding, given[finding]


def macro_f1(counts: Mapping[tuple[str, str], Count], certainty: str = "present") -> float:
    """Mean of F1 over findings of which one certainty was wanted or given."""
    values = [count.f1 for (finding, said), count in counts.items() if finding and said == certainty]
    return sum(values) / len(values)
