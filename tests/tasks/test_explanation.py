"""The task whole, on simulated blobs: a network that looks at the lesion is told from one that does not."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tomoglot.batches.loader import LoaderConfig
from tomoglot.encoders.plain_conv import PlainConv
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.recipes.brainmvp import tiny as brainmvp_tiny
from tomoglot.recipes.recipe import Recipe
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.lesion import FINDING_REGIONS, LESIONS, REGIONS, finding_numbers
from tomoglot.studies.nifti import read_nifti, write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Series, Study, Volume
from tomoglot.tasks.explanation import Config, score
from tomoglot.tasks.heads.detector import Detector, DetectorSettings, save_detector
from tomoglot.tasks.labels import PartOfStore
from tomoglot.tasks.maps.heat_maps import CHANCE, METRICS
from tomoglot.tasks.maps.lesion_cases import MEAN_MAP, MIDDLE
from tomoglot.tasks.queries.prompts import PROMPTS
from tomoglot.tasks.scoreboard import markdown, table
from tomoglot.tasks.task import SCRATCH, load
from tomoglot.tasks.zero_shot import study_scores

SHAPE, NUM_STUDIES = (20, 24, 16), 10
LPS = np.array([[-2.0, 0, 0, 19], [0, -2, 0, 23], [0, 0, 2, -15], [0, 0, 0, 1]])
QUICK = Config(split="test", draws=50, loader=LoaderConfig(workers=0))


class Bright(VisionEncoder):
    """Its one map is the volume in steps of two, times a weight; what is pooled is what lies far above the mean."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.widths, self.strides, self.embedding = 1, (1,), (2,), 1
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, volumes):
        map_ = self.weight * F.avg_pool3d(volumes, 2, ceil_mode=True)
        tokens = F.relu(map_ - 1.5).flatten(2).transpose(1, 2)
        return VisionFeatures(pyramid=(map_,), tokens=tokens, pooled=tokens.mean(1))


