"""Which findings a report speaks of, and with what certainty: rules over phrases and over the words round them.

After the idea of NegEx and ConText (Chapman et al. 2001; Harkema et al. 2009): a phrase names a finding, a cue beside
it says what becomes of it, and a border ends what a cue reaches. The phrases (`findings_<organ>.toml`) and the cues
(`findings_context.toml`) are ours. A text is read in time linear in its length.

What certainty means here:

- A report that takes a position says *present*: likely, probable, consistent with, suggests, favours, known, old.
  One that leaves it open says *uncertain*: possible, may, suspicious for, cannot be excluded, borderline, X or Y, X
  versus Y. Unlikely is *absent*.
- Change presupposes: "no change in the effusion", "resolving" and "decreased" are present; "has resolved" is absent.
- "No new" and "no large" leave an old or a small one open: uncertain. "No other" says nothing of the first: no mention.
- What was (history of, after resection of), what is asked (rule out, evaluate for) and what might come (risk of, if) is
  no mention.
- "No focal liver lesion" denies each focal finding; "a focal liver lesion" says none of them.

In a report, any sentence that says present decides, then uncertain, then absent. Only findings and impression are read
where there are such sections. `normal` is a statement about the whole examination, and holds only where no other
finding of the organ is present or uncertain.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

from tomoglot.studies.organ import NORMAL
from tomoglot.studies.phrases import HARD, Name, Phrases, fold, matches, read_phrases, read_rules, words_of
from tomoglot.studies.report import sentences, spoken
from tomoglot.studies.source import Sources

Certainty = Literal["present", "absent", "uncertain", "not_mentioned"]
_RANK: Mapping[Certainty, int] = {"not_mentioned": 0, "absent": 1, "uncertain": 2, "present": 3}
_REACH = 8  # cues that are looked at on either side of a phrase, and words of `the known left-sided` before it

_CONTEXT = read_rules("findings_context.toml")
_PHRASES = {organ: read_rules(f"findings_{organ}.toml") for organ in ("brain", "liver", "chest")}
LISTS: Mapping[str, tuple[str, ...]] = {organ: tuple(phrases) for organ, phrases in _PHRASES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """One place that speaks of a finding: what it says of it, its words and the words that decided, and its sentence.

    It quotes the report: it is for a person who may read that, and never for a log.
    """

    finding: str
    certainty: Certainty
    words: str
    because: str
    sentence: str


def label_report(text: str, findings: Sequence[str]) -> dict[str, Certainty]:
    """What a whole report says of each of `findings` (names of `LISTS`).

    Raises:
        ValueError: a finding of none of the lists.
    """
    asked = tuple(findings)
    wanted = _with_its_organ(asked)
    told: dict[str, Certainty] = dict.fromkeys(wanted, "not_mentioned")
    for sentence in sentences(spoken(text)):
        for finding, certainty in label_sentence(sentence, wanted).items():
            told[finding] = _stronger(told[finding], certainty)
    if NORMAL in told:
        told[NORMAL] = _normal(told)
    return {finding: told[finding] for finding in asked}


def label_sentence(sentence: str, findings: Sequence[str]) -> dict[str, Certainty]:
    """What one sentence says of those of `findings` that it mentions.

    Raises:
        ValueError: a finding of none of the lists.
    """
    told: dict[str, Certainty] = {}
    for mention in mentions(sentence, findings):
        told[mention.finding] = _stronger(told.get(mention.finding, "not_mentioned"), mention.certainty)
    return told


def mentions(sentence: str, findings: Sequence[str]) -> list[Mention]:
    """Every place of a sentence that speaks of one of `findings`, with the words that say so.

    Raises:
        ValueError: a finding of none of the lists.
    """
    lexicon = _lexicon(tuple(findings))
    read = _Sentence(sentence)
    found: list[Mention] = []
    spots = [_Spot(start, end, *named) for start, end, named in matches(lexicon, read.words)]
    for spot in _without_others(spots):
        certainty, because = read.assertion(spot.start, spot.end)
        flips: dict[Certainty, Certainty] = {"present": "absent", "absent": "present"}
        if spot.kind == "healthy" and certainty is not None:
            certainty = flips.get(certainty, certainty)
        if spot.kind == "doubt" and certainty == "present":
            certainty = "uncertain"
        if certainty is None or (spot.kind == "denial" and certainty != "absent"):
            continue
        words = read.quote(spot.start, spot.end)
        found.append(
            Mention(finding=spot.finding, certainty=certainty, words=words, because=because, sentence=sentence)
        )
    return found


def mine_labels(sources: Sources, findings: Sequence[str]) -> Sources:
    """Studies with labels mined from their reports: 1 present, 0 absent, none where uncertain or not mentioned.

    A label that a study has already was given, and stays. What is added is named in `Study.labels_mined`, so that no
    table takes it for a reader's.

    Raises:
        ValueError: a finding of none of the lists.
    """
    number = {"present": 1.0, "absent": 0.0}
    studies = []
    for study in sources.studies:
        told = {} if study.report is None else label_report(study.report.text, findings)
        mined = {name: number[said] for name, said in told.items() if said in number and name not in study.labels}
        studies.append(replace(study, labels={**study.labels, **mined}, labels_mined=tuple(sorted(mined))))
    return Sources(studies=studies, rejected=sources.rejected)


def _stronger(one: Certainty, other: Certainty) -> Certainty:
    return max(one, other, key=_RANK.__getitem__)


def _with_its_organ(asked: tuple[str, ...]) -> tuple[str, ...]:
    """The findings asked for and, where `normal` is among them, all of their organs: it needs them all."""
    if NORMAL not in asked:
        return asked
    named = set(asked) - {NORMAL}
    organs = [list_ for list_ in LISTS.values() if not named or named & set(list_)]
    return tuple(dict.fromkeys((*asked, *itertools.chain.from_iterable(organs))))


def _normal(told: Mapping[str, Certainty]) -> Certainty:
    """Normal: a report that says so and names no finding, or one that denies every finding of its organ."""
    others = {certainty for finding, certainty in told.items() if finding != NORMAL}
    if "present" in others:
        return "absent"
    if others == {"absent"}:
        return "present"
    return "uncertain" if "uncertain" in others and told[NORMAL] == "present" else told[NORMAL]


class _Spot(NamedTuple):
    start: int
    end: int
    finding: str
    kind: str


def _without_others(spots: Sequence[_Spot]) -> list[_Spot]:
    """Without what lies inside a phrase that only looks like its finding ("subcutaneous emphysema")."""
    look_alike: dict[str, list[_Spot]] = defaultdict(list)
    for spot in spots:
        if spot.kind == "other":
            look_alike[spot.finding].append(spot)
    # Phrases are short: only those that begin just before can hold a place.
    starts = {finding: [other.start for other in others] for finding, others in look_alike.items()}
    kept = []
    for spot in spots:
        others = look_alike.get(spot.finding, [])
        at = bisect_left(starts.get(spot.finding, []), spot.start + 1)
        inside = any(other.end >= spot.end for other in others[max(0, at - _REACH) : at])
        if spot.kind != "other" and not inside:
            kept.append(spot)
    return kept


class _Cue(NamedTuple):
    start: int
    end: int
    kind: str


class _Sentence:
    """One sentence as folded words, with its cues and the borders between its statements."""

    def __init__(self, text: str) -> None:
        self.text = text
        words, self._places = words_of(text)
        # A sentence without its full stop reads as one with it.
        self.words = words if words[-1:] == ["."] else [*words, "."]
        cues = _longest(matches(_cues(), self.words))
        self._before = [cue for cue, side in cues if side == "before"]
        self._after = [cue for cue, side in cues if side == "after"]
        self._before_ends = [cue.end for cue in self._before]
        self._after_starts = [cue.start for cue in self._after]
        taken = {at for cue, _ in cues for at in range(cue.start, cue.end)}
        self._borders = self._count_borders(taken)
        self._verbs = _running(word in _VERBS and at not in taken for at, word in enumerate(self.words))

    def quote(self, start: int, end: int) -> str:
        """The words from `start` to `end` as they were written."""
        end = min(end, len(self._places))
        return self.text[self._places[start][0] : self._places[end - 1][1]]

    def assertion(self, start: int, end: int) -> tuple[Certainty | None, str]:
        """What is said of the words from `start` to `end`, None where it is no statement, and which words say so."""
        inside = self._inside(start, end)
        before = inside or self._nearest_before(start)
        after = None if inside else self._nearest_after(end)
        if before is not None and before.kind == "denied" and not inside and self._presupposed(before.end, start):
            before = None
        kinds = tuple("" if cue is None else cue.kind for cue in (before, after))
        certainty = _decide(*kinds)
        if certainty == "present" and not any(kinds) and self._is_alternative(start, end):
            return "uncertain", "one of two"
        because = " ... ".join(self.quote(cue.start, cue.end) for cue in (before, after) if cue is not None)
        return certainty, because

    def _inside(self, start: int, end: int) -> _Cue | None:
        """A denial or a doubt within a phrase that has a gap: "heart is not enlarged"."""
        for cues, keys in ((self._before, self._before_ends), (self._after, self._after_starts)):
            at = bisect_left(keys, start)
            for cue in cues[at : at + _REACH]:
                if start < cue.start and cue.end <= end and cue.kind in ("denied", "unsure"):
                    return cue
        return None

    def _nearest_before(self, start: int) -> _Cue | None:
        at = bisect_left(self._before_ends, start + 1)
        if not at or self._borders[start] != self._borders[self._before[at - 1].end]:
            return None
        cue, further = self._before[at - 1], self._before[max(0, at - 2)]
        # "No lesion suspicious for X" denies X; "no effusion, possible X" leaves it open.
        between = self.words[further.end : min(cue.start, further.end + _REACH)]
        chained = cue.kind == "unsure" and further.kind == "denied" and cue.start - further.end < _REACH
        if chained and self._borders[start] == self._borders[further.end] and not set(between) & _JOINING:
            return further
        return cue

    def _nearest_after(self, end: int) -> _Cue | None:
        at = bisect_left(self._after_starts, end)
        for cue in self._after[at : at + 1]:
            # "Has been drained and is no longer seen" is said of one thing; "is stable, X is not seen" of two.
            shared = self._verbs[end] == self._verbs[cue.start] or self.words[cue.start - 1] == "and"
            return cue if shared and self._borders[end] == self._borders[cue.start] else None
        return None

    def _presupposed(self, from_: int, start: int) -> bool:
        """Whether "no oedema around the mass" speaks of a mass that is there: a preposition and `the` before it."""
        for at in range(start - 1, max(from_, start - _REACH) - 1, -1):
            word = self.words[at]
            if word in ("the", "this", "these", "those", "its", "that"):
                return at > from_ and self.words[at - 1] in _PREPOSITIONS
            if word in _PREPOSITIONS or word in _JOINING:
                return False
        return False

    def _is_alternative(self, start: int, end: int) -> bool:
        """Whether an `or` or `versus` stands beside: one of two things, and it is open which."""
        near = {*self.words[max(0, start - 3) : start], *self.words[end : end + 1]}
        return bool(near & _EITHER) and not near & _NUMBERS

    def _count_borders(self, taken: set[int]) -> list[int]:
        """For each place the number of borders before it: two places with one number are of one statement."""
        named = {place for start, end, _ in matches(_border_words(), self.words) for place in range(start, end)}
        ends = {place for place, word in enumerate(self.words) if word in HARD} | (named - taken)
        ahead = self._next_of(("or", "nor"), ends)
        for place, word in enumerate(self.words):
            joins = word in (",", "and") and place not in taken
            sized = word == "with" and place not in taken and self.words[place + 1] in _SIZED and not ahead[place]
            if sized or self._starts_anew(place) or (joins and self._begins(place + 1, ends, ahead)):
                ends.add(place)
        return _running(place in ends for place in range(len(self.words)))

    def _starts_anew(self, place: int) -> bool:
        """Whether "this is" or "there are" stands here, whatever is before."""
        before, following = self.words[max(0, place - 1) : place], self.words[place + 1 : place + 2]
        opens = self.words[place] in ("this", "these", "there", "it", "they") and bool(set(following) & _VERBS)
        return opens and not set(before) & _ASKING

    def _next_of(self, wanted: tuple[str, ...], ends: set[int]) -> list[bool]:
        """For each place, whether one of the wanted words comes before the next border."""
        comes, out = False, []
        for place in range(len(self.words) - 1, -1, -1):
            comes = place not in ends and (comes or self.words[place] in wanted)
            out.append(comes)
        return out[::-1]

    def _begins(self, place: int, ends: set[int], ahead: list[bool]) -> bool:
        """Whether a new statement begins here: what a comma or `and` parts is otherwise one list."""
        if place >= len(self.words):
            return False
        first = self.words[place]
        if first in _BEGINS or (first[:1].isdigit() and not ahead[place]) or (first in _SIZED and not ahead[place]):
            return True
        for at in range(place, min(place + 12, len(self.words))):
            word = self.words[at]
            if word in (",", "and") or at in ends:
                return False
            if word in _VERBS and self.words[at - 1] != "to":
                return not set(self.words[at + 1 : at + 4]) & _SEEN
        return False


def _decide(before: str, after: str) -> Certainty | None:
    """What the nearest cue on each side makes of a phrase; "" where there is none."""
    if "denied" in (before, after):
        return "absent"
    if before == "aside":
        return "present" if after == "affirmed" else None
    if after == "aside":
        return None
    return "uncertain" if "unsure" in (before, after) else "present"


def _running(flags: Iterator[bool]) -> list[int]:
    """How many are true before each place, and in all."""
    return list(itertools.accumulate(flags, initial=0))


@cache
def _lexicon(findings: tuple[str, ...]) -> Phrases:
    known = {name for phrases in _PHRASES.values() for name in phrases}
    if unknown := [name for name in findings if name not in known]:
        lists = "; ".join(f"{organ}: {', '.join(names)}" for organ, names in LISTS.items())
        raise ValueError(f"no rules for the finding {unknown[0]!r}; known are {lists}")
    named = set(findings) - {NORMAL}
    organs = [organ for organ, names in LISTS.items() if not named or named & set(names)]
    return read_phrases(
        (kinds["phrases"], (finding, kind))
        for organ in organs
        for finding in findings
        for kind, kinds in _PHRASES[organ].get(finding, {}).items()
    )


@cache
def _cues() -> Phrases:
    kinds = ("denied", "unsure", "affirmed", "aside")
    acting = ((_CONTEXT[kind][side], (kind, side)) for kind in kinds for side in ("before", "after"))
    return read_phrases(itertools.chain(acting, [(_CONTEXT["nothing"]["both"], ("nothing", "both"))]))


@cache
def _border_words() -> Phrases:
    return read_phrases([(_CONTEXT["border"]["words"], ("border", ""))])


def _longest(found: Iterator[tuple[int, int, Name]]) -> list[tuple[_Cue, str]]:
    """Cues from the left, the longest at each place, none inside another; one that acts both ways is there twice."""
    kept: list[tuple[_Cue, str]] = []
    free = 0
    for start, group in itertools.groupby(found, key=lambda one: one[0]):
        if start < free:
            continue
        here = list(group)
        free = max(end for _, end, _ in here)
        kept += [(_Cue(start, end, kind), side) for _, end, (kind, side) in dict.fromkeys(here) if end == free]
    return kept


def _words_of(name: str) -> frozenset[str]:
    return frozenset(fold(word) for word in str(_CONTEXT["statement"][name]).split())


_BEGINS, _SIZED, _VERBS, _SEEN, _PREPOSITIONS, _NUMBERS = (
    _words_of(name) for name in ("begins", "sized", "verbs", "seen", "prepositions", "numbers")
)
_JOINING = frozenset((",", "or", "and", "nor", "with"))
_EITHER = frozenset(("or", "versus", "vs"))
_ASKING = frozenset(("if", "whether", "that"))
