"""Questions about simulated studies are answered by truth alone, and cannot be guessed from their words."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from tomoglot.studies.atomic import write_bytes
from tomoglot.studies.organ import ORGANS
from tomoglot.studies.phantom import files
from tomoglot.studies.phantom.disease import draw_kinds as brain_kinds
from tomoglot.studies.phantom.liver.wording import NEEDS, can_be_named
from tomoglot.studies.phantom.questions import (
    NAMES,
    WORDS,
    acquired,
    amount,
    answers,
    ask,
    balanced,
    count,
    present,
    side,
    site,
    size,
    write_questions,
)
from tomoglot.studies.phantom.wording import SEQUENCE_WORDS
from tomoglot.studies.questions import read_questions

BRAIN = {"type": "mass", "side": "left", "lobe": "frontal", "count": 1, "diameters_mm": [19.9, 8.0]}
LIVER = {
    "type": "cyst", "side": "both", "segments": ["II", "VII"], "count": 5, "diameters_mm": [31.0], "named": True,
}  # fmt: skip
CHEST = {
    "type": "lung_nodule", "side": "right", "lobes": ["right upper"], "details": ["calcified"], "count": 2,
    "diameters_mm": [9.9], "volume_ml": 0.2, "uncertain": True,
}  # fmt: skip


def truth(organ, found, *, shown=("t1w",), split="train"):
    types = {finding["type"] for finding in found}
    labels = {name: float(name in types) for name in ORGANS[organ]} | {"normal": float(not found)}
    return {"split": split, "labels": labels, "findings": list(found), "acquisition": {name: {} for name in shown}}


@pytest.fixture(scope="module")
def truths():
    """800 brains as the simulator draws their disease, without the images."""
    rng = np.random.default_rng(0)
    found = {}
    for number in range(800):
        kinds = brain_kinds(rng, None)
        shown = [name for name in SEQUENCE_WORDS if rng.random() < 0.6] or ["t1w"]
        split = ("train", "val", "test")[number % 3]
        parts = [
            BRAIN | {"type": kind, "side": str(rng.choice(["left", "right"])), "grade": "mild", "volume_ml": 1.0}
            for kind in kinds
            if kind in ORGANS["brain"] and kind != "normal"
        ]
        found[f"s{number}", "1"] = truth("brain", parts, shown=shown, split=split)
    return found


@pytest.fixture(scope="module")
def questions(truths):
    return ask(truths, 3)


def test_every_answer_is_what_truth_says():
    two = [BRAIN, BRAIN | {"side": "right", "lobe": "temporal", "diameters_mm": [50.0]}]
    assert (side([BRAIN]), site([BRAIN]), size([BRAIN]), count([BRAIN])) == ("left", "frontal lobe", "1 to 2 cm", "one")
    assert (side(two), site(two), size(two), count(two)) == ("both", None, "over 5 cm", "two")
    assert site([BRAIN | {"lobe": "deep"}]) == "deep grey and white matter"
    assert side([BRAIN | {"side": None}]) is None and site([BRAIN | {"lobe": None}]) is None
    assert (side([LIVER]), site([LIVER]), size([LIVER]), count([LIVER])) == ("both", None, "3 to 5 cm", "three to five")
    assert site([LIVER | {"segments": ["II"]}]) == "segment II" and count([LIVER | {"count": 6}]) == "more than five"
    assert (site([CHEST]), size([CHEST]), count([CHEST])) == ("right upper lobe", "under 1 cm", "two")
    assert site([CHEST | {"type": "lymphadenopathy", "details": ["subcarinal"]}]) == "subcarinal"
    assert site([CHEST | {"type": "lymphadenopathy", "details": ["subcarinal", "left hilar"]}]) is None
    assert size([CHEST | {"diameters_mm": []}]) is None
    effusion = CHEST | {"type": "pleural_effusion", "volume_ml": 150.1}
    assert amount([effusion]) == "moderate" and amount([BRAIN | {"grade": "severe"}]) == "severe"


def test_what_truth_does_not_fix_is_not_asked():
    plaques = BRAIN | {"type": "demyelination", "side": None, "lobe": None, "count": 9}
    told = {(asked.kind, asked.topic): asked.answer for asked in answers(truth("brain", [plaques]))}
    assert told == {
        ("size", "demyelination"): "1 to 2 cm",
        ("count", "demyelination"): "more than five",
        ("sequences", "brain"): "plain",
    }
    # What a report tells with doubt is asked: the mask holds it.
    assert ("side", "lung_nodule", "right") in set(answers(truth("chest", [CHEST])))
    # A lesion that the acquired series cannot tell is not asked after by its name, wherever it is.
    for shown in (("t2w",), ("arterial", "portal_venous")):
        for found in ([LIVER], []):
            asked = present(truth("liver", found, shown=shown))
            assert asked.keys() - {"normal"} == {kind for kind in NEEDS if can_be_named(kind, shown)}
    hidden = truth("liver", [LIVER | {"named": False}], shown=("in_phase",))
    assert [asked.kind for asked in answers(hidden)] == ["sequences"]


def test_series_are_asked_after_where_there_are_several():
    assert acquired(truth("chest", [], shown=("ct",))) == {}
    assert acquired(truth("brain", [], shown=("flair",))) == {name: name == "flair" for name in SEQUENCE_WORDS}
    assert next(answers(truth("liver", [], shown=("arterial", "delayed", "t2w")))).answer == "arterial and delayed"
    assert next(answers(truth("brain", [], shown=("dwi",)))).answer == "none"
    assert not list(answers(truth("chest", [], shown=("ct",))))


def test_yes_and_no_are_as_many_for_every_finding_and_every_series_of_each_split(truths, questions):
    said = defaultdict(Counter)
    names = {name: finding for finding, its in NAMES.items() for name in its}
    for one in questions:
        if one.form == "closed":
            words = one.question.casefold()
            topic = max((name for name in names if name.casefold() in words), key=len, default=None)
            key = names[topic] if topic and one.kind == "presence" else one.kind
            said[truths[one.subject, one.study]["split"], key][one.answer] += 1
    assert {("train", "mass"), ("test", "infarct"), ("val", "sequence")} <= said.keys()
    for topic, its in said.items():
        assert its["yes"] == its["no"] > 0, topic


def test_the_words_of_a_question_do_not_tell_whether_something_is_there(truths, questions):
    closed = [one for one in questions if one.form == "closed"]
    splits = np.array([truths[one.subject, one.study]["split"] for one in closed])
    words = CountVectorizer(ngram_range=(1, 3)).fit_transform([one.question for one in closed])
    yes = np.array([one.answer == "yes" for one in closed])
    guess = LogisticRegression(max_iter=500).fit(words[splits == "train"], yes[splits == "train"])
    right = guess.score(words[splits == "test"], yes[splits == "test"])
    assert abs(right - 0.5) < 0.05
    assert max(yes.mean(), 1 - yes.mean()) == 0.5


def test_a_study_is_asked_at_most_eight_questions_and_only_test_subjects_the_held_out_words(truths, questions):
    per_study = Counter((one.subject, one.study) for one in questions)
    assert max(per_study.values()) <= 8
    kinds = {kind for kind in Counter((one.kind, one.form) for one in questions)}
    assert kinds >= {("presence", "closed"), ("sequence", "closed"), ("sequence", "open"), ("side", "open")}
    last = (re.split(r"\{\w+\}", its[-1]) for its in WORDS["wordings"].values())
    held_out = re.compile("|".join(".+".join(map(re.escape, parts)) for parts in last))
    used = Counter(truths[one.subject, one.study]["split"] for one in questions if held_out.fullmatch(one.question))
    test = sum(truths[one.subject, one.study]["split"] == "test" for one in questions)
    assert set(used) == {"test"} and 0.4 < used["test"] / test < 0.6


def test_questions_are_a_function_of_truth_and_seed(truths):
    some = {key: truths[key] for key in list(truths)[:60]}
    first = ask(some, 1)
    assert first == ask(some, 1) != ask(some, 2)


def test_pairs_stop_where_one_side_runs_out_and_nobody_is_asked_too_often():
    said = {("a", "1"): {"x": True, "y": True}, ("b", "1"): {"x": False, "y": True}, ("c", "1"): {"x": False}}
    drawn = list(balanced(said, limit=1, rng=np.random.default_rng(0)))
    assert [(topic, there) for _, topic, there in drawn] == [("x", True), ("x", False)]
    assert drawn[0][0] == ("a", "1")


def test_a_cohort_on_disk_has_its_questions_and_gets_the_same_again(tmp_path, truths, monkeypatch):
    keys = list(truths)

    def make(index, *, out, **_):
        subject, study = keys[index]
        write_bytes(out / "truth" / f"{subject}_{study}.json", json.dumps(truths[keys[index]]).encode())
        return [{"subject": subject, "study": study, "sequence": name} for name in ("t1w", "flair")]

    monkeypatch.setattr(files, "make", make)
    files.write_cohort(tmp_path / "cohort", subjects=30, seed=3, spacing_mm=2.0)
    written = (tmp_path / "cohort" / "questions.jsonl").read_bytes()
    asked = read_questions(tmp_path / "cohort" / "questions.jsonl")
    assert list(asked) == ask({key: truths[key] for key in keys[:30]}, 3)
    for one in asked:
        if one.question.startswith("Was a FLAIR"):
            assert (one.answer == "yes") == ("flair" in truths[one.subject, one.study]["acquisition"])
    (tmp_path / "cohort" / "questions.jsonl").unlink()
    assert write_questions(tmp_path / "cohort", 3).read_bytes() == written
    with pytest.raises(ValueError, match="holds no simulated study"):
        write_questions(tmp_path)
