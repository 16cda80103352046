"""Several models on one task: mean over seeds, paired by subject, corrected, and from scratch beside them."""

import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import Field

from tomoglot.batches.batch import Batch
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks import compare
from tomoglot.tasks.compare import compare_pretraining
from tomoglot.tasks.task import SCRATCH, Prediction, TaskResult

STUDIES = 60


class Config(Settings):
    split: str = "test"
    controls: bool = True
    seed: int = 0
    label_fraction: float = Field(1.0, gt=0, le=1)
    gain: float = 1.0


class Quality(Recipe):
    """Stands for a model: how well it does, whatever it is trained on."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def losses(self, batch: Batch, *, progress: float) -> dict[str, Any]:
        raise AssertionError("nothing is trained here")

    def encode(self, batch: Batch) -> Any:
        raise AssertionError("nothing is read here")


class Stub:
    """A task whose scores are the model's quality, the labels' share and noise of study and seed."""

    Config = Config
    VERB = "transfer"
    asked: ClassVar[list[Config]] = []

    @classmethod
    def score(cls, model: Quality | Loaded, store: Any, config: Config) -> TaskResult:
        cls.asked.append(config)
        model = model.recipe if isinstance(model, Loaded) else model
        study = np.random.default_rng(0).normal(0, 0.05, (STUDIES, 2))
        noise = np.random.default_rng(config.seed + 10).normal(0, 0.02, (STUDIES, 2))
        value = config.gain * model.value * config.label_fraction**0.2 + study + noise
        return TaskResult(
            task="stub",
            split="test",
            subjects=STUDIES,
            studies=STUDIES,
            predictions=tuple(
                Prediction(
                    study=f"k{n}",
                    probabilities={},
                    labels={"a": 1.0, "b": float(n % 2)},
                    # A region that the study lacks in truth is not measured.
                    measures={"a/dice": value[n, 0]} | ({"b/dice": value[n, 1]} if n % 2 else {}),
                )
                for n in range(STUDIES)
            ),
        )


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    Stub.asked = []
    monkeypatch.setattr(compare, "load", lambda task: Stub)
    monkeypatch.setattr(compare, "from_scratch", lambda start, seed: Quality(0.3))
    monkeypatch.setattr(compare, "is_simulated", lambda store, split: True)
    # Two studies a subject.
    rows = [types.SimpleNamespace(key=f"k{n}", subject=f"s{n // 2}", split="test") for n in range(STUDIES)]
    return types.SimpleNamespace(rows=rows)


def test_every_arm_is_trained_once_a_seed_and_share_without_controls(store: Any) -> None:
    told: list[tuple[int, int]] = []
    result = compare_pretraining(
        {"good": Quality(0.6), "bad": Quality(0.4)},
        store,
        "stub",
        fractions=(0.1, 1.0),
        seeds=(0, 1),
        draws=200,
        progress=lambda *at: told.append(at),
    )
    assert told == [(n, 12) for n in range(1, 13)]
    assert {row.of for row in result.comparisons} == {"good"}, "named as its arm is in the table"
    assert not any(config.controls for config in Stub.asked)
    assert {(c.seed, c.label_fraction) for c in Stub.asked} == {(0, 0.1), (1, 0.1), (0, 1.0), (1, 1.0)}
    assert [(s.arm, s.name) for s in result.scores[:3]] == [
        (arm, "macro, 10 % of the labels") for arm in ("good", "bad", SCRATCH)
    ]
    assert result.simulated and result.subjects == STUDIES // 2 and result.studies == STUDIES


def test_the_score_is_the_mean_over_seeds_of_the_mean_over_regions_of_studies_that_have_them(store: Any) -> None:
    result = compare_pretraining({"good": Quality(0.6)}, store, "stub", seeds=(0, 1), draws=200)
    by_hand = []
    for seed in (0, 1):
        found = Stub.score(Quality(0.6), store, Config(seed=seed)).predictions
        regions = [[p.measures[n] for p in found if n in p.measures] for n in ("a/dice", "b/dice")]
        by_hand.append(np.mean([np.mean(values) for values in regions]))
    assert result.scores[0].value == pytest.approx(np.mean(by_hand))
    assert result.notes[0] == (f"good, 100 % of the labels: {by_hand[0]:.3f}, {by_hand[1]:.3f} (seeds 0, 1).")
    assert result.scores[0].low < result.scores[0].value < result.scores[0].high


def test_differences_are_paired_and_corrected(store: Any) -> None:
    """Noise of a study is common to both arms: unpaired, 0.02 between them would drown in it."""
    models = {"good": Quality(0.60), "twin": Quality(0.60), "worse": Quality(0.58)}
    result = compare_pretraining(models, store, "stub", seeds=(0, 1), draws=500)
    against = {comparison.against: comparison for comparison in result.comparisons}
    assert set(against) == {"twin", "worse", SCRATCH}
    assert against["worse"].low > 0 and against["worse"].value == pytest.approx(0.02, abs=1e-9)
    assert against["twin"].value == 0 and against["twin"].p_holm == 1
    assert all(comparison.p_holm >= comparison.p for comparison in result.comparisons)


def test_every_arm_is_tested_against_the_one_that_is_asked_for(store: Any) -> None:
    models = {"good": Quality(0.60), "worse": Quality(0.58)}
    asked = {"fractions": (0.5, 1.0), "draws": 200}
    result = compare_pretraining(models, store, "stub", against=SCRATCH, **asked)
    found = {(one.name, one.of, one.against): one.value for one in result.comparisons}
    shares = ("macro, 50 % of the labels", "macro, 100 % of the labels")
    assert set(found) == {(share, arm, SCRATCH) for share in shares for arm in ("good", "worse")}
    assert found[shares[1], "worse", SCRATCH] == pytest.approx(0.28)
    usual = compare_pretraining(models, store, "stub", **asked)
    assert usual.variant != result.variant, "neither overwrites the other"
    with pytest.raises(ValueError, match="no arm is called 'scratch'; they are 'good', 'worse', 'from scratch'"):
        compare_pretraining(models, store, "stub", against="scratch")


def test_nothing_to_compare_is_refused(store: Any) -> None:
    with pytest.raises(ValueError, match="at least one model"):
        compare_pretraining({}, store, "stub")


def test_a_measure_that_the_task_does_not_have_is_refused(store: Any) -> None:
    with pytest.raises(ValueError, match="'dicee' is none of this task's: dice"):
        compare_pretraining({"good": Quality(0.6)}, store, "stub", measures=("dicee",), draws=50)


def test_a_task_that_gives_probabilities_is_scored_by_auroc_and_says_so(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never under the name of a measure that it was not."""

    def score(model: Quality, store: Any, config: Config) -> TaskResult:
        rng = np.random.default_rng(config.seed)
        labels = [float(n % 3 == 0) for n in range(STUDIES)]
        given = [float(1 / (1 + np.exp(-(4 * model.value * label + rng.normal())))) for label in labels]
        predictions = tuple(
            Prediction(study=f"k{n}", probabilities={"mass": p}, labels={"mass": label})
            for n, (p, label) in enumerate(zip(given, labels, strict=True))
        )
        return TaskResult(task="stub", split="test", subjects=1, studies=STUDIES, predictions=predictions)

    monkeypatch.setattr(Stub, "score", score)
    result = compare_pretraining({"good": Quality(0.9)}, store, "stub", draws=200)
    assert {row.metric for row in (*result.scores, *result.comparisons)} == {"auroc"}
    more = compare_pretraining({"good": Quality(0.9)}, store, "stub", measures=("brier", "auroc"), draws=200)
    assert {row.metric for row in more.comparisons} == {"brier"}, "arms are tested on the first"
    assert {row.metric for row in more.scores} == {"brier", "auroc"}
    found = score(Quality(0.9), store, Config()).predictions
    sick = np.array([p.probabilities["mass"] for p in found if p.labels["mass"]])
    well = np.array([p.probabilities["mass"] for p in found if not p.labels["mass"]])
    assert result.scores[0].value == pytest.approx((sick[:, None] > well[None]).mean())


