"""Patches tile exactly, come back exactly, and are normed each by itself."""

import pytest
import torch

from tomoglot.batches.mask import block_mask, voxel_mask
from tomoglot.encoders.patches import patch_grid, patch_targets, patchify, put_visible, take_visible, unpatchify

PATCHES = [(4, 2, 3), (8, 8, 1), (2, 2, 6)]


def patchify_in_words(volumes, patch):
    rows = []
    for i in range(0, volumes.shape[2], patch[0]):
        for j in range(0, volumes.shape[3], patch[1]):
            for k in range(0, volumes.shape[4], patch[2]):
                box = volumes[:, :, i : i + patch[0], j : j + patch[1], k : k + patch[2]]
                rows.append(box.flatten(1))
    return torch.stack(rows, dim=1)


def volumes(seed=0):
    return torch.randn(2, 3, 8, 16, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("patch", PATCHES)
def test_patches_are_their_definition_and_come_back(patch):
    given = volumes()
    patches = patchify(given, patch)
    assert torch.equal(patches, patchify_in_words(given, patch))
    assert torch.equal(unpatchify(patches, patch, patch_grid((8, 16, 6), patch)), given)


def test_an_image_is_a_volume_of_one_plane():
    image = torch.randn(1, 1, 8, 16, 1)
    patches = patchify(image, (4, 4, 1))
    assert patches.shape == (1, 8, 16)
    assert torch.equal(patches[0, 1].reshape(4, 4), image[0, 0, :4, 4:8, 0])


def test_what_does_not_tile_is_refused():
    with pytest.raises(ValueError, match="do not tile"):
        patchify(volumes(), (3, 2, 3))
    with pytest.raises(ValueError, match="no volume of"):
        unpatchify(torch.zeros(1, 8, 24), (4, 2, 3), (2, 8, 2))
    with pytest.raises(ValueError, match="no volume of"):
        unpatchify(torch.zeros(1, 32, 25), (4, 2, 3), (2, 8, 2))


@pytest.mark.parametrize("patch", PATCHES)
def test_targets_are_normed_patch_by_patch(patch):
    given = 5 + 3 * volumes()
    given[:, :, :4] = 0
    targets = patch_targets(given, patch)
    for row in range(2):
        for at, values in enumerate(patchify(given, patch)[row]):
            slow = (values - values.mean()) / (values.var() + 1e-6).sqrt()
            torch.testing.assert_close(targets[row, at], slow)
    assert not targets[:, 0].any() or patch == (8, 8, 1)


def test_a_patch_of_one_value_has_no_norm():
    with pytest.raises(ValueError, match="one value"):
        patch_targets(torch.zeros(1, 1, 4, 4, 1), (1, 1, 1))


def test_a_flat_block_mask_names_the_patches_that_it_hides():
    """The order of `block_mask(...).flatten(1)` is that of the patches, for any shape."""
    hidden = block_mask((8, 16, 6), (4, 2, 3), 0.5, torch.Generator().manual_seed(1), batch=2)
    blank = torch.ones(2, 1, 8, 16, 6).masked_fill(voxel_mask(hidden, (4, 2, 3)), 0.0)
    assert torch.equal(patchify(blank, (4, 2, 3)).any(-1), ~hidden.flatten(1))


def test_visible_values_are_taken_and_put_back():
    values = torch.randn(2, 6, 4)
    visible = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    taken = take_visible(values, visible)
    assert torch.equal(taken[1], values[1, [1, 2, 3]])
    fill = torch.full((4,), 7.0, requires_grad=True)
    whole = put_visible(taken.requires_grad_(), visible, fill)
    assert torch.equal(whole, torch.where(visible[..., None], values, torch.tensor(7.0)))
    whole.sum().backward()
    assert torch.equal(fill.grad, torch.full((4,), 6.0))
    assert taken.grad is not None and bool((taken.grad == 1).all())


def test_studies_that_show_different_numbers_are_refused():
    with pytest.raises(ValueError, match="the same number"):
        take_visible(torch.zeros(2, 2, 3), torch.tensor([[True, False], [True, True]]))
    with pytest.raises(ValueError, match="at least one"):
        take_visible(torch.zeros(2, 2, 3), torch.zeros(2, 2, dtype=torch.bool))
