"""The loader on a store that was really written: files in, batches out."""

from itertools import islice

import numpy as np
import pytest
import torch

from tomoglot.batches.augment import Augment
from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.geometry import to_world
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.writer import write_store
from tomoglot.studies.nifti import write_nifti
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Report, Series, Study, Volume

AFFINE = np.array([[2.0, 0, 0, -20], [0, 2.0, 0, -30], [0, 0, 2.0, 10], [0, 0, 0, 1]])
SHAPE = (20, 18, 16)
TRAIN = LoaderConfig(batch_size=2, crop_voxels=(12, 12, 20), seed=1, masks=True, augment=Augment.Config(noise=0.1))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    studies = []
    for number in range(6):
        series = []
        for name in ("t1w", "flair") if number % 2 else ("t1w",):
            voxels = rng.integers(1, 900, SHAPE).astype(np.float32)
            voxels[:4] = 0
            path = folder / f"{number}_{name}.nii.gz"
            write_nifti(path, Volume(voxels=voxels, affine=AFFINE))
            series.append(Series(sequence=name, path=path))
        mask = folder / f"{number}_mask.nii.gz"
        lesion = np.zeros(SHAPE, np.uint8)
        lesion[8:10, 3:6, number : number + 2] = 1
        write_nifti(mask, Volume(voxels=lesion, affine=AFFINE))
        studies.append(
            Study(
                subject=f"s{number}",
                study="v1",
                series=tuple(series),
                report=Report(text="A lesion."),
                labels={"mass": float(number % 2)},
                mask=mask,
                split="train" if number < 5 else "test",
                simulated=True,
            )
        )
    write_store(Sources(studies=studies, rejected=[]), folder / "store", Plan(chunk_voxels=8))
    return folder / "store"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_stream_of_a_written_store_is_the_same_with_and_without_workers(written, workers):
    inline = Loader(Store.open(written), TRAIN.but(workers=0), split="train", train=True)
    threaded = Loader(Store.open(written), TRAIN.but(workers=workers), split="train", train=True)
    for left, right in zip(islice(inline, 6), islice(threaded, 6), strict=True):
        assert left.studies == right.studies
        assert torch.equal(left.volumes, right.volumes) and torch.equal(left.masks, right.masks)
        assert torch.equal(left.affine, right.affine)


def test_whole_fields_are_standardised_and_lie_where_the_files_say(written):
    loader = Loader(Store.open(written), LoaderConfig(batch_size=6, workers=2, masks=True), split=None, train=False)
    (batch,) = loader
    assert batch.volumes.shape == (6, 2, *SHAPE) and batch.sequences == ("flair", "t1w")
    assert batch.acquired.tolist() == [[number % 2 == 1, True] for number in range(6)]
    foreground = batch.volumes[:, 1, 4:]
    assert abs(float(foreground.mean())) < 0.01 and abs(float(foreground.std()) - 1) < 0.01
    assert (batch.volumes[:, 1, :4] == 0).all()
    torch.testing.assert_close(batch.affine, torch.from_numpy(AFFINE).float().expand(6, 4, 4))
    assert batch.masks.flatten(1).sum(1).tolist() == [2 * 3 * 2] * 6
    assert batch.findings == ("mass",) and batch.labels[:, 0].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_lesion_keeps_its_world_position_in_every_crop(written):
    loader = Loader(Store.open(written), TRAIN.but(crop_voxels=(14, 14, 14)), split="train", train=True)
    whole = {}
    for batch in Loader(Store.open(written), LoaderConfig(masks=True), split="train", train=False):
        for key, mask in zip(batch.studies, batch.masks.numpy(), strict=True):
            whole[key] = {tuple(place) for place in to_world(AFFINE, np.argwhere(mask == 1)).tolist()}
    seen = 0
    for batch in islice(loader, 10):
        for key, mask, affine in zip(batch.studies, batch.masks.numpy(), batch.affine.numpy(), strict=True):
            places = {tuple(place) for place in to_world(affine, np.argwhere(mask == 1)).tolist()}
            assert places <= whole[key]
            seen += len(places)
    assert seen > 0


def test_an_unknown_split_says_what_there_is(written):
    with pytest.raises(ValueError, match=r"split 'vall'.*splits test, train and the sequences flair, t1w"):
        Loader(Store.open(written), TRAIN, split="vall", train=True)
