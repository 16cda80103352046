"""The task whole, on simulated blobs: it learns, its controls do not gain by it, and val alone sets the thresholds."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume
from tomoglot.tasks.heads.segment_arm import fit_arm, predict_fields, with_thresholds
from tomoglot.tasks.labels import PartOfStore
from tomoglot.tasks.segmentation import Config, plan_job, score
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH

SHAPE, SPLITS = (20, 18, 16), ("train",) * 12 + ("val",) * 4 + ("test",) * 6
LPS = np.array([[-2.0, 0, 0, 19], [0, -2, 0, 17], [0, 0, 2, -15], [0, 0, 0, 1]])
QUICK = Config(
    steps=30,
    warmup_steps=2,
    batch_size=4,
    learning_rate=1e-2,
    deep_supervision=1,
    workers=0,
    draws=50,
    accelerator="cpu",
)


class BlobRecipe(Recipe):
    """One small encoder, never trained."""

    def __init__(self):
        super().__init__()
        self.sequences = ("dwi", "flair")
        torch.manual_seed(1)
        self.encoder = PlainConv.Config(widths=(8, 16), blocks=(0, 0)).build()

    def losses(self, batch, *, progress):
        raise NotImplementedError

    def encode(self, batch):
        raise NotImplementedError

    def backbone(self, sequence=None):
        return self.encoder


def write_blobs(folder: Path) -> Path:
    """Simulated studies: a plaque (4) bright on flair in all, an infarct (5) on dwi in some; dwi may be absent."""
    rng, studies = np.random.default_rng(0), []
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    for number, split in enumerate(SPLITS):
        mask, series = np.zeros(SHAPE, dtype=np.uint8), []
        for label, radius in ((4, 3.0), (5, 2.5)):
            centre = rng.uniform(4, np.array(SHAPE) - 5)
            if label == 4 or number % 2:
                mask[np.linalg.norm(grid - centre[:, None, None, None], axis=0) < radius] = label
        for sequence, label in (("flair", 4), ("dwi", 5)):
            if sequence == "dwi" and number % 4 == 2:
                continue
            voxels = np.rint(rng.normal(300, 30, SHAPE) + 40 * (mask == label)).astype(np.int16)
            series.append(Series(sequence=sequence, path=folder / f"{number}_{sequence}.nii"))
            write_nifti(series[-1].path, Volume(voxels=voxels, affine=LPS))
        path = folder / f"{number}_mask.nii"
        write_nifti(path, Volume(voxels=mask, affine=LPS))
        # One study of the scored split has no mask: it is predicted, and not scored.
        known = {} if number == len(SPLITS) - 1 else {"mask": path}
        study = {"subject": f"sub-{number:02d}", "study": "1", "split": split, "simulated": True}
        studies.append(Study(**study, **known, series=tuple(series)))
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan())
    return folder / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store.open(write_blobs(tmp_path_factory.mktemp("blobs")))


@pytest.fixture(scope="module")
def learned(store, tmp_path_factory):
    out, steps = tmp_path_factory.mktemp("out"), []
    config = QUICK.but(subsets=("flair", "dwi"))
    result = score(BlobRecipe(), store, config, out=out, progress=lambda done, total: steps.append((done, total)))
    return result, out, steps


def test_it_learns_and_stands_beside_its_controls(learned, store):
    result, _, steps = learned
    ours = result.score("plaque", metric="dice")
    untrained = score(BlobRecipe(), store, QUICK.but(steps=1, controls=False)).score("plaque", metric="dice")
    assert ours.value > 0.8 and ours.value > untrained.value + 0.15
    assert result.score("plaque", metric="dice", arm=SCRATCH).value > untrained.value
    assert result.score("plaque", metric="dice", arm=IMAGE_REMOVED).value < 0.3
    assert result.headline().name == "macro" and result.headline().metric == "dice"
    assert {row.against for row in result.comparisons} == {SCRATCH, IMAGE_REMOVED}
    assert {"dice", "hd95_mm", "nsd", "lesion_dice", "lesion_f1", "volume_true_ml", "volume_predicted_ml"} <= {
        one.metric for one in result.scores
    }
    assert result.studies == 5 and result.simulated and steps[-1] == (60, 60)
    assert result.score("infarct", metric="false_positive_ml").studies == 5 - round(5 * ours_prevalence(result))
    said = " ".join(result.notes)
    assert "tensors matched and 1 adapted" in said and "s a step" in said and "tolerance 2 mm" in said
    assert result.predictions[0].measures["plaque/dice"] > 0


def ours_prevalence(result) -> float:
    return result.score("infarct", metric="dice").prevalence


def test_every_prediction_lies_on_the_grid_of_its_file(learned, store):
    result, out, _ = learned
    rows = [row for row in store.rows if row.split == "test"]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == sorted(
        f"{row.key}_{region}.nii.gz" for row in rows for region in ("plaque", "infarct")
    )
    dices = []
    for row in rows:
        image = nibabel.load(out / f"{row.key}_plaque.nii.gz")
        np.testing.assert_array_equal(image.affine, LPS)
        assert image.shape == SHAPE and b"simulated" in image.header["descrip"].tobytes()
        truth = store.path.parent / f"{int(row.subject[4:])}_mask.nii"
        true, called = read_nifti(truth).voxels == 4, read_nifti(out / f"{row.key}_plaque.nii.gz").voxels > 0
        dices.append(2 * (true & called).sum() / (true.sum() + called.sum()))
    assert np.mean(dices[:-1]) == pytest.approx(result.score("plaque", metric="dice").value, abs=1e-6)
    assert dices[-1] > 0.3, "the study without a mask is predicted as well"


def test_every_subset_of_sequences_is_scored_as_if_nothing_else_were_there(learned):
    result, _, _ = learned
    found = {row.sequences: row for row in result.subsets}
    assert set(found) == {("flair",), ("dwi",), ("flair", "dwi")}
    assert found["flair", "dwi"].score.value == pytest.approx(result.headline().value)
    assert found["dwi",].score.value < found["flair", "dwi"].score.value
    assert found["dwi",].left_out > 0 == found["flair",].left_out


def test_pretrained_weights_are_really_used(store):
    recipe = BlobRecipe()
    with torch.no_grad():
        for weight in recipe.encoder.parameters():
            weight.fill_(float("nan"))
    job = plan_job(recipe, store, QUICK.but(steps=1))
    fit_arm(recipe, job, pretrained=False, progress=lambda done, total: None)
    with pytest.raises(FloatingPointError, match="not finite"):
        score(recipe, store, QUICK.but(steps=1, controls=False))


class Watched(PartOfStore):
    """Remembers the splits of which anything is read."""

    __slots__ = ("seen",)

    def read_crop(self, row, start, shape, *, sequences=None):
        self.seen.add(row.split)
        return self.whole.read_crop(row, start, shape, sequences=sequences)

    def read_mask(self, row, start, shape):
        self.seen.add(row.split)
        return self.whole.read_mask(row, start, shape)


def test_training_reads_train_and_thresholds_come_from_val_alone(store):
    watched = Watched(store, store.rows)
    object.__setattr__(watched, "seen", set())
    recipe = BlobRecipe()
    job = plan_job(recipe, watched, QUICK.but(steps=2))
    assert watched.seen == {"train"}
    arm = fit_arm(recipe, job, pretrained=True, progress=lambda done, total: None)
    assert watched.seen == {"train", "val"}
    watched.seen.clear()
    assert with_thresholds(arm, job).thresholds == arm.thresholds and watched.seen == {"val"}


def test_a_store_without_val_masks_says_that_no_threshold_was_chosen(store):
    part = PartOfStore(store, tuple(row for row in store.rows if row.split != "val"))
    result = score(BlobRecipe(), part, QUICK.but(steps=1, controls=False))
    assert any("not chosen but set" in note and "plaque 0.50" in note for note in result.notes)


def test_fewer_labels_lie_within_more_and_whole_masks_alone_count(store):
    jobs = [plan_job(BlobRecipe(), store, QUICK.but(label_fraction=share)) for share in (0.25, 0.5)]
    few, more = ({row.key for row in job.training.rows if row.split == "train"} for job in jobs)
    assert len(few) == 3 and len(more) == 6 and few < more


def test_in_windows_and_with_flips_the_probabilities_stay_much_the_same(store):
    recipe, config = BlobRecipe(), QUICK.but(steps=20, crop_voxels=(16, 16, 16))
    job = plan_job(recipe, store, config)
    arm = fit_arm(recipe, job, pretrained=True, progress=lambda done, total: None)
    flipped = plan_job(recipe, store, config.but(flips=True))
    whole = plan_job(recipe, store, config.but(crop_voxels=None))
    first = [next(predict_fields(arm, one, split="test"))[1] for one in (job, flipped, whole)]
    assert all(found.shape == (2, *SHAPE) for found in first)
    assert not np.array_equal(first[0], first[1]) and np.abs(first[0] - first[1]).mean() < 0.1
    assert not np.array_equal(first[0], first[2]) and np.abs(first[0] - first[2]).mean() < 0.1


def test_the_consistency_term_and_dropped_sequences_train_as_well(store):
    config = QUICK.but(steps=2, controls=False, consistency_weight=0.1, drop_sequence_probability=0.3)
    assert score(BlobRecipe(), store, config).headline().value >= 0


def test_frozen_features_are_read_and_it_is_said(store):
    ours = score(BlobRecipe(), store, QUICK.but(steps=20, frozen=True))
    assert ours.score("plaque", metric="dice").value > 0.3
    assert all(
        f"{arm}: 20 steps" not in note or "it stays frozen" in note for note in ours.notes for arm in (MODEL, SCRATCH)
    )
    assert sum("it stays frozen" in note for note in ours.notes) == 2
    with pytest.raises(ValueError, match="consistency_on=logits"):
        QUICK.but(frozen=True, consistency_weight=0.1)
    QUICK.but(frozen=True, consistency_weight=0.1, consistency_on="logits")


def test_two_runs_of_one_seed_are_equal(store):
    config = QUICK.but(steps=3, controls=False)
    one, again, other = (score(BlobRecipe(), store, config.but(seed=seed)) for seed in (4, 4, 5))
    assert one.scores == again.scores and one.predictions == again.predictions
    assert one.predictions != other.predictions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, "learns from"),
        ({"split": "elsewhere"}, "split 'elsewhere' has a mask"),
        ({"regions": ("blood",)}, "no training mask holds blood"),
        ({"sequences": ("t9",)}, "there is no t9"),
        ({"subsets": ("t1w",)}, "there is no t1w"),
        ({"absent": "template"}, "keeps no templates"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(store, changes, message):
    with pytest.raises(ValueError, match=message):
        score(BlobRecipe(), store, QUICK.but(**changes))


def test_predictions_are_not_written_for_a_store_that_does_not_know_its_grids(store, tmp_path):
    rows = tuple(row.model_copy(update={"native_shape": None, "native_affine": None}) for row in store.rows)
    with pytest.raises(ValueError, match="ingest"):
        score(BlobRecipe(), PartOfStore(store, rows), QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
