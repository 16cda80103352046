"""MONAI as a second opinion on our scores and windows; where the two differ, the difference is said and held here.

The agreed differences (docs/decisions/0006):

- both empty: MONAI's Dice is NaN with `ignore_empty`, as ours is; one empty: ours says by rule, MONAI gives NaN or inf;
- an edge of the volume: both count region voxels at the volume's own border as surface;
- HD95: MONAI takes the larger of two directed percentiles, as ours does, but its percentile is torch's in float32;
- the least weight of a window's corner, 1e-3: of the largest weight in ours, of 1 in MONAI, whose middle weighs less
  than 1 where an edge is even: 0.69 for 8^3, 0.997 for 96^3;
- windows: MONAI steps by window x (1 - overlap) and moves the last window back, ours spreads them evenly: the same
  where the steps fit, within what overlapping windows disagree by elsewhere.
"""

import itertools
import warnings

import numpy as np
import pytest
import torch

from tomoglot.tasks.heads.window import SIGMA, gaussian, slide, spread
from tomoglot.tasks.scores.regions import measure_region
from tomoglot.tasks.scores.surfaces import dice, hd95_mm, nsd, surface_distances_mm

monai = pytest.importorskip("monai", reason="the second opinion needs the dev extra: pip install 'tomoglot[dev]'")
with warnings.catch_warnings():
    # MONAI's own imports warn about what it will change; none of it is about what is compared here.
    warnings.simplefilter("ignore")
    from monai.data.utils import compute_importance_map
    from monai.inferers import sliding_window_inference
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )
    from monai.metrics.utils import get_mask_edges

# MONAI 1.6 warns of an argument that its own metrics pass on.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

SPACINGS = [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (0.7, 1.3, 2.9)]
EMPTY = np.zeros((12, 11, 9), dtype=bool)


