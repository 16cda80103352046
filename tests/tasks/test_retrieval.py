"""Retrieval: exact ranks with ties, one item a report, nobody's own study, and pools of one size."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from whole_fields import WholeFields, make_row

from tomoglot.batches.loader import LoaderConfig
from tomoglot.recipes.recipe import Recipe
from tomoglot.tasks.embeddings import StoreEmbeddings, study_vectors
from tomoglot.tasks.queries.searches import SAME, SHARED, build_searches, list_items, volume_vectors
from tomoglot.tasks.retrieval import CHANCE, Config, retrieval_result, score
from tomoglot.tasks.scores.ranks import Search, rank, rank_measures, weighted_median
from tomoglot.tasks.task import IMAGE_REMOVED, MODEL, SCRATCH
from tomoglot.tasks.zero_shot import study_scores

TEXT_FIRST, VOLUME_FIRST = "report to volume", "volume to report"
EVERY = ("report_to_volume", "volume_to_report", "volume_to_volume")


def in_words(likeness, right, depths):
    """Every measure over every order in which the tied answers might stand, one by one."""
    found = []
    for order in itertools.permutations(range(len(likeness))):
        if any(likeness[a] < likeness[b] for a, b in itertools.pairwise(order)):
            continue
        hits = [place for place, answer in enumerate(order, start=1) if right[answer]]
        precision = np.mean([(number + 1) / place for number, place in enumerate(hits)])
        found.append([*(float(hits[0] <= depth) for depth in depths), precision, hits[0]])
    return np.mean(found, axis=0)


@pytest.mark.parametrize("seed", range(30))
def test_ranks_with_ties_are_means_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    likeness = rng.integers(0, 4, 7).astype(float)
    right = rng.random(7) < 0.4
    right[rng.integers(7)] = True
    np.testing.assert_allclose(rank_measures(likeness, right, (1, 2, 5)), in_words(likeness, right, (1, 2, 5)))


def test_without_ties_the_measures_are_the_textbook_ones():
    found = rank_measures(np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, True]), (1, 2))
    np.testing.assert_allclose(found, [0, 1, (1 / 2 + 2 / 4) / 2, 2])


def test_the_median_of_drawn_rows_is_the_median_of_the_rows_repeated():
    rng = np.random.default_rng(0)
    values, weights = rng.integers(0, 9, 11).astype(float), rng.integers(0, 3, (50, 11)).astype(float)
    slow = [np.median(np.repeat(values, row.astype(int))) for row in weights]
    np.testing.assert_allclose(weighted_median(values)(weights), slow)


def search(vectors, **changes):
    count = len(vectors)
    plain = Search(
        name="test",
        queries=vectors,
        answers=vectors,
        right=lambda rows: np.equal.outer(np.asarray(rows) % 3, np.arange(count) % 3),
        homes=np.arange(count),
        subjects=np.arange(count) // 2,
        owners=np.arange(count) // 2,
    )
    return replace(plain, **changes)


def test_a_subjects_own_studies_are_never_an_answer():
    """Each study's nearest is its subject's other one, which has the same findings; it must not be found."""
    vectors = np.repeat(np.eye(3), 2, axis=0)
    right = search(vectors, right=lambda rows: np.equal.outer(np.asarray(rows) // 2, np.arange(6) // 2))
    assert np.isnan(rank(right).column("map")).all()
    allowed = replace(right, owners=None)
    assert (rank(allowed).column("map") == 1).all()


def test_all_answers_alike_score_what_chance_does():
    nothing = rank(search(np.zeros((12, 2)), owners=None))
    np.testing.assert_allclose(nothing.column("r@1"), 4 / 12)
    np.testing.assert_allclose(nothing.share, 4 / 12)
    np.testing.assert_allclose(nothing.column("r@5"), 1 - np.prod([(8 - n) / (12 - n) for n in range(5)]))


def test_rounding_decides_nothing():
    """What differs by less than sums are sure of is tied, though it would put every right answer first."""
    almost = np.ones((12, 1)) + 1e-9 * (np.arange(12)[:, None] % 3 == 1)
    found = rank(search(almost, owners=None))
    np.testing.assert_array_equal(found.values, rank(search(np.zeros((12, 1)), owners=None)).values)
    apart = rank(search(np.ones((12, 1)) + 1e-5 * (np.arange(12)[:, None] % 3 == 1), owners=None))
    assert (apart.column("map")[1::3] == 1).all(), "and what differs by more is not"


def test_pools_have_one_size_hold_a_querys_own_and_chance_is_k_of_it():
    single = search(np.zeros((23, 2)), right=lambda rows: np.equal.outer(rows, np.arange(23)), owners=None)
    found = rank(single, pool=10, rounds=3, seed=1)
    np.testing.assert_allclose(found.column("r@5"), 0.5)
    np.testing.assert_allclose(found.column("r@1"), 0.1)
    assert "r@10" not in found.measures
    with pytest.raises(ValueError, match="pool is 24, and test has 23 answers"):
        rank(single, pool=24)


def test_smaller_pools_are_easier_and_the_same_seed_cuts_the_same():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 3))
    noisy = search(vectors, queries=vectors + rng.normal(size=(60, 3)), owners=None)
    noisy = replace(noisy, right=lambda rows: np.equal.outer(rows, np.arange(60)))
    whole, pooled = rank(noisy).column("map").mean(), rank(noisy, pool=12, rounds=5).column("map")
    assert pooled.mean() > whole + 0.1
    np.testing.assert_array_equal(pooled, rank(noisy, pool=12, rounds=5).column("map"))
    assert not np.array_equal(pooled, rank(noisy, pool=12, rounds=5, seed=9).column("map"))


def test_two_reconstructions_of_one_scan_are_one_item_and_technique_is_not_read():
    reports = [
        "TECHNIQUE: t1w.\nFINDINGS: A cyst.",
        "TECHNIQUE: t1w and t2w.\nFINDINGS:  A   cyst.",
        "FINDINGS: A cyst.",
        None,
        None,
        "FINDINGS: Nothing.",
    ]
    items = list_items(reports, np.array([0, 0, 1, 1, 1, 0]))
    assert items.rows.tolist() == [0, 2, 3, 4, 5] and items.doubled == 1
    assert items.text.tolist() == [0, 0, -1, -1, 1] and items.texts == ("A cyst.", "Nothing.")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted(studies=40, *, noise=0.3, seed=0):
    """Studies of 8 kinds; features and aligned vectors show the kind; the second sequence adds what all have."""
    rng = np.random.default_rng(seed)
    kind = np.arange(studies) % 8
    acquired = np.ones((studies, 2), dtype=bool)
    acquired[::3, 1] = False
    vectors = np.eye(8)[kind][:, None] + noise * rng.normal(size=(studies, 2, 8))
    features = vectors.copy()
    features[:, 1] += 30
    labels = (kind[:, None] >> np.arange(3)) & 1
    return StoreEmbeddings(
        features=(features * acquired[..., None]).astype(np.float32),
        aligned=(unit(vectors) * acquired[..., None]).astype(np.float32),
        acquired=acquired,
        labels=labels.astype(np.float32),
        labelled=np.ones((studies, 3), dtype=bool),
        subjects=np.arange(studies) // 2,
        studies=tuple(f"study-{at}" for at in range(studies)),
        findings=("a", "b", "c"),
        sequences=("t1w", "flair"),
    )


def test_a_study_is_the_mean_over_acquired_sequences_as_in_zero_shot():
    found = planted()
    mean = study_vectors(found.aligned, found.acquired)
    np.testing.assert_allclose(mean[0], found.aligned[0, 0])
    np.testing.assert_allclose(mean[1], found.aligned[1].mean(axis=0), rtol=1e-6)
    texts = unit(np.random.default_rng(0).normal(size=(4, 8)))
    np.testing.assert_allclose(mean @ texts.T, study_scores(found.aligned, found.acquired, texts))
    assert np.isnan(study_vectors(found.aligned[:1], np.zeros((1, 2), dtype=bool))).all()


def test_what_all_volumes_of_a_sequence_share_makes_no_two_studies_alike():
    """Were the common part left in, studies with the second sequence would be most like each other."""
    found = planted(noise=0.05)
    likeness = volume_vectors(found) @ volume_vectors(found).T
    kind = np.arange(40) % 8
    both = found.acquired.all(axis=1)
    assert likeness[np.ix_(both, both)][kind[both][:, None] != kind[both]].mean() < 0.2
    np.fill_diagonal(likeness, -1)
    assert (kind[likeness.argmax(axis=1)] == kind).mean() > 0.95
    rounded = (1 + 1e-7 * np.arange(40)[:, None, None]) * np.ones_like(found.features)
    assert (volume_vectors(replace(found, features=rounded.astype(np.float32))) == 0).all(), "rounding is no difference"


def test_reference_statistics_are_those_of_the_reference():
    found = planted()
    shifted = replace(found, features=found.features + 5 * found.acquired[..., None].astype(np.float32))
    np.testing.assert_allclose(volume_vectors(shifted), volume_vectors(found), atol=1e-4)
    assert not np.allclose(volume_vectors(shifted, reference=found), volume_vectors(found), atol=0.1)


def result_of(found, texts, *, control=None, **changes):
    """Reports by kind: texts (8, d) are the vectors of the eight reports."""
    items = list_items([f"Kind {at % 8}." for at in range(len(found))], found.subjects)
    arms = {MODEL: (found, texts)}
    if control is not None:
        arms[SCRATCH] = control
    return retrieval_result(arms, items, Config(draws=200).but(**changes), directions=EVERY)


def test_planted_likeness_is_found_in_every_direction_and_beats_a_control_without_it():
    blind = replace(planted(), features=np.ones((40, 2, 8), np.float32), aligned=np.ones((40, 2, 8), np.float32))
    result = result_of(planted(), np.eye(8), control=(blind, np.eye(8)))
    for name in (TEXT_FIRST, VOLUME_FIRST, SAME, SHARED):
        for metric in ("r@1", "map"):
            assert result.score(name, metric=metric).low > result.score(name, metric=metric, arm=CHANCE).high
        blank, chance = (result.score(name, metric="map", arm=arm) for arm in (SCRATCH, CHANCE))
        assert blank.value == pytest.approx(chance.value)
    assert all(row.low > 0 and row.p < 0.05 for row in result.comparisons if row.metric == "map")
    assert {row.name for row in result.comparisons} == {TEXT_FIRST, VOLUME_FIRST, SAME, SHARED}
    # Five studies a kind, of five subjects: all of them are right answers to its report, and the notes say so.
    assert result.score(TEXT_FIRST, metric="r@1").prevalence == pytest.approx(1 / 8)
    notes = " ".join(result.notes)
    assert "40 studies have the words of another subject's" in notes and "pool of 40" in notes and "pool of 8;" in notes
    assert "r@1 0.125" in notes and "the answers stayed as they are" in notes


def test_same_findings_and_a_shared_one_are_what_they_say():
    found = planted()
    items = list_items([None] * 40, found.subjects)
    same, shared = build_searches(found, np.zeros((0, 0)), items, directions=("volume_to_volume",), space="features")
    rows = np.arange(40)
    labels = found.labels > 0.5
    for one in (3, 8):
        np.testing.assert_array_equal(same.right(rows)[one], (labels == labels[one]).all(axis=1))
        np.testing.assert_array_equal(shared.right(rows)[one], (labels & labels[one]).any(axis=1))
    # Nothing present is the same only where the same was looked for.
    labelled = found.labelled.copy()
    labelled[8, 2] = False
    other = replace(found, labelled=labelled)
    same, _ = build_searches(other, np.zeros((0, 0)), items, directions=("volume_to_volume",), space="features")
    assert not same.right(rows)[8, [0, 16, 24]].any() and same.right(rows)[0, [16, 24]].all()


def test_a_rank_is_kept_for_every_study():
    result = result_of(planted(noise=0.01), np.eye(8))
    assert len(result.predictions) == 40
    ranks = [[value for name, value in row.measures.items() if name.endswith("/rank")] for row in result.predictions]
    assert all(set(found) == {1.0} and len(found) >= 3 for found in ranks)


def test_what_is_kept_of_every_study_has_the_mean_that_is_printed():
    """So that two models may be compared query by query."""
    result = result_of(planted(noise=3.0), np.eye(8))
    for measure in ("r@5", "map"):
        kept = [row.measures[f"report to volume/{measure}"] for row in result.predictions]
        assert 0 < np.mean(kept) < 1
        assert np.mean(kept) == pytest.approx(result.score("report to volume", metric=measure).value)
    assert result.predictions[0].labels == {"a": 0.0, "b": 0.0, "c": 0.0}


class Brightness(Recipe):
    """A study is as bright as its report says; `deaf` recipes have no text side."""

    class Config(Recipe.Config):
        def build(self, sequences):
            return Brightness(self, sequences)

    def __init__(self, config, sequences):
        super().__init__()
        self.config, self.sequences = config, sequences
        self.scale = torch.nn.Parameter(torch.randn(1))

    def losses(self, batch, *, progress):
        return {}

    def encode(self, batch):
        mean = batch.volumes.mean(dim=(2, 3, 4))
        return torch.stack([mean, mean.square()], dim=-1) * batch.acquired[..., None]

    def align_volumes(self, batch):
        angle = batch.volumes.amax(dim=(2, 3, 4)) / 10 * 1.5
        return torch.stack([angle.cos(), angle.sin()], dim=-1) * batch.acquired[..., None]

    def align_texts(self, texts):
        angle = torch.tensor([float(text.split()[-1].rstrip(".")) for text in texts]) / 10 * 1.5
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


class Deaf(Brightness):
    align_volumes, align_texts = Recipe.align_volumes, Recipe.align_texts


@pytest.fixture(scope="module")
def store() -> WholeFields:
    """16 simulated studies of 14 subjects whose peak the report names; two are reconstructed twice."""
    rows, fields = [], {}
    for number in range(16):
        kind, key = number % 14, f"study-{number:02d}"
        voxels = np.zeros((6, 6, 6), dtype=np.int16)
        voxels[:3] = np.linspace(1, 100, 108).reshape(3, 6, 6)
        voxels[5, 5, 5] = 200 + 100 * kind
        fields[key, "t1w"] = voxels
        rows.append(
            make_row(
                key,
                subject=f"s{kind}",
                sequences=("t1w",),
                shape=(6, 6, 6),
                mean=0.0,
                std=400.0,
                split="test" if kind else "val",
                report=f"TECHNIQUE: {number}.\nFINDINGS: Peak {kind}." if number != 5 else None,
                labels={"high": float(kind > 6)},
            )
        )
    return WholeFields(rows, fields)


LOADER = LoaderConfig(batch_size=4, workers=0)


def test_a_store_is_searched_in_every_direction(store):
    recipe = Brightness(Brightness.Config(), ("t1w",))
    result = score(recipe, store, Config(draws=50, loader=LOADER))
    assert result.simulated and result.split == "test" and result.task == "retrieval"
    assert {score.arm for score in result.scores} == {MODEL, SCRATCH, IMAGE_REMOVED, CHANCE}
    notes = " ".join(result.notes)
    assert "12 studies with a report" in notes and "Left out: 1 studies" in notes and "Without a report: 1" in notes
    blind, chance = (result.score(TEXT_FIRST, metric="map", arm=arm) for arm in (IMAGE_REMOVED, CHANCE))
    assert blind.value == pytest.approx(chance.value)
    assert result.settings["pool"] is None
    only = score(recipe, store, Config(draws=20, loader=LOADER, directions=("volume_to_report",), pool=5))
    assert {row.name for row in only.scores} == {VOLUME_FIRST} and "pool_5" in only.variant
    assert any("Random pools of 5 answers" in note for note in only.notes)


def test_a_recipe_without_a_text_side_finds_volumes_and_says_what_it_cannot(store):
    deaf = Deaf(Brightness.Config(), ("t1w",))
    result = score(deaf, store, Config(draws=20, controls=False, loader=LOADER))
    assert {row.name for row in result.scores} == {SAME, SHARED}
    with pytest.raises(ValueError, match=r"report_to_volume: Deaf has no text side.*Possible here: volume_to_volume"):
        score(deaf, store, Config(directions=("report_to_volume",)))
    with pytest.raises(ValueError, match="volumes=features"):
        score(deaf, store, Config(volumes="shared"))


def test_a_store_without_reports_or_labels_says_so(store):
    recipe = Brightness(Brightness.Config(), ("t1w",))
    unread = store.but(report=None)
    assert {row.name for row in score(recipe, unread, Config(draws=20, loader=LOADER)).scores} == {SAME, SHARED}
    with pytest.raises(ValueError, match=r"no study of the split has a report.*Possible here: none"):
        score(recipe, store.but(report=None, labels={}), Config(loader=LOADER))
    with pytest.raises(ValueError, match="no study to load"):
        score(recipe, store, Config(split="train", loader=LOADER))
