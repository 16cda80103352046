"""The loader's stream: a function of (seed, epoch, position) and of nothing else."""

import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from tomoglot.batches.augment import Augment
from tomoglot.batches.loader import Loader, LoaderConfig

VARIED = Augment.Config(flip_probability=(0.5, 0.5, 0.5), scale=0.2, shift=0.3, gamma=0.2, noise=0.1, jitter_voxels=1)
CONFIG = LoaderConfig(
    batch_size=3, crop_voxels=(4, 4, 5), workers=0, seed=5, augment=VARIED, drop_sequence_probability=0.3, masks=True
)


def train_loader(store, **changes):
    parallel = {name: changes.pop(name) for name in ("rank", "world") if name in changes}
    return Loader(store, CONFIG.but(**changes), split="train", train=True, **parallel)


def assert_same(left, right):
    assert left.studies == right.studies
    assert left.reports == right.reports
    for name in ("volumes", "acquired", "affine", "subjects", "labels", "labelled", "masks"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name


@pytest.mark.parametrize("prefetch", [1, 4])
def test_the_stream_is_the_same_with_and_without_workers(store, prefetch):
    inline = islice(train_loader(store), 9)
    threaded = islice(train_loader(store, workers=2, prefetch=prefetch), 9)
    for left, right in zip(inline, threaded, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumed_by_seek_goes_on_as_if_never_stopped(store, workers):
    uninterrupted = list(islice(train_loader(store), 8))
    first = train_loader(store, workers=workers)
    for _ in islice(first, 3):
        pass
    assert first.position == 9  # read ahead, but only three batches were yielded
    second = train_loader(store, workers=workers)
    second.seek(first.position)
    for left, right in zip(uninterrupted[3:], islice(second, 5), strict=True):
        assert_same(left, right)


def test_a_second_iterator_goes_on_where_the_first_was_left(store):
    loader = train_loader(store, workers=2)
    parts = list(islice(loader, 2)) + list(islice(loader, 2))
    for left, right in zip(parts, islice(train_loader(store), 4), strict=True):
        assert_same(left, right)


def test_two_ranks_interleave_to_the_stream_of_one_process(store):
    whole = train_loader(store, batch_size=4)
    ranks = [train_loader(store, batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for together, left, right in zip(islice(whole, 5), islice(ranks[0], 5), islice(ranks[1], 5), strict=True):
        assert together.studies == left.studies + right.studies
        assert torch.equal(together.volumes, torch.cat([left.volumes, right.volumes]))
    assert ranks[0].position == ranks[1].position == whole.position == 20


def test_every_study_is_seen_once_an_epoch_and_epochs_differ(store):
    stream = [study for batch in islice(train_loader(store), 14) for study in batch.studies]
    epochs = [stream[begin : begin + 7] for begin in range(0, 42, 7)]
    for epoch in epochs:
        assert sorted(epoch) == [f"key-{number:02d}" for number in range(7)]
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_seeds_differ(store):
    orders = {tuple(study for batch in islice(train_loader(store, seed=seed), 3) for study in batch.studies)
              for seed in range(5)}  # fmt: skip
    assert len(orders) > 3


def test_a_study_is_cropped_anew_each_time(store):
    crops = [
        batch.affine[slot]
        for batch in islice(train_loader(store, crop_voxels=(3, 3, 2)), 21)
        for slot, study in enumerate(batch.studies)
        if study == "key-00"
    ]
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) > 4


def test_leaving_the_loop_ends_the_threads(store):
    before = set(threading.enumerate())
    for _ in train_loader(store, workers=2, prefetch=4):
        assert set(threading.enumerate()) - before
        break
    assert set(threading.enumerate()) == before


def test_a_failing_read_reaches_the_caller_and_ends_the_threads(store, monkeypatch):
    def broken(*_, **__):
        raise ValueError("chunk digest differs")

    monkeypatch.setattr(store, "read_crop", broken)
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="chunk digest differs"):
        next(iter(train_loader(store, workers=2)))
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_walks_the_rows_once_in_order_whatever_the_settings_of_training(store, workers):
    loader = Loader(store, CONFIG.but(workers=workers, batch_size=4), split=None, train=False)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert [study for batch in batches for study in batch.studies] == [row.key for row in store.rows]
        assert loader.position == 10
    plain = Loader(store, LoaderConfig(crop_voxels=(4, 4, 5), workers=0, batch_size=10), split=None, train=False)
    assert torch.equal(torch.cat([batch.volumes for batch in batches]), next(iter(plain)).volumes)


def test_ranks_share_the_rows_of_an_evaluation(store):
    seen = [
        [batch.studies for batch in Loader(store, CONFIG, split=None, train=False, rank=rank, world=3)]
        for rank in range(3)
    ]
    assert [len(batches) for batches in seen] == [2, 1, 1]
    assert sorted(study for batches in seen for batch in batches for study in batch) == [r.key for r in store.rows]


def test_channels_that_were_not_acquired_are_zero_and_say_so(store):
    batch = next(iter(Loader(store, LoaderConfig(batch_size=10, workers=0), split=None, train=False)))
    assert batch.sequences == ("t1w", "t2w", "flair")
    expected = [[name in row.sequences for name in batch.sequences] for row in store.rows]
    assert batch.acquired.tolist() == expected
    assert torch.equal(batch.volumes.abs().sum((2, 3, 4)) > 0, batch.acquired)
    assert batch.volumes.dtype == torch.float32 and batch.volumes.is_contiguous()


def test_sequences_come_in_the_order_asked_for_and_may_be_unknown_to_the_store(store):
    config = LoaderConfig(batch_size=10, workers=0)
    asked = next(iter(Loader(store, config.but(sequences=("flair", "ct", "t1w")), split=None, train=False)))
    whole = next(iter(Loader(store, config, split=None, train=False)))
    assert torch.equal(asked.volumes[:, 2], whole.volumes[:, 0])
    assert torch.equal(asked.volumes[:, 0], whole.volumes[:, 2])
    assert not asked.acquired[:, 1].any()


def test_studies_without_any_asked_sequence_are_left_out_and_counted(store):
    loader = Loader(store, LoaderConfig(sequences=("flair",), workers=0), split=None, train=False)
    assert (loader.num_studies, loader.num_left_out) == (5, 5)
    assert all(batch.acquired.all() for batch in loader)


@pytest.mark.parametrize(("split", "sequences"), [("test", None), ("train", ("ct",))])
def test_an_empty_selection_says_what_was_asked_and_what_exists(store, split, sequences):
    with pytest.raises(ValueError, match=r"'(test|train)'.*(ct|t1w).*train, val.*t1w, t2w, flair"):
        Loader(store, LoaderConfig(sequences=sequences), split=split, train=True)


def test_hiding_sequences_hides_some_and_never_all(store):
    batches = list(islice(train_loader(store, drop_sequence_probability=0.9), 30))
    acquired = torch.cat([batch.acquired for batch in batches])
    assert (acquired.sum(1) == 1).float().mean() > 0.5
    assert acquired.any(1).all()
    shown = torch.cat([batch.volumes for batch in batches]).abs().sum((2, 3, 4)) > 0
    assert not (shown & ~acquired).any()


def test_labels_subjects_and_masks_say_what_is_known(store):
    config = LoaderConfig(batch_size=10, workers=0, masks=True)
    batch = next(iter(Loader(store, config, split=None, train=False, findings=("oedema", "mass"))))
    assert batch.findings == ("oedema", "mass")
    assert batch.labels[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert batch.labelled[:2].tolist() == [[True, True], [False, True]]
    assert batch.subjects.tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]
    assert (batch.masks[1] == -1).all()
    assert np.array_equal(batch.masks[0].numpy(), store.masks["key-00"])
    assert batch.tokens is None and batch.reports[3] is None


def test_subject_numbers_do_not_depend_on_the_split(store):
    config = LoaderConfig(batch_size=10, workers=0)
    whole = next(iter(Loader(store, config, split=None, train=False)))
    part = next(iter(Loader(store, config, split="val", train=False)))
    assert part.subjects.tolist() == whole.subjects[7:].tolist()


def test_no_findings_give_empty_labels(store):
    batch = next(iter(Loader(store, LoaderConfig(workers=0, batch_size=2), split=None, train=False, findings=())))
    assert batch.labels.shape == batch.labelled.shape == (2, 0)


def test_whole_fields_of_different_sizes_are_refused(store_of, row_of):
    store = store_of([row_of(0), row_of(1, shape=(7, 5, 4))])
    with pytest.raises(ValueError, match="2 different sizes; set crop_voxels"):
        Loader(store, LoaderConfig(), split=None, train=True)


def test_positions_that_do_not_exist_are_refused(store):
    with pytest.raises(ValueError, match="not before 0"):
        train_loader(store).seek(-1)
    with pytest.raises(ValueError, match="only a training loader"):
        Loader(store, CONFIG, split=None, train=False).seek(2)
    with pytest.raises(ValueError, match="rank 2"):
        train_loader(store, rank=2, world=2)


def test_positions_of_one_epoch_are_drawn_apart(store):
    only_jitter = Augment.Config(jitter_voxels=200)
    (batch,) = islice(train_loader(store, batch_size=7, crop_voxels=(6, 5, 4), augment=only_jitter), 1)
    assert len({tuple(affine.flatten().tolist()) for affine in batch.affine}) == 7


def test_leaving_the_loop_cancels_what_was_not_begun(store, monkeypatch):
    reads = []
    read = store.read_crop

    def slow(*place, **asked):
        reads.append(place)
        time.sleep(0.02)
        return read(*place, **asked)

    monkeypatch.setattr(store, "read_crop", slow)
    next(islice(train_loader(store, workers=1, prefetch=8), 1))
    assert 3 <= len(reads) < 15  # of 27 that were handed out
