"""Scores of generated texts: beside their plain definitions, and as statistics of drawn studies."""

import math
import re
import sys
from collections import Counter

import numpy as np
import pytest

from tomoglot.tasks.scores.text_scores import (
    TEXT_METRICS,
    clinical_f1,
    corpus_bleu,
    distinct_share,
    present_in,
    score_texts,
)

REFERENCES = (
    "there is a large mass in the left frontal lobe with oedema",
    "no mass and no haemorrhage is seen in the brain",
    "small infarct in the right thalamus without any haemorrhage",
)
GENERATED = (
    "there is a mass in the left frontal lobe with oedema",
    "no mass and no haemorrhage is seen in the brain",
    "a large mass in the left frontal lobe is seen",
)
ONCE = np.ones((1, 3))


def bleu_in_words(texts: list[str], references: list[str]) -> float:
    """Geometric mean of clipped n-gram precisions over all texts, times the brevity penalty."""
    logs = []
    for n in range(1, 5):
        right = total = 0
        for text, reference in zip(texts, references, strict=True):
            grams, wanted = (
                Counter(zip(*(words[k:] for k in range(n)), strict=False))
                for words in (text.split(), reference.split())
            )
            right += sum((grams & wanted).values())
            total += sum(grams.values())
        logs.append(math.log(right / total))
    ours, theirs = (sum(len(text.split()) for text in several) for several in (texts, references))
    return math.exp(sum(logs) / 4 + min(0.0, 1 - theirs / ours))


def rouge_l_in_words(text: str, reference: str) -> float:
    ours, theirs = re.findall(r"[a-z0-9]+", text), re.findall(r"[a-z0-9]+", reference)
    longest = np.zeros((len(ours) + 1, len(theirs) + 1))
    for i, one in enumerate(ours):
        for j, other in enumerate(theirs):
            longest[i + 1, j + 1] = longest[i, j] + 1 if one == other else max(longest[i, j + 1], longest[i + 1, j])
    common = longest[-1, -1]
    precision, recall = common / len(ours), common / len(theirs)
    return float(2 * precision * recall / (precision + recall)) if common else 0.0


def test_bleu_over_all_texts_is_its_definition_and_follows_the_draw() -> None:
    statistic = corpus_bleu(GENERATED, REFERENCES)
    assert statistic(ONCE)[0] == pytest.approx(bleu_in_words(list(GENERATED), list(REFERENCES)))
    twice = bleu_in_words([GENERATED[0], GENERATED[0], GENERATED[1]], [REFERENCES[0], REFERENCES[0], REFERENCES[1]])
    assert statistic(np.array([[2.0, 1.0, 0.0]]))[0] == pytest.approx(twice)
    # Too long is punished by its precision only.
    longer, shorter = REFERENCES[:1], GENERATED[:1]
    assert corpus_bleu(longer, shorter)(ONCE[:, :1])[0] == pytest.approx(bleu_in_words(list(longer), list(shorter)))


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    expected = [rouge_l_in_words(text, reference) for text, reference in zip(GENERATED, REFERENCES, strict=True)]
    np.testing.assert_allclose(score_texts(GENERATED, REFERENCES)["rouge_l"], expected)


def test_the_same_text_scores_one_and_an_empty_one_nothing() -> None:
    same = score_texts([REFERENCES[0].upper()], [REFERENCES[0]])
    assert set(same) == set(TEXT_METRICS)
    assert all(values[0] > 0.99 for values in same.values())
    assert all(values[0] == 0 for values in score_texts(["  "], [REFERENCES[0]]).values())


def test_meteor_counts_stems_and_order_but_no_synonyms() -> None:
    def meteor(text: str, reference: str) -> float:
        return float(score_texts([text], [reference])["meteor"][0])

    # One chunk of n matches: the fragmentation penalty is half of (1 / n) cubed (nltk's beta 3, gamma 0.5).
    assert meteor("enlarged lymph nodes", "enlarge lymph node") == pytest.approx(1 - 0.5 / 27)
    assert meteor("nodes lymph enlarged", "enlarged lymph nodes") == pytest.approx(0.5)
    assert meteor("tumour", "neoplasm") == 0


def test_clinical_f1_is_that_of_the_findings_said() -> None:
    findings = ("mass", "haemorrhage", "infarct", "oedema")
    # mass: right, quiet, alarm: 2/3. haemorrhage: nobody says so, left out. infarct: missed. oedema: right.
    called, true = present_in(GENERATED, findings), present_in(REFERENCES, findings)
    assert clinical_f1(called, true)(ONCE)[0] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert clinical_f1(called, true, average="micro")(ONCE)[0] == pytest.approx(4 / 6)
    alone = np.array([[0.0, 1.0, 0.0]])
    for average in ("macro", "micro"):
        statistic = clinical_f1(called, true, average=average)  # type: ignore[arg-type]
        assert np.isnan(statistic(alone)[0])
        assert statistic(np.array([[1.0, 0.0, 0.0]]))[0] == 1


def test_the_share_of_distinct_texts_is_blind_to_case_and_spaces() -> None:
    assert distinct_share(["No mass.", "no  mass.", "A mass.", "A mass."]) == 0.5
    with pytest.raises(ValueError, match="no text"):
        distinct_share([])


def test_texts_and_references_come_in_pairs() -> None:
    for call in (score_texts, corpus_bleu):
        with pytest.raises(ValueError, match="1 generated texts and 2"):
            call(["a"], ["a", "b"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"sacrebleu.*tomoglot\[text\]"):
        score_texts(["a"], ["a"])