def test_written_reports_are_compared_by_what_they_say_and_also_by_their_words(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a task measures every study, and calls findings: the first is the usual measure, both may be asked for."""
    rng = np.random.default_rng(1)
    true, called = rng.integers(0, 2, (2, STUDIES)).astype(float)

    def score(model: Quality, store: Any, config: Config) -> TaskResult:
        predictions = tuple(
            Prediction(
                study=f"k{n}",
                probabilities={"mass": called[n]},
                labels={"mass": true[n]},
                measures={"whole report/rouge_l": 0.25},
            )
            for n in range(STUDIES)
        )
        return TaskResult(task="stub", split="test", subjects=1, studies=STUDIES, predictions=predictions)

    monkeypatch.setattr(Stub, "score", score)
    result = compare_pretraining({"good": Quality(0.9)}, store, "stub", draws=50)
    hits, wrong = (called * true).sum(), np.abs(called - true).sum()
    assert [(row.metric, row.value) for row in result.scores if row.arm == "good"] == [
        ("f1", pytest.approx(2 * hits / (2 * hits + wrong)))
    ]
    both = compare_pretraining({"good": Quality(0.9)}, store, "stub", measures=("rouge_l", "f1"), draws=50)
    assert {row.metric: row.value for row in both.scores if row.arm == "good"}["rouge_l"] == pytest.approx(0.25)


def test_a_task_that_trains_nothing_is_scored_once_an_arm(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stub, "VERB", "evaluate")
    models = {"good": Quality(0.60), "worse": Quality(0.58)}
    result = compare_pretraining(models, store, "stub", draws=200)
    assert len(Stub.asked) == 3 and {config.label_fraction for config in Stub.asked} == {1.0}
    assert {row.name for row in result.scores} == {"macro"} and result.notes == ()
    assert result.comparisons[0].value == pytest.approx(0.02, abs=1e-9)
    for wrong in ({"fractions": (0.1,)}, {"seeds": (0, 1)}):
        with pytest.raises(ValueError, match="stub trains nothing"):
            compare_pretraining(models, store, "stub", **wrong)


def test_one_region_may_be_tested_by_itself(store: Any) -> None:
    result = compare_pretraining({"good": Quality(0.6)}, store, "stub", measures=("b/dice", "dice"), draws=200)
    alone, both = result.scores[0], result.scores[1]
    found = Stub.score(Quality(0.6), store, Config()).predictions
    assert (alone.name, alone.metric) == ("b, 100 % of the labels", "dice") and both.name.startswith("macro")
    assert alone.value == pytest.approx(np.mean([p.measures["b/dice"] for p in found if "b/dice" in p.measures]))
    assert {row.name for row in result.comparisons} == {alone.name}


def test_studies_of_one_class_are_refused_in_words(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(model: Quality, store: Any, config: Config) -> TaskResult:
        healthy = tuple(
            Prediction(study=f"k{n}", probabilities={"mass": 0.5}, labels={"mass": 0.0}) for n in range(STUDIES)
        )
        return TaskResult(task="stub", split="test", subjects=1, studies=STUDIES, predictions=healthy)

    monkeypatch.setattr(Stub, "score", score)
    with pytest.raises(ValueError, match="one class only"):
        compare_pretraining({"good": Quality(0.9)}, store, "stub", draws=50)


def test_a_variant_is_the_first_model_under_its_own_settings(store: Any) -> None:
    models = {"good": Quality(0.6), "other": Quality(0.5)}
    result = compare_pretraining(models, store, "stub", variants={"halved": Config(gain=0.5)}, draws=200)
    values = {row.arm: row.value for row in result.scores}
    assert values["good"] - values["halved"] == pytest.approx(0.3) and set(values) == {
        "good",
        "other",
        "halved",
        SCRATCH,
    }
    assert {row.against for row in result.comparisons} == {"other", "halved", SCRATCH}
    for name in ("good", SCRATCH):
        with pytest.raises(ValueError, match=f"two arms are called {name}"):
            compare_pretraining(models, store, "stub", variants={name: Config()})


def loaded(value: float, *, weights: str) -> Loaded:
    card: Any = types.SimpleNamespace(recipe=Config(), weights_digest=weights, sequences=("t1w",))
    return Loaded(recipe=Quality(value), card=card, folder=Path())


def test_what_was_trained_is_not_trained_again_and_gives_the_same_numbers(store: Any, tmp_path: Path) -> None:
    store.digest = "one"
    models = {"good": loaded(0.6, weights="a"), "bad": loaded(0.4, weights="b")}
    first = compare_pretraining({"good": models["good"]}, store, "stub", seeds=(0, 1), kept=tmp_path, draws=200)
    assert len(Stub.asked) == 4
    again = compare_pretraining(models, store, "stub", seeds=(0, 1), kept=tmp_path, draws=200)
    assert len(Stub.asked) == 6, "only the new arm is trained"
    assert {row.arm: row for row in again.scores}["good"] == first.scores[0]
    for change in ({"store": types.SimpleNamespace(rows=store.rows, digest="two")}, {"config": Config(gain=0.9)}):
        Stub.asked = []
        given = {"store": store, "config": None} | change
        compare_pretraining({"good": models["good"]}, given["store"], "stub", given["config"], kept=tmp_path, draws=50)
        assert len(Stub.asked) == 2, "other data or settings are another training"
    Stub.asked = []
    compare_pretraining({"good": loaded(0.6, weights="c")}, store, "stub", seeds=(0, 1), kept=tmp_path, draws=50)
    assert len(Stub.asked) == 2, "other weights too; from scratch has none"


def test_only_what_has_a_digest_is_kept(store: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a comparison of checkpoints on a store can be kept"):
        compare_pretraining({"good": Quality(0.6)}, store, "stub", kept=tmp_path)


def test_an_arm_may_be_several_pre_trainings_and_its_score_is_their_mean(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(compare, "from_scratch", lambda start, seed: begun.append(seed) or Quality(0.3))
    models = {"good": (Quality(0.6), Quality(0.5)), "one": Quality(0.55)}
    result = compare_pretraining(models, store, "stub", seeds=(0, 1), draws=200, variants={"half": Config(gain=0.5)})
    # Two trainings of each of the first arm's runs, its variant and scratch; one run of the other.
    assert len(Stub.asked) == 4 + 2 + 4 + 4
    assert len(set(begun)) == 4 and {0, 1} < set(begun)
    each = []
    for value, seed in ((0.6, 0), (0.6, 1), (0.5, 0), (0.5, 1)):
        alone = compare_pretraining({"x": Quality(value)}, store, "stub", seeds=(seed,), draws=20)
        each.append(alone.scores[0].value)
    assert result.score("macro, 100 % of the labels", arm="good", metric="dice").value == pytest.approx(np.mean(each))
    said = ", ".join(f"{value:.3f}" for value in each)
    assert result.notes[0] == f"good, 100 % of the labels: {said} (2 pre-trainings or starts; seeds 0, 1)."
    assert result.notes[1].endswith("(seeds 0, 1).") and "2 pre-trainings" in result.notes[2]
    with pytest.raises(ValueError, match="at least one model"):
        compare_pretraining({"good": ()}, store, "stub")
    other = Loaded(recipe=Quality(0.5), card=types.SimpleNamespace(recipe=Config(gain=2.0)), folder=Path())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'good' names runs of different recipes"):
        compare_pretraining({"good": (loaded(0.6, weights="a"), other)}, store, "stub")


def test_another_start_from_scratch_is_kept_apart(store: Any, tmp_path: Path) -> None:
    store.digest = "one"
    model = loaded(0.6, weights="a")
    compare_pretraining({"good": model}, store, "stub", kept=tmp_path, draws=20)
    compare_pretraining({"good": (model, loaded(0.5, weights="b"))}, store, "stub", kept=tmp_path, draws=20)
    # The second checkpoint and the second start are new, the first of both are not.
    assert len(Stub.asked) == 4


def test_comparisons_of_other_arms_do_not_overwrite_one_another(store: Any) -> None:
    one, two = loaded(0.6, weights="a"), loaded(0.4, weights="b")

    def name(*given: Any, **more: Any) -> str:
        return compare_pretraining(*given[:1], store, "stub", *given[1:], draws=20, **more).file_stem

    names = [
        name({"x": one}),
        name({"x": two}),
        name({"x": one, "y": two}),
        name({"x": (one, two)}),
        name({"x": one}, seeds=(0, 1)),
        name({"x": one}, fractions=(0.5,)),
        name({"x": one}, measures=("a/dice",)),
        name({"x": one}, Config(gain=0.5)),
        name({"x": one}, variants={"half": Config(gain=0.5)}),
    ]
    assert len(set(names)) == len(names) and all(one.startswith("compare-stub-") for one in names)
    assert name({"x": one}) == names[0]
