"""Several pre-trained models on one task, at several shares of the labels: same budget, same subjects, tested in pairs.

A single training says little: what is drawn at its start moves a score as much as the method does, of a pre-training no
less than of a fine-tuning. So an arm may be several pre-trainings, each is trained once a seed, the arm's score is the
mean over all, and arms are compared on the same drawn subjects. The interval covers which subjects were scored; the
values of the single trainings stand beside it and show what training itself varies.

An arm is a model under the task's settings, or the first model under settings of its own (a variant: an ablation of
what the task adds). With a folder, every training that is done is kept there, and a comparison that was interrupted, or
that gets one arm more, trains only what is missing. A task that trains nothing (`evaluate`) is scored once an arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoglot.batches.loader import StudySource
from tomoglot.checkpoint import Loaded
from tomoglot.config import Settings
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import embedded_once, from_scratch, is_simulated
from tomoglot.tasks.scores.intervals import DRAWS, Statistic, interval, macro_of, paired_test
from tomoglot.tasks.scores.metrics import METRICS
from tomoglot.tasks.scores.regions import mean_statistic
from tomoglot.tasks.scores.scoring import holm_comparisons
from tomoglot.tasks.task import SCRATCH, Comparison, Prediction, Score, Task, TaskResult, load, load_result, save_result

Report = Callable[[int, int], None]
Model = Recipe | Loaded
# Between the seeds of two starts from scratch of one training seed.
APART = 10_007


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trained:
    """One arm at one share of the labels: the values of the seeds, and their mean as a statistic of the subjects."""

    arm: str
    share: str
    measure: str
    values: tuple[float, ...]
    statistic: Statistic
    subjects: NDArray[np.generic]
    prevalence: float

    @property
    def title(self) -> str:
        """Of what, at what share of the labels."""
        return (self.measure.rpartition("/")[0] or "macro") + self.share

    @property
    def metric(self) -> str:
        """What was measured of it."""
        return self.measure.rpartition("/")[2]


def compare_pretraining(
    models: Mapping[str, Model | Sequence[Model]],
    store: StudySource,
    task: str,
    config: Settings | None = None,
    *,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    measures: Sequence[str] = (),
    variants: Mapping[str, Settings] | None = None,
    kept: Path | None = None,
    against: str | None = None,
    draws: int = DRAWS,
    progress: Report = lambda done, total: None,
) -> TaskResult:
    """Score every model, its variants, and the first one's network from scratch, at every share of the labels.

    Args:
        models: a name and a checkpoint each, or several checkpoints of one method; all are compared with the first.
            `from scratch` copies the first checkpoint, with as many starts as the first name has checkpoints.
        store: what is learned from and scored.
        task: any; one of the verb `evaluate` knows no shares of labels and no seeds.
        config: its settings; `controls`, and of a task that trains `seed` and `label_fraction`, are set here.
        fractions: shares of the training subjects that keep their labels.
        seeds: one training each, in which other subjects keep their labels.
        measures: what is averaged: what the task measures of single studies, over regions (`dice`) or of one alone
            (`report to volume/r@10`), or, of a task that gives probabilities, metrics of a finding; none is `dice`,
            `auroc`, or, of written reports, the `f1` of what they say. Arms are tested on the first.
        variants: a name and settings each: the first model once more, under them.
        kept: a folder in which every training's result is kept, and looked for before training.
        against: every other arm minus this one is tested; None tests the first model minus every other arm.
        draws: of the bootstrap.
        progress: told how many trainings are done.

    Raises:
        ValueError: no model, fraction or seed, two arms of one name, fractions or seeds for a task that trains nothing,
            a measure is none of its own, no arm is called `against`, or the scored studies hold one class only.
    """
    trains = (found_task := load(task)).VERB == "transfer"
    config = found_task.Config() if config is None else config
    runs = {name: (its,) if isinstance(its, Recipe | Loaded) else tuple(its) for name, its in models.items()}
    _refuse(task, trains, runs, fractions, seeds)
    arms, first = _arms(runs, config, variants or {}, against), next(iter(runs.values()))
    starts = {name: range(len(runs.get(model, first))) for name, (model, _) in arms.items()}
    done, total = count(1), sum(map(len, starts.values())) * len(seeds) * len(fractions)
    train = partial(_train, found_task, runs=runs, store=store, kept=kept)
    train_arm = partial(_train_arm, train, seeds=seeds, measures=measures, tell=lambda: progress(next(done), total))
    rows: list[_Trained] = []
    with embedded_once():
        for fraction, (name, (model, settings)) in product(fractions, arms.items()):
            found = train_arm(model, settings, share=fraction if trains else None, starts=starts[name])
            share = f", {100 * fraction:g} % of the labels" * trains
            rows += [_trained(name, share, found, store, measure) for measure in _measures(found[0], measures)]
    tested = [row for row in rows if row.measure == rows[0].measure]
    several = [row for row in tested if trains or len(row.values) > 1]
    notes = tuple(_seed_note(row, len(starts[row.arm]), seeds if trains else ()) for row in several)
    result = _result(rows, task, tuple(runs), config, store=store, draws=draws).but(notes=notes)
    result = result.but(comparisons=_compare(tested, rows[0].arm, draws, against=against))
    return _told_apart(result.under(config), arms, runs, fractions, seeds, measures, *[against] * bool(against))


def named_folders(runs: Sequence[str]) -> dict[str, list[Path]]:
    """Run folders by name, in their order, from NAME=RUN_FOLDER; a name that comes twice has two.

    Raises:
        ValueError: one is of another form, or a folder comes twice.
    """
    pairs = [run.partition("=") for run in runs]
    if any(not (name and equals and path) for name, equals, path in pairs) or len({p[2] for p in pairs}) < len(pairs):
        raise ValueError(f"--run wants NAME=RUN_FOLDER, each folder once, got {', '.join(runs)}")
    found: dict[str, list[Path]] = {}
    for name, _, path in pairs:
        found.setdefault(name, []).append(Path(path))
    return found


def varied_settings(config: Settings, varied: Sequence[str]) -> dict[str, Settings]:
    """Settings by name, from NAME:SETTING=VALUE[;...].

    Raises:
        ValueError: one is of another form, or no setting is called so.
    """
    parts = [one.partition(":") for one in varied]
    if any(not (name and colon and its) for name, colon, its in parts):
        raise ValueError(f"--vary wants NAME:SETTING=VALUE, got {', '.join(varied)}")
    return {name: config.set(its.split(";")) for name, _, its in parts}


def _told_apart(
    result: TaskResult, arms: Mapping[str, tuple[str, Settings]], runs: Mapping[str, Sequence[Model]], *how: object
) -> TaskResult:
    """The same under a name of its own: comparisons of other arms lie beside it in one folder."""
    digests = {
        name: [model.card.weights_digest for model in its if isinstance(model, Loaded)] for name, its in runs.items()
    }
    told = hashlib.sha256(repr((arms, digests, how)).encode()).hexdigest()[:8]
    return result.but(variant="-".join(filter(None, (result.variant, f"arms_{told}"))))


def _refuse(
    task: str, trains: bool, runs: Mapping[str, Sequence[Model]], fractions: Sequence[float], seeds: Sequence[int]
) -> None:
    if not (runs and all(runs.values()) and fractions and seeds):
        raise ValueError("a comparison needs at least one model, one label fraction and one seed")
    for name, its in runs.items():
        built = [model.card.recipe for model in its if isinstance(model, Loaded)]
        if any(one != built[0] for one in built):
            raise ValueError(
                f"{name!r} names runs of different recipes, whose mean says nothing; give each recipe a name"
            )
    if not trains and (tuple(fractions), tuple(seeds)) != ((1.0,), (0,)):
        raise ValueError(f"{task} trains nothing, so it knows no label fractions and no seeds; leave them out")


def _result(
    rows: Sequence[_Trained], task: str, names: tuple[str, ...], config: Settings, *, store: StudySource, draws: int
) -> TaskResult:
    split = str(getattr(config, "split", "test"))
    subjects = rows[0].subjects
    return TaskResult(
        task=f"compare-{task}", split=split, model=", ".join(names), simulated=is_simulated(store, split),
        subjects=len(np.unique(subjects)), studies=len(subjects),
        scores=tuple(_score(row, draws) for row in rows),
    )  # fmt: skip


def _arms(
    models: Mapping[str, Sequence[Model]], config: Settings, variants: Mapping[str, Settings], against: str | None
) -> dict[str, tuple[str, Settings]]:
    """Which model and settings each arm has, the first model first and from scratch last; none without a model.

    Raises:
        ValueError: two arms of one name, or none of the name that all are tested against.
    """
    if twice := sorted({*models, SCRATCH} & set(variants)):
        raise ValueError(f"two arms are called {', '.join(twice)}: give every variant a name of its own")
    arms = {name: (name, config) for name in models}
    for first in list(models)[:1]:
        arms |= {name: (first, its) for name, its in variants.items()} | {SCRATCH: (SCRATCH, config)}
    if against is not None and against not in arms:
        raise ValueError(f"against: no arm is called {against!r}; they are {', '.join(map(repr, arms))}")
    return arms


def _train_arm(
    train: Callable[..., TaskResult],
    model: str,
    settings: Settings,
    *,
    share: float | None,
    starts: Sequence[int],
    seeds: Sequence[int],
    measures: Sequence[str],
    tell: Callable[[], None],
) -> list[tuple[Prediction, ...]]:
    """What every training of an arm at one share of the labels (None: it trains nothing) said of the studies."""
    found = []
    for start, seed in product(starts, seeds):
        learning = {} if share is None else {"seed": seed, "label_fraction": share}
        found.append(train(model, settings.but(controls=False, **learning), start=start, seed=seed).predictions)
        _measures(found[-1], measures)  # A wrong name is said after one training, not after all.
        tell()
    return found


def _train(
    task: Task,
    name: str,
    config: Settings,
    *,
    runs: Mapping[str, Sequence[Model]],
    store: StudySource,
    kept: Path | None,
    start: int,
    seed: int,
) -> TaskResult:
    """One training's result: from the folder where it was done before, else now, and then kept there.

    `start` counts the pre-trainings of an arm; from scratch each has weights of its own.
    """
    first = next(iter(runs.values()))[0]
    used = runs[name][start] if name in runs else first
    path = None if kept is None else _kept_at(kept, name, used, store, config, start=start)
    if path is not None and path.is_file():
        return load_result(path)
    built = first.recipe if isinstance(first, Loaded) else first
    model = from_scratch(built, seed=seed + APART * start) if name == SCRATCH else used
    result = task.score(model, store, config)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_result(result.under(config), path)
    return result


def _kept_at(kept: Path, name: str, model: Model, store: StudySource, config: Settings, *, start: int) -> Path:
    """Where a training is kept: told apart by weights, store and settings, so that no other is ever taken for it.

    Raises:
        ValueError: the model is no checkpoint, or the store no store of ours: nothing says what they hold.
    """
    digest = getattr(store, "digest", "")
    if not (isinstance(model, Loaded) and digest):
        raise ValueError("only a comparison of checkpoints on a store can be kept: nothing else has a digest")
    # From scratch, what counts of the first model are the settings that build it.
    built = model.card.recipe.model_dump(mode="json", serialize_as_any=True)
    what = [name == SCRATCH, built if name == SCRATCH else model.card.weights_digest, model.card.sequences, digest]
    what += [type(config).__module__, config.model_dump(mode="json", serialize_as_any=True)]
    what += [start] * (name == SCRATCH and start > 0)
    text = json.dumps(what, sort_keys=True)
    return kept / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _trained(
    arm: str, share: str, found: Sequence[tuple[Prediction, ...]], store: StudySource, measure: str
) -> _Trained:
    """The mean over seeds of a macro score; every seed scored the same studies."""
    people = {row.key: row.subject for row in store.rows}
    studies = [prediction.study for prediction in found[0]]
    assert all([p.study for p in predictions] == studies for predictions in found), "seeds scored other studies"
    statistics = [_statistic(predictions, measure) for predictions in found]
    subjects = np.unique([people[study] for study in studies], return_inverse=True)[1]
    everybody = np.ones((1, len(studies)))
    known = sorted({name for p in found[0] for name in p.labels})
    positive = [np.mean([p.labels[name] for p in found[0] if name in p.labels]) for name in known]
    return _Trained(
        arm=arm,
        share=share,
        measure=measure,
        values=tuple(float(statistic(everybody)[0]) for statistic in statistics),
        statistic=lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0),
        subjects=subjects,
        prevalence=float(np.mean(positive)) if positive else 0.0,
    )


def _measures(predictions: Sequence[Prediction], asked: Sequence[str]) -> tuple[str, ...]:
    """The measures that were asked for, or the usual one: no score may bear another's name.

    Raises:
        ValueError: the task does not have one of them.
    """
    measured = {key for p in predictions for key in p.measures}
    of_studies = sorted({key.rpartition("/")[2] for key in measured})
    rated = any(p.probabilities for p in predictions)
    known = [*of_studies, *sorted(measured), *(METRICS if rated or not measured else ())]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"measure {', '.join(map(repr, unknown))} is none of this task's: {', '.join(known)}")
    # What a written report says of the findings counts before its words.
    usual = "dice" if "dice" in of_studies else "f1" if measured and rated else known[0]
    return tuple(asked) or (usual,)


def _statistic(predictions: Sequence[Prediction], measure: str) -> Statistic:
    """Mean over regions of a measure's mean over studies, or over findings of a metric of the probabilities."""
    measured = sorted({key for p in predictions for key in p.measures})
    names = [key for key in measured if measure in (key, key.rpartition("/")[2])]
    if names:
        return mean_statistic(np.array([[p.measures.get(name, np.nan) for name in names] for p in predictions]))
    findings = sorted({name for p in predictions for name in p.probabilities})
    given = np.array([[p.probabilities.get(name, np.nan) for name in findings] for p in predictions])
    labels = np.array([[p.labels.get(name, 0.0) for name in findings] for p in predictions])
    known = np.array([[name in p.labels for name in findings] for p in predictions])
    return macro_of(METRICS[measure], given, labels, known)