def blobs(seed: int, shape: tuple[int, int, int] = (12, 11, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping random regions, ragged, some of them at the edge of the volume."""
    rng = np.random.default_rng(seed)
    core = np.zeros(shape, dtype=bool)
    core[tuple(slice(rng.integers(0, 3), rng.integers(5, size + 1)) for size in shape)] = True
    found = [core & (rng.random(shape) < 0.8) | (rng.random(shape) < 0.02) for _ in range(2)]
    return found[0], found[1]


def theirs(region: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(region)[None, None]


@pytest.mark.parametrize("seed", range(8))
def test_dice_is_monais(seed: int) -> None:
    predicted, true = blobs(seed)
    assert dice(predicted, true) == pytest.approx(compute_dice(theirs(predicted), theirs(true)).item(), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_surface_is_monais(seed: int) -> None:
    """Through the distances: of each surface voxel to a region of one voxel, so that no surface can hide."""
    for region in blobs(seed):
        point = EMPTY.copy()
        point[0, 0, 0] = True
        edge, _ = get_mask_edges(region, point, crop=False)
        slow = np.sqrt((np.argwhere(edge) ** 2).sum(axis=1))
        ours, _ = surface_distances_mm(region, point, (1.0, 1.0, 1.0))
        np.testing.assert_allclose(np.sort(ours), np.sort(slow), atol=1e-6)


@pytest.mark.parametrize(("seed", "spacing"), list(itertools.product(range(4), SPACINGS)))
def test_distances_are_monais(seed: int, spacing: tuple[float, float, float]) -> None:
    predicted, true = blobs(seed)
    from_predicted, from_true = surface_distances_mm(predicted, true, spacing)
    pair = {"y_pred": theirs(predicted), "y": theirs(true), "include_background": True, "spacing": list(spacing)}
    assert hd95_mm(from_predicted, from_true) == pytest.approx(
        compute_hausdorff_distance(**pair, percentile=95).item(), rel=1e-5
    )
    hausdorff = max(from_predicted.max(), from_true.max())
    assert hausdorff == pytest.approx(compute_hausdorff_distance(**pair).item(), rel=1e-5)
    assert from_predicted.mean() == pytest.approx(compute_average_surface_distance(**pair).item(), rel=1e-5)
    both = np.concatenate([from_predicted, from_true]).mean()
    halves = (from_predicted.mean() + from_true.mean()) / 2
    symmetric = compute_average_surface_distance(**pair, symmetric=True).item()
    assert symmetric == pytest.approx(both, rel=1e-5) or symmetric == pytest.approx(halves, rel=1e-5)


@pytest.mark.parametrize(("seed", "spacing"), list(itertools.product(range(4), SPACINGS)))
@pytest.mark.parametrize("tolerance_mm", [0.0, 1.0, 2.0])
def test_surface_dice_by_voxels_is_monais(seed: int, spacing: tuple[float, float, float], tolerance_mm: float) -> None:
    """Counting surface voxels; MONAI's `use_subvoxels`, which weighs patches by area, is the source's and not ours."""
    predicted, true = blobs(seed)
    ours = nsd(*surface_distances_mm(predicted, true, spacing), tolerance_mm=tolerance_mm)
    their = compute_surface_dice(
        theirs(predicted), theirs(true), [tolerance_mm], include_background=True, spacing=list(spacing)
    )
    assert ours == pytest.approx(their.item(), abs=1e-6)


def test_empty_regions_are_ours_by_rule_and_undefined_in_monai() -> None:
    predicted, true = blobs(0)
    assert np.isnan(dice(EMPTY, EMPTY)) and compute_dice(theirs(EMPTY), theirs(EMPTY)).isnan().all()
    # The region is not there: no Dice in either, and ours says how much was called.
    assert compute_dice(theirs(predicted), theirs(EMPTY)).isnan().all()
    assert set(measure_region(predicted, EMPTY, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0)) == {"false_positive_ml"}
    # It is there and was missed: 0 in both, but MONAI's distance is undefined, so the study would leave the mean.
    missed = measure_region(EMPTY, true, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0)
    assert missed["dice"] == 0 == compute_dice(theirs(EMPTY), theirs(true)).item()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*all 0.*")
        distance = compute_hausdorff_distance(theirs(EMPTY), theirs(true), include_background=True, percentile=95)
        surface = compute_surface_dice(theirs(EMPTY), theirs(true), [1.0], include_background=True)
    assert not distance.isfinite().any()
    assert missed["hd95_mm"] == pytest.approx(np.linalg.norm(EMPTY.shape))
    assert missed["nsd"] == 0 == surface.nan_to_num(0).item()


@pytest.mark.parametrize("window", [(9, 9, 9), (9, 7, 11), (8, 8, 8), (8, 6, 10)])
def test_the_weights_of_a_window_are_monais_but_for_the_floor_of_even_edges(window: tuple[int, int, int]) -> None:
    their = compute_importance_map(window, mode="gaussian", sigma_scale=SIGMA)
    if all(edge % 2 for edge in window):
        torch.testing.assert_close(gaussian(window), their, atol=1e-6, rtol=1e-5)
    floor = 1e-3 / their.max()
    torch.testing.assert_close(gaussian(window).clamp(min=floor.item()), their / their.max(), atol=1e-6, rtol=1e-5)


def not_local(shown: torch.Tensor) -> torch.Tensor:
    """A network whose answer at a voxel depends on where the window lies, as a real one's does."""
    ramp = torch.linspace(0, 1, shown.shape[2])[:, None, None]
    return (shown + 0.3 * shown.mean(dim=(2, 3, 4), keepdim=True) + 0.1 * ramp).sigmoid()


@pytest.mark.parametrize("shape", [(17, 13, 21), (9, 9, 9)])
def test_windows_that_fit_give_monais_volume(shape: tuple[int, int, int]) -> None:
    volumes = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    their = sliding_window_inference(volumes, (9, 9, 9), 1, not_local, overlap=0.5, mode="gaussian", sigma_scale=SIGMA)
    torch.testing.assert_close(slide(not_local, volumes, window=(9, 9, 9)), their, atol=2e-5, rtol=1e-4)


def test_windows_that_do_not_fit_lie_elsewhere_and_agree_on_what_is_local() -> None:
    """An edge of 19: MONAI starts at 0 4 8 11, ours at 0 4 7 11. A local network cannot tell; another one can."""
    assert spread(19, 8, 0.5) == [0, 4, 7, 11]
    volumes = torch.randn(1, 1, 19, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"overlap": 0.5, "mode": "gaussian", "sigma_scale": SIGMA}
    local = sliding_window_inference(volumes, (8, 8, 8), 1, torch.sigmoid, **options)
    torch.testing.assert_close(slide(torch.sigmoid, volumes, window=(8, 8, 8)), local, atol=2e-5, rtol=1e-4)
    their = sliding_window_inference(volumes, (8, 8, 8), 1, not_local, **options)
    gap = (slide(not_local, volumes, window=(8, 8, 8)) - their).abs()
    assert 0 < gap.max() < 0.03


def test_a_volume_smaller_than_the_window_is_filled_up_at_its_end_by_ours_and_at_both_by_monai() -> None:
    volumes = torch.randn(1, 1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"overlap": 0.5, "mode": "gaussian", "sigma_scale": SIGMA}
    local = sliding_window_inference(volumes, (8, 8, 8), 1, torch.sigmoid, **options)
    torch.testing.assert_close(slide(torch.sigmoid, volumes, window=(8, 8, 8)), local, atol=2e-5, rtol=1e-4)
