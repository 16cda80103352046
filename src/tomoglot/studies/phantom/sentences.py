"""Sentences that remember which findings they tell or deny, and the report they make: shared by all cohorts.

Every finding has several wordings; the last of each list is held out and only test subjects may use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tomoglot.studies.study import Report

DENIALS = ("There is no {what}.", "No evidence of {what}.", "No {what} is seen.", "{What}: none.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """One sentence of a report: section, ids of the findings it tells, types it denies, whether held out."""

    text: str
    section: str
    findings: tuple[int, ...] = ()
    denies: tuple[str, ...] = ()
    held_out: bool = False

    def record(self) -> dict[str, object]:
        """As written to truth JSON."""
        told = {"text": self.text, "section": self.section, "held_out_wording": self.held_out}
        return told | {"findings": list(self.findings), "denies": list(self.denies)}


class Writer:
    """Chooses wordings with one generator; test subjects also draw from the held-out ones."""

    def __init__(self, rng: np.random.Generator, *, test: bool) -> None:
        self.rng = rng
        self.test = test

    def choose(self, wordings: Sequence[str]) -> tuple[str, bool]:
        """One wording and whether it is held out: half of a test subject's sentences are, nobody else's."""
        if self.test and self.rng.random() < 0.5:
            return wordings[-1], True
        return wordings[int(self.rng.integers(len(wordings) - 1))], False

    def sentence(self, wordings: Sequence[str], finding: int, section: str, words: Mapping[str, str]) -> Sentence:
        """A sentence that tells one finding, given by its id."""
        wording, held_out = self.choose(wordings)
        text = wording.format_map(dict(words))
        return Sentence(text=text[0].upper() + text[1:], section=section, findings=(finding,), held_out=held_out)

    def denials(self, absent: Sequence[str], names: Mapping[str, Sequence[str]]) -> list[Sentence]:
        """A random subset of the absent findings that have `names`, in random order, denied one or a few at a time."""
        kept = [kind for kind in absent if kind in names and self.rng.random() < 0.8]
        order = [kept[i] for i in self.rng.permutation(len(kept))]
        told = []
        while order:
            size = int(self.rng.integers(1, 4))
            group, order = order[:size], order[size:]
            drawn = [self.choose(names[kind]) for kind in group]
            said = [name for name, _ in drawn]
            what = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " or " + said[-1]
            wording, held_out = self.choose(DENIALS)
            text = wording.format(what=what, What=what[0].upper() + what[1:])
            told.append(
                Sentence(
                    text=text,
                    section="findings",
                    denies=tuple(group),
                    held_out=held_out or any(held for _, held in drawn),
                )
            )
        return told


def size_cm(diameters_mm: Sequence[float]) -> str:
    """Three diameters in cm to one decimal, each rounded down or up so that their product stays nearest to the true."""
    true = float(np.prod(diameters_mm)) / 1000.0
    choices = [sorted({np.floor(d) / 10.0, np.ceil(d) / 10.0}) for d in diameters_mm]
    best = min(itertools.product(*choices), key=lambda three: abs(float(np.prod(three)) - true))
    return " x ".join(f"{value:.1f}" for value in sorted(best, reverse=True))


def capitalised(words: Mapping[str, str]) -> dict[str, str]:
    """The words, and under each key with a capital the word with one."""
    return dict(words) | {key.capitalize(): value[:1].upper() + value[1:] for key, value in words.items()}


def assemble(technique: str, body: Sequence[Sentence], summed: Sequence[Sentence]) -> Report:
    """The report of its sentences: TECHNIQUE, FINDINGS, and a numbered IMPRESSION."""
    found = " ".join(sentence.text for sentence in body) or "No abnormality is described."
    impression = " ".join(f"{n}. {sentence.text}" for n, sentence in enumerate(summed, 1))
    text = f"TECHNIQUE: {technique}\n\nFINDINGS: {found}\n\nIMPRESSION: {impression}\n"
    return Report(text=text, findings=found, impression=impression)
