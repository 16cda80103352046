"""Classes are told apart where the image tells them, at a threshold of the val split, and against both controls."""

from collections import Counter

import numpy as np
import pytest
import torch

from tomoglot.batches.loader import LoaderConfig
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes import brainmvp
from tomoglot.schedule import Schedule
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume
from tomoglot.tasks import classification
from tomoglot.tasks.classification import Config, class_of, repeat_rare, score
from tomoglot.tasks.scores.metrics import best_threshold
from tomoglot.tasks.task import IMAGE_REMOVED, SCRATCH

SEQUENCES = ("t1w", "flair")
KINDS = ("dark", "bright", "plain")
# The first letter of a kind is what a voxel pattern shows; "plain" shows nothing.
LOADER = LoaderConfig(batch_size=8, crop_voxels=(16, 16, 16), workers=0)
QUICK = Schedule(steps=40, warmup_steps=2, learning_rate=5e-3, accelerator="cpu")


def volume(kind: str, rng: np.random.Generator) -> Volume:
    voxels = rng.normal(100, 10, (16, 16, 16))
    if kind == "bright":
        voxels[4:12, 4:12, 4:12] += 60
    elif kind == "dark":
        voxels[4:12, 4:12, 4:12] -= 60
    return Volume(voxels=voxels.astype(np.float32), affine=np.eye(4))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """72 simulated studies, some of both kinds or unlabelled; `bright` is rarer; flair is missing in some."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    studies = []
    for number in range(72):
        kind = KINDS[0] if number % 9 < 4 else KINDS[1] if number % 9 < 6 else KINDS[2]
        series = []
        for sequence in SEQUENCES[: 1 if number % 5 == 0 else 2]:
            path = folder / "files" / f"{number}_{sequence}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_nifti(path, volume(kind, rng))
            series.append(Series(sequence=sequence, path=path))
        labels = {name: float(name == kind) for name in KINDS}
        if number in (8, 17):
            labels["bright"] = 1.0
        if number in (26, 35):
            del labels["dark"]
        split = ("train", "train", "val", "test")[number % 4]
        studies.append(
            Study(subject=f"s{number}", study="1", series=tuple(series), labels=labels, split=split, simulated=True)
        )
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan())
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def recipe():
    torch.manual_seed(0)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0), groups=4)
    return brainmvp.tiny().but(vision=vision).build(SEQUENCES)


def settings(**changes) -> Config:
    return Config(target="bright", loader=LOADER, schedule=QUICK, draws=100).but(**changes)


@pytest.mark.parametrize("kind", ["channels", "pooled"])
def test_fine_tuning_tells_one_finding_and_not_without_the_image(store, recipe, kind):
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    result = score(recipe, store, settings(input=kind))
    assert result.score("bright").value > 0.95
    assert result.score("bright", arm=IMAGE_REMOVED).high < 0.95
    assert {score.metric for score in result.scores} == {"auroc", "average_precision", "balanced_accuracy", "f1"}
    assert result.score("bright", metric="balanced_accuracy").value > 0.85
    assert [row.name for row in result.comparisons] == ["bright", "bright"]
    assert {row.against for row in result.comparisons} == {SCRATCH, IMAGE_REMOVED}
    assert all(row.p_holm >= row.p for row in result.comparisons)
    assert result.simulated and result.task == "classification-finetune"
    for name, value in recipe.state_dict().items():
        assert torch.equal(value, before[name]), "the recipe that was given has changed"
    notes = " ".join(result.notes)
    assert "threshold" in notes and "chosen on val" in notes and "not labelled" not in notes
    if kind == "channels":
        assert "and 1 adapted (100.0%)" in notes and f"{SCRATCH}: 40 steps" in notes and "nothing was loaded" in notes


@pytest.mark.parametrize("kind", ["channels", "pooled"])
def test_a_probe_tells_three_classes_that_exclude_each_other(store, recipe, kind):
    result = score(recipe, store, settings(target="dark, bright, plain", mode="probe", input=kind))
    macro = result.score()
    assert macro.value > 0.9 and macro.name == "macro"
    for metric in ("average_precision", "balanced_accuracy", "f1"):
        assert result.score(metric=metric).value > 0.7
    assert {score.name for score in result.scores} == {"macro", *KINDS}
    assert result.score(arm=IMAGE_REMOVED).value < macro.low
    notes = " ".join(result.notes)
    assert "2 not labelled, 2 several classes" in notes and "chosen on val" in notes
    for row in result.predictions:
        assert sum(row.probabilities.values()) == pytest.approx(1)
        assert sum(row.labels.values()) == 1


def test_the_threshold_is_that_of_the_val_split(store, recipe, monkeypatch):
    asked = []

    def spy(scores, labels):
        asked.append((np.array(scores), np.array(labels)))
        return best_threshold(scores, labels)

    monkeypatch.setattr(classification, "best_threshold", spy)
    result = score(recipe, store, settings(mode="probe", controls=False))
    (only,) = asked
    val = [row for row in store.rows if row.split == "val"]
    np.testing.assert_array_equal(only[1], [row.labels["bright"] for row in val])
    chosen = best_threshold(*only)
    assert chosen is not None and f"threshold {chosen:.3f} chosen on val" in " ".join(result.notes)
    said = np.array([row.probabilities["bright"] for row in result.predictions])
    true = np.array([row.labels["bright"] for row in result.predictions])
    recall = [np.mean((said >= chosen)[true == label] == label) for label in (0, 1)]
    assert result.score("bright", metric="balanced_accuracy").value == pytest.approx(np.mean(recall))


def test_without_a_val_split_nothing_is_chosen_and_it_is_said(store, recipe):
    class NoVal:
        rows = tuple(row for row in store.rows if row.split != "val")

        def __getattr__(self, name):
            return getattr(store, name)

    notes = " ".join(score(recipe, NoVal(), settings(mode="probe", controls=False)).notes)
    assert "C = 0.1 not chosen but set" in notes and "threshold 0.500 not chosen but set" in notes


def test_rare_classes_are_repeated_until_all_come_equally_often(store):
    rows, classes = store.rows[:11], [0] * 7 + [1] * 3 + [2]
    number = {row.key: at for at, row in enumerate(rows)}
    repeated = [number[row.key] for row in repeat_rare(rows, classes, seed=0)]
    assert Counter(classes[row] for row in repeated) == {0: 7, 1: 7, 2: 7}
    counts = Counter(repeated)
    assert {counts[row] for row in range(7)} == {1} and {counts[row] for row in range(7, 10)} == {2, 3}
    assert repeated == [number[row.key] for row in repeat_rare(rows, classes, seed=0)]


def test_a_study_has_a_class_only_where_it_is_sure():
    labels = {"infarct": 1.0, "mass": 0.0, "normal": 0.0, "oedema": 1.0}
    assert class_of(labels, ("infarct",)) == 1 and class_of(labels, ("mass",)) == 0
    assert class_of(labels, ("mass", "infarct", "normal")) == 1
    assert class_of(labels, ("infarct", "oedema")) == "several classes"
    assert class_of(labels, ("mass", "normal")) == "none of the classes"
    assert class_of(labels, ("mass", "haemorrhage")) == "not labelled"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": None}, r"set target to one finding.*bright, dark, plain"),
        ({"target": "glioma"}, "there is no finding glioma"),
        ({"target": ("dark", "dark")}, "named twice"),
        ({"split": "val"}, "learns from"),
        ({"target": KINDS, "label_fraction": 0.03}, "no study of the 1 to learn from is"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_training(store, recipe, changes, said):
    with pytest.raises(ValueError, match=said):
        score(recipe, store, settings(**changes))


def test_fewer_labels_are_said_and_two_runs_are_equal(store, recipe):
    few = settings(label_fraction=0.5, controls=False, **{"schedule.steps": 3})
    one, two = (score(recipe, store, few) for _ in range(2))
    assert one.predictions == two.predictions
    (counted,) = [note for note in one.notes if note.startswith("Classes")]
    kept = counted.split("train: ")[1].split(";")[0]
    assert sum(int(part.split()[0]) for part in kept.split(", ")) == 18
    assert all(0 < value < 1 for row in one.predictions for value in row.probabilities.values())