class Looking(Recipe):
    """Says "infarct" where dwi is bright; as first drawn its weight is negative, and it is blind to that."""

    class Config(Recipe.Config):
        def build(self, sequences):
            recipe = Looking(self, sequences)
            recipe.encoder.weight.data.fill_(-1.0)
            return recipe

    def __init__(self, config, sequences):
        super().__init__()
        self.config, self.sequences = config, sequences
        self.encoder = Bright()

    def losses(self, batch, *, progress):
        raise NotImplementedError

    def encode(self, batch):
        pooled = batch.volumes.new_zeros(*batch.acquired.shape, 1)
        pooled[batch.acquired] = self.encoder(batch.volumes[batch.acquired][:, None]).pooled
        return pooled

    def align_volumes(self, batch):
        seen = self.encode(batch)
        unit = F.normalize(torch.cat([seen, torch.full_like(seen, 0.1)], dim=-1), dim=-1)
        return unit * batch.acquired[..., None]

    def align_texts(self, texts):
        denial = re.compile(r"\b(no|not|nothing|without)\b", re.IGNORECASE)
        return torch.tensor([[-1.0, 0.0] if denial.search(text) else [1.0, 0.0] for text in texts])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Simulated studies: an infarct (5), bright on dwi alone; a mass that no mask shows; one study without a mask."""
    folder, rng = tmp_path_factory.mktemp("blobs"), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    body = np.linalg.norm((grid - 9.5) / 10, axis=0) < 1
    studies = []
    for number in range(NUM_STUDIES):
        centre = rng.uniform(5, np.array([15, 15, 11]))
        mask = (np.linalg.norm(grid - centre[:, None, None, None], axis=0) < 2.5).astype(np.uint8) * 5
        mask *= number % 3 != 1
        series = []
        for sequence in ("dwi", "flair"):
            if sequence == "flair" and number % 4 == 3:
                continue
            voxels = rng.normal(300, 30, SHAPE) + 300 * ((mask > 0) & (sequence == "dwi"))
            series.append(Series(sequence=sequence, path=folder / f"{number}_{sequence}.nii"))
            write_nifti(series[-1].path, Volume(voxels=np.rint(voxels * body).astype(np.int16), affine=LPS))
        path = folder / f"{number}_mask.nii"
        write_nifti(path, Volume(voxels=mask, affine=LPS))
        labels = {"infarct": float(mask.any()), "mass": 1.0, "normal": float(not mask.any())}
        known = {} if number == 9 else {"mask": path}
        identity = {"subject": f"sub-{number:02d}", "study": "1", "split": "test", "simulated": True}
        studies.append(Study(**identity, **known, labels=labels, series=tuple(series)))
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan())
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def scored(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps")
    calls = []
    result = score(
        Looking(Looking.Config(), ("dwi", "flair")),
        store,
        QUICK.but(pictures=2),
        out=out,
        progress=lambda done, total: calls.append((done, total)),
    )
    return result, out, calls


def test_a_network_that_looks_at_the_lesion_points_at_it_and_the_controls_do_not(scored):
    result, _, _ = scored
    assert result.score("dwi alone", metric="pointing_game").value == 1.0
    assert result.score("infarct", metric="pointing_game").value == 1.0
    assert result.score(metric="share_inside").value > 0.3
    # A negative weight has no positive evidence: a map of zeros, which is chance.
    for metric in ("pointing_game", "share_inside"):
        blind, chance = (result.score(metric=metric, arm=arm).value for arm in (SCRATCH, CHANCE))
        assert blind == pytest.approx(chance)
        assert chance < 0.1
    for arm in (MIDDLE, MEAN_MAP):
        assert result.score(metric="pointing_game", arm=arm).value < 0.5
    worse = {(found.against, found.metric): found for found in result.comparisons}
    assert {against for against, _ in worse} == {CHANCE, SCRATCH, MIDDLE, MEAN_MAP}
    assert all(worse[against, "pointing_game"].low > 0 for against in (CHANCE, SCRATCH, MIDDLE, MEAN_MAP))


def test_only_findings_that_a_study_has_and_its_mask_shows_are_scored(scored):
    result, _, calls = scored
    # Studies 1, 4 and 7 have no infarct, study 9 no mask; the mass is in no mask.
    assert result.studies == result.subjects == 6
    assert result.headline().metric == "pointing_game" and result.simulated
    assert {score.name for score in result.scores if score.arm == "model"} == {
        "macro",
        "infarct",
        "dwi alone",
        "flair alone",
    }
    assert any("Never shown by a mask of this split: mass" in note for note in result.notes)
    assert [set(row.measures) for row in result.predictions] == [{f"infarct/{metric}" for metric in METRICS}] * 6
    # Rows with a finding and a mask are walked, with a region or without, and a second time for the blind maps.
    assert calls[-1][0] <= calls[-1][1] == 18
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_maps_are_written_on_the_grid_that_the_study_came_on(scored, store):
    _, out, _ = scored
    rows = {row.key: row for row in store.rows}
    written = sorted(out.glob("*_heat.nii.gz"))
    flair = [row for row in store.rows if "flair" in row.sequences and row.has_mask and row.labels["infarct"]]
    assert len(written) == 6 + len(flair)
    for path in out.glob("*_infarct_dwi_heat.nii.gz"):
        row, heat = rows[path.name.removesuffix("_infarct_dwi_heat.nii.gz")], read_nifti(path)
        assert heat.voxels.shape == SHAPE
        np.testing.assert_allclose(heat.affine, LPS, atol=1e-4)
        assert heat.voxels.max() == pytest.approx(1.0, abs=0.35)  # steps of two are interpolated
        # The store turned two axes; the file turns them back.
        mask = store.read_mask(row, (0, 0, 0), row.shape)[::-1, ::-1]
        assert mask[np.unravel_index(heat.voxels.argmax(), SHAPE)] == 5
    assert len(list(out.glob("*_heat.png"))) == 2
    assert all(picture.read_bytes()[:4] == b"\x89PNG" for picture in out.glob("*.png"))


def test_what_is_explained_is_the_zero_shot_score(store):
    """The answer whose gradient is taken, against the task's own arithmetic."""
    from tomoglot.batches.loader import Loader
    from tomoglot.tasks.embeddings import embed_store
    from tomoglot.tasks.maps.answers import zero_shot_answers
    from tomoglot.tasks.zero_shot import against_others, embed_prompts

    recipe = Looking(Looking.Config(), ("dwi", "flair"))
    loader = LoaderConfig(workers=0, batch_size=3)
    prompts = {name: PROMPTS[name] for name in ("infarct", "mass")}
    embedded = embed_store(recipe, Loader(store, loader, split="test", train=False))
    for against, vectors in (
        ("absent", embed_prompts(recipe, prompts)),
        ("others", against_others(embed_prompts(recipe, prompts))),
    ):
        answers = zero_shot_answers(recipe, loader, prompts, against=against, seed=0)
        asked = [answers.trained.answer(batch) for batch in Loader(store, loader, split="test", train=False)]
        directions = np.stack([vector.direction for vector in vectors.values()])
        slow = study_scores(embedded.aligned, embedded.acquired, directions)
        np.testing.assert_allclose(torch.cat(asked).detach().numpy(), slow, atol=1e-6)