def _score(row: _Trained, draws: int) -> Score:
    bounds = interval(row.statistic, row.subjects, draws=draws)
    if not bounds.draws:
        raise ValueError(
            f"{row.metric} cannot be scored on these {len(row.subjects)} studies: they hold no region, or of every "
            "finding one class only; score another split, or more subjects"
        )
    return Score(
        name=row.title,
        value=bounds.value,
        low=bounds.low,
        high=bounds.high,
        subjects=len(np.unique(row.subjects)),
        prevalence=row.prevalence,
        metric=row.metric,
        arm=row.arm,
        studies=len(row.subjects),
    )


def _compare(rows: Sequence[_Trained], ours: str, draws: int, *, against: str | None) -> tuple[Comparison, ...]:
    """Ours minus every other arm, or every other arm minus one, at the same share of the labels; Holm over all."""
    fixed = ours if against is None else against
    of = {row.title: row for row in rows if row.arm == fixed}
    pairs = [(of[row.title], row) if against is None else (row, of[row.title]) for row in rows if row.arm != fixed]
    tests = []
    for one, other in pairs:
        test = paired_test(one.statistic, other.statistic, one.subjects, draws=draws)
        tests.append((one.title, one.metric, other.arm, len(np.unique(one.subjects)), test))
    drawn = [one.arm for (one, _), (*_, test) in zip(pairs, tests, strict=True) if test.draws]
    return tuple(found.but(of=arm) for found, arm in zip(holm_comparisons(tests), drawn, strict=True))


def _seed_note(row: _Trained, starts: int, seeds: Sequence[int]) -> str:
    each = ", ".join(f"{value:.3f}" for value in row.values)
    trained = (f"seeds {', '.join(map(str, seeds))}",) * bool(seeds)
    varied = "; ".join((*(f"{starts} pre-trainings or starts",) * (starts > 1), *trained))
    return f"{row.arm}, {row.title.removeprefix('macro, ')}: {each} ({varied})."
