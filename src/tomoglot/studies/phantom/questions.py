"""Questions about simulated studies, and their answers, from the truth records: `questions.jsonl` of a cohort.

An answer is what the mask and the acquisition hold, not what the report says: a chest finding that its report tells
with doubt is asked like any other. What truth does not fix is not asked: the side of plaques, the one place of what
lies in several, the kind of a liver lesion whose series do not tell it (`can_be_named`, the same for yes and for no).
Sizes and numbers are asked in steps of words, which are ours. Within each split every finding is asked after in as many
studies that have it as in studies that have not, so that a guess from the words of the question is right half the time.
"""

from __future__ import annotations

import csv
import json
import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomoglot.studies.organ import NORMAL, ORGANS, organ_of
from tomoglot.studies.phantom import wording as brain
from tomoglot.studies.phantom.chest import wording as chest
from tomoglot.studies.phantom.liver import wording as liver
from tomoglot.studies.phantom.sentences import Writer, capitalised
from tomoglot.studies.phantom.simulated import stream
from tomoglot.studies.questions import Question, save_questions

FILE = "questions.jsonl"
WORDS = tomllib.loads((files(__package__) / "questions.toml").read_text("utf-8"))
NAMES: Mapping[str, Sequence[str]] = {**brain.ABSENT, **liver.NAMES, **chest.NAMES, **WORDS["names"]}
SERIES: Mapping[str, Mapping[str, str]] = {"brain": brain.SEQUENCE_WORDS, "liver": liver.SEQUENCE_WORDS}
SIZES = {10.0: "1 to 2 cm", 20.0: "2 to 3 cm", 30.0: "3 to 5 cm", 50.0: "over 5 cm"}
LEAST_SIZE = "under 1 cm"
COUNTS = ("one", "two", "three to five", "more than five")
# Of a study: so many questions on presence, on one series, and on the rest.
PRESENCE, SERIES_ASKED, OTHERS = 4, 1, 3

Key = tuple[str, str]
Truth = Mapping[str, Any]


class Asked(NamedTuple):
    """What is asked of a study before it is put into words; `topic` is a finding, a sequence or a group of them."""

    kind: str
    topic: str
    answer: str


def write_questions(cohort: Path, seed: int = 0, *, studies: Iterable[Key] | None = None) -> Path:
    """Write `questions.jsonl` beside the studies of a simulated cohort, from its `truth` folder; atomic.

    `studies` are (subject, study); None takes those of its studies.csv. The same bytes for the same truth and seed.

    Raises:
        ValueError: there is no study with truth.
    """
    cohort = Path(cohort)
    if studies is None:
        table = cohort / "studies.csv"
        rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines()) if table.is_file() else ()
        studies = ((row["subject"], row["study"]) for row in rows)
    paths = {key: cohort / "truth" / f"{key[0]}_{key[1]}.json" for key in dict.fromkeys(studies)}
    truths = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.is_file()}
    if not truths:
        raise ValueError(f"{cohort.name} holds no simulated study with truth/*.json; `tomoglot phantom` writes them")
    return save_questions(cohort / FILE, ask(truths, seed))


def ask(truths: Mapping[Key, Truth], seed: int) -> list[Question]:
    """Questions about these studies, in their order: at most 8 each, a pure function of truth and seed."""
    chosen: dict[Key, list[Asked]] = {key: [] for key in truths}
    for split in sorted({truth["split"] for truth in truths.values()}):
        part = {key: truth for key, truth in truths.items() if truth["split"] == split}
        for kind, limit, known in (("presence", PRESENCE, present), ("sequence", SERIES_ASKED, acquired)):
            rng = stream(seed, 0, f"questions {kind} {split}")
            said = {key: known(truth) for key, truth in part.items()}
            for key, topic, there in balanced(said, limit=limit, rng=rng):
                chosen[key].append(Asked(kind, topic, "yes" if there else "no"))
    asked: list[Question] = []
    for key, truth in truths.items():
        rng = stream(seed, 0, f"questions {key[0]} {key[1]}")
        others = list(answers(truth))
        chosen[key] += [others[at] for at in rng.permutation(len(others))[:OTHERS]]
        writer = Writer(rng, test=truth["split"] == "test")
        asked += [put(one, key, organ_of(truth["labels"]), writer) for one in chosen[key]]
    return asked