def test_a_detector_is_explained_by_gradients_and_by_its_attention(store, tmp_path):
    torch.manual_seed(0)
    vision = PlainConv.Config(widths=(8, 16), blocks=(0, 0))
    recipe = brainmvp_tiny().but(vision=vision).build(("dwi", "flair"))
    settings = DetectorSettings(fusion="cct", token_stride=4, width=16, heads=2, layers=1)
    net = Detector(recipe, settings, ("infarct", "normal"), embedding=16)
    nn.init.normal_(net.head.weight)
    folder = save_detector(
        tmp_path / "detector",
        net,
        plan=store.plan,
        loader=LoaderConfig(workers=0),
        simulated=True,
        learned_from={store.rows[0].subject},
    )
    for method in ("each_place", "attention"):
        result = score(recipe, store, QUICK.but(detector=folder, method=method, loader=None, controls=False))
        assert result.model == "Detector"
        assert 0 <= result.score("infarct", metric="pointing_game").value <= 1
        assert any(note.startswith("NOT HELD OUT: the detector learned from 1 of the 6") for note in result.notes)
    result = score(recipe, store, QUICK.but(detector=folder))
    # Redrawn, the last layer is not zero: there is a map to compare with.
    redrawn = result.score(metric="share_inside", arm=SCRATCH).value
    assert redrawn != pytest.approx(result.score(metric="share_inside", arm=CHANCE).value, abs=1e-6)
    other = type("Other", (PartOfStore,), {"plan": Plan(intensity="percentile")})(store, store.rows)
    with pytest.raises(ValueError, match="prepared otherwise"):
        score(recipe, other, QUICK.but(detector=folder))


def test_studies_are_drawn_by_the_seed(store):
    recipe = Looking(Looking.Config(), ("dwi", "flair"))
    results = [
        score(recipe, store, QUICK.but(limit=4, seed=seed, controls=False, findings=("infarct",))) for seed in (0, 0, 1)
    ]
    kept = [{row.study for row in result.predictions} for result in results]
    assert kept[0] == kept[1] != kept[2]
    assert all(len(its) == 4 for its in kept)
    assert {score.arm for score in results[0].scores} == {"model", CHANCE}


def test_the_result_is_printed_saved_and_listed(scored, tmp_path):
    result, _, _ = scored
    assert "pointing_game" in markdown(result)
    assert table(result).row_count
    assert result.save(tmp_path).is_file()
    assert load("explanation", verb="evaluate").Config is Config


def test_what_cannot_be_explained_is_refused(store):
    recipe = Looking(Looking.Config(), ("dwi", "flair"))
    for changes, words in [
        ({"findings": ("normal",)}, "cannot explain normal"),
        ({"findings": ("mass",)}, "has one of mass in its mask"),
        ({"findings": ("haemorrhage",)}, "cannot explain haemorrhage"),
        ({"split": "val"}, "no study of split 'val'"),
        ({"detector": Path("nowhere")}, "no detector.json"),
    ]:
        with pytest.raises(ValueError, match=words):
            score(recipe, store, QUICK.but(**changes))
    with pytest.raises(ValueError, match="has no text side: give the folder"):
        score(brainmvp_tiny().build(("dwi", "flair")), store, QUICK)


def test_a_finding_is_seen_in_the_region_of_its_name_or_in_the_one_that_is_named():
    assert finding_numbers("infarct") == (LESIONS["infarct"],)
    assert finding_numbers("mass") == tuple(sorted(LESIONS[tissue] for tissue in REGIONS["whole"]))
    assert finding_numbers("metastasis") == (LESIONS["liver_metastasis"],)
    assert finding_numbers("normal") is None and finding_numbers("midline_shift") is None
    assert set(FINDING_REGIONS.values()) <= {*LESIONS, *REGIONS}
