"""How near generated reports come to the reports written: in words, and in what they say is there.

Words by maintained packages (`pip install 'tomoglot[text]'`): BLEU-4 by sacrebleu, ROUGE-L by rouge-score, METEOR by
nltk with its stemmer and without WordNet, which would have to be fetched: exact words and stems match, synonyms do not,
so the number lies at or below a METEOR with synonyms. What is said by the labeller of `studies.findings`, for both
texts: labels mined by rules, not a reader's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tomoglot.studies.findings import label_report
from tomoglot.tasks.scores.intervals import Statistic, macro_of
from tomoglot.tasks.scores.metrics import f1

TEXT_METRICS = ("bleu4", "rouge_l", "meteor")
MINED_NOTE = "Clinical scores compare findings that rules mined from both texts; no reader labelled them."
_ORDER = 4


def score_texts(generated: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """BLEU-4, ROUGE-L and METEOR of each study, from 0 to 1: arrays (n,) by the names of `TEXT_METRICS`.

    All are blind to case. BLEU-4 of one text is smoothed (sacrebleu's exponential smoothing, and no longer n-grams than
    the text has); `corpus_bleu` is the one over all texts that papers report. ROUGE-L is the F measure of the longest
    common subsequence. A text without words scores 0.

    Raises:
        ValueError: the two have not one text a study, or a package of the extra `text` is not installed.
    """
    pairs = _pairs(generated, references)
    bleu = _package("sacrebleu").metrics.BLEU(effective_order=True, lowercase=True)
    rouge = _package("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    columns: dict[str, list[float]] = {name: [] for name in TEXT_METRICS}
    for text, reference in pairs:
        columns["bleu4"].append(bleu.sentence_score(text, [reference]).score / 100 if text.strip() else 0.0)
        columns["rouge_l"].append(float(rouge.score(reference, text)["rougeL"].fmeasure))
        columns["meteor"].append(_meteor(text, reference))
    return {name: np.array(column) for name, column in columns.items()}


def corpus_bleu(generated: Sequence[str], references: Sequence[str]) -> Statistic:
    """BLEU-4 over all texts together (Papineni 2002, unsmoothed), from 0 to 1, as a statistic of the studies drawn.

    Raises:
        ValueError: as `score_texts`.
    """
    pairs = _pairs(generated, references)
    bleu = _package("sacrebleu").metrics.BLEU(lowercase=True)
    told = [bleu.corpus_score([text], [[reference]]) for text, reference in pairs]
    counted = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in told], dtype=np.float64)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        summed = weights @ counted
        right, all_, ours, theirs = np.split(summed, [_ORDER, 2 * _ORDER, 2 * _ORDER + 1], axis=1)
        with np.errstate(divide="ignore"):
            precisions = np.log(right / np.maximum(all_, 1)).mean(axis=1)
            brevity = np.minimum(0.0, 1 - theirs / np.maximum(ours, np.finfo(float).tiny))[:, 0]
        return np.exp(precisions + brevity)

    return statistic


def clinical_f1(
    called: NDArray[np.float64], true: NDArray[np.float64], *, average: Literal["macro", "micro"] = "macro"
) -> Statistic:
    """F1 of the findings that generated reports say are present, against their references, as a statistic.

    Both are what `present_in` says of a text, (n, f): uncertain counts as not present. `macro` is the mean over
    findings, without those of which a draw holds neither a mention nor a call; `micro` sums over findings first.
    """
    if average == "macro":
        return macro_of(f1, called, true)
    hits, wrong = (called * true).sum(axis=1), np.abs(called - true).sum(axis=1)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        both, either = weights @ hits, weights @ wrong
        return np.divide(2 * both, 2 * both + either, out=np.full(len(both), np.nan), where=both + either > 0)

    return statistic


def present_in(texts: Sequence[str], findings: Sequence[str]) -> NDArray[np.float64]:
    """1 where a text says that a finding is there (n, f). Many generated texts are the same: each is read once.

    Raises:
        ValueError: a finding has no rules.
    """
    told: Mapping[str, list[float]] = {
        text: [float(said == "present") for said in label_report(text, findings).values()] for text in set(texts)
    }
    return np.array([told[text] for text in texts])


def distinct_share(generated: Sequence[str]) -> float:
    """Share of texts that differ from all before them, blind to case and spaces: 1 / n where all are one."""
    if not generated:
        raise ValueError("there is no text to count")
    return len({" ".join(text.lower().split()) for text in generated}) / len(generated)


def _meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie 2005) in nltk's form, alpha 0.9, beta 3, gamma 0.5, without synonyms."""
    words, wanted = text.lower().split(), reference.lower().split()
    if not words or not wanted:
        return 0.0
    meteor = _package("nltk.translate.meteor_score")
    synonyms: Any = _NoSynonyms()
    return float(meteor.single_meteor_score(wanted, words, wordnet=synonyms))


class _NoSynonyms:
    """In WordNet's place."""

    def synsets(self, word: str) -> list[Any]:
        """No synonym of any word."""
        return []


def _pairs(generated: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if len(generated) != len(references) or not generated:
        raise ValueError(f"{len(generated)} generated texts and {len(references)} references: wanted one each a study")
    return list(zip(generated, references, strict=True))


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"scores of texts need {name.split('.')[0]}: pip install 'tomoglot[text]'") from error