def balanced(
    said: Mapping[Key, Mapping[str, bool]], *, limit: int, rng: np.random.Generator
) -> Iterator[tuple[Key, str, bool]]:
    """Pairs of a study that has a topic and one that has not, topic by topic in turns, at most `limit` a study."""
    keys = list(said)
    room = dict.fromkeys(keys, limit)
    piles: dict[str, dict[bool, list[Key]]] = defaultdict(lambda: {True: [], False: []})
    for at in rng.permutation(len(keys)):
        for topic, there in said[keys[at]].items():
            piles[topic][there].append(keys[at])
    turns = sorted(piles)
    while turns:
        for topic in tuple(turns):
            for pile in piles[topic].values():
                while pile and not room[pile[-1]]:
                    pile.pop()
            if not all(piles[topic].values()):
                turns.remove(topic)
                continue
            for there, pile in piles[topic].items():
                key = pile.pop()
                room[key] -= 1
                yield key, topic, there


def present(truth: Truth) -> dict[str, bool]:
    """Which findings that may be asked after a study has, and which it has not."""
    organ, had = organ_of(truth["labels"]), truth["labels"]
    asked = {name: had[name] > 0.5 for name in ORGANS[organ] if name in had}
    if organ == "liver":
        shown = tuple(truth["acquisition"])
        asked = {name: there for name, there in asked.items() if name == NORMAL or liver.can_be_named(name, shown)}
    return asked


def acquired(truth: Truth) -> dict[str, bool]:
    """Which series a study has and has not, of a cohort that has several."""
    return {name: name in truth["acquisition"] for name in SERIES.get(organ_of(truth["labels"]), {})}


def answers(truth: Truth) -> Iterator[Asked]:
    """Everything that can be asked of a study besides whether something is there."""
    organ = organ_of(truth["labels"])
    by_type: dict[str, list[Truth]] = defaultdict(list)
    for finding in truth["findings"]:
        if finding.get("named", True):
            by_type[finding["type"]].append(finding)
    for kind, names in WORDS["asked"][organ].items():
        for name in names:
            answer = ANSWER[kind](by_type[name]) if name in by_type else None
            if answer is not None:
                yield Asked(kind, name, answer)
    if organ in WORDS["series"]:
        members = WORDS["series"][organ]["members"]
        had = [word for name, word in members.items() if name in truth["acquisition"]]
        yield Asked("sequences", organ, liver.listed(had) if had else "none")


def side(found: Sequence[Truth]) -> str | None:
    """Left, right or both (in the liver lobes, of which one is the caudate); None where truth has no side."""
    sides = {finding["side"] for finding in found}
    if None in sides:
        return None
    return str(sides.pop()) if len(sides) == 1 else "both"


def site(found: Sequence[Truth]) -> str | None:
    """The one place, if there is one: a lobe or segment, a station of nodes, an artery."""
    places = set[str]()
    for finding in found:
        if "lobe" in finding:
            places |= {WORDS["places"].get(finding["lobe"], finding["lobe"])} - {None}
        elif "segments" in finding:
            places |= {f"segment {segment}" for segment in finding["segments"]}
        elif finding["type"] in ("lymphadenopathy", "coronary_artery_wall_calcification"):
            places |= set(finding["details"])
        else:
            places |= {f"{lobe} lobe" for lobe in finding["lobes"]}
    return places.pop() if len(places) == 1 else None


def size(found: Sequence[Truth]) -> str | None:
    """The greatest diameter of the largest, in steps of cm."""
    across = [finding["diameters_mm"][0] for finding in found if finding["diameters_mm"]]
    if not across:
        return None
    return (LEAST_SIZE, *SIZES.values())[bisect_right(tuple(SIZES), max(across))]


def amount(found: Sequence[Truth]) -> str | None:
    """The grade, or the reports' word for the volume of the mask."""
    finding = found[0]
    limits = chest.AMOUNTS.get(finding["type"], {})
    return finding.get("grade") or next((word for word, most in limits.items() if finding["volume_ml"] <= most), None)


def count(found: Sequence[Truth]) -> str:
    """How many there are, in steps."""
    return COUNTS[bisect_right((2, 3, 6), sum(finding["count"] for finding in found))]


ANSWER = {"side": side, "site": site, "size": size, "amount": amount, "count": count}


def put(asked: Asked, key: Key, organ: str, writer: Writer) -> Question:
    """The question in words; half of a test subject's are of the wordings that nobody else has."""
    kind, topic, answer = asked
    if kind == "sequence":
        name = SERIES[organ][topic]
    elif kind == "sequences":
        name = WORDS["series"][topic]["name"]
    else:
        name = "" if topic == NORMAL else writer.choose(NAMES[topic])[0]
    wording, _ = writer.choose(WORDS["wordings"][NORMAL if topic == NORMAL else kind])
    closed = kind in ("presence", "sequence")
    return Question(
        subject=key[0],
        study=key[1],
        question=wording.format_map(capitalised({"name": name, "organ": organ})),
        answer=answer,
        kind="sequence" if kind == "sequences" else kind,
        form="closed" if closed else "open",
    )
