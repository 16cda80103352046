"""Masks hide exactly what they say."""

import pytest
import torch

from tomoglot.batches.batch import Tokens
from tomoglot.batches.mask import block_mask, hidden_voxels, report_keys, token_mask, voxel_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.875, 0.999])
def test_every_volume_hides_the_same_number_of_blocks(ratio):
    mask = block_mask((8, 16, 24), 8, ratio, generator(), batch=5)
    assert mask.shape == (5, 1, 2, 3) and mask.dtype == torch.bool
    assert set(mask.flatten(1).sum(1).tolist()) == {min(max(round(6 * ratio), 1), 5)}


def test_the_voxel_mask_tiles_the_block_mask_exactly():
    block = (2, 3, 4)
    mask = block_mask((6, 6, 8), block, 0.4, generator(), batch=3)
    voxels = voxel_mask(mask, block)
    assert voxels.shape == (3, 1, 6, 6, 8)
    for b in range(3):
        for i, j, k in torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(8)).tolist():
            assert voxels[b, 0, i, j, k] == mask[b, i // 2, j // 3, k // 4]


def test_block_masks_follow_their_generator_and_differ_between_volumes():
    once, again = (block_mask((32, 32, 32), 8, 0.5, generator(1), batch=2) for _ in range(2))
    assert torch.equal(once, again) and not torch.equal(once[0], once[1])
    assert not torch.equal(once, block_mask((32, 32, 32), 8, 0.5, generator(2), batch=2))


def test_every_block_is_hidden_equally_often():
    mask = block_mask((16, 16, 16), 8, 0.5, generator(), batch=4000)
    torch.testing.assert_close(mask.float().mean(0), torch.full((2, 2, 2), 0.5), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("shape", "ratio", "message"),
    [((8, 8, 9), 0.5, "do not tile"), ((8, 8, 16), 1.0, "between 0 and 1"), ((8, 8, 8), 0.5, "nothing would be left")],
)
def test_masks_that_cannot_be_are_refused(shape, ratio, message):
    with pytest.raises(ValueError, match=message):
        block_mask(shape, 8, ratio, generator())


def make_tokens():
    word = torch.tensor([[-1, 0, 1, 1, 1, 2, 3, 3, -1, -1], [-1] * 10, [-1, 0, -1, -1, -1, -1, -1, -1, -1, -1]])
    attended = torch.tensor([[1] * 9 + [0], [0] * 10, [1, 1, 1] + [0] * 7]).bool()
    return Tokens(ids=torch.arange(30).reshape(3, 10), attended=attended, sentence=word.clamp(max=0), word=word)


@pytest.mark.parametrize("whole_word", [True, False])
def test_special_tokens_and_padding_are_never_hidden(whole_word):
    tokens = make_tokens()
    for seed in range(20):
        mask = token_mask(tokens, 0.9, whole_word, generator(seed))
        assert not mask[tokens.word < 0].any() and not mask[1].any() and mask[2, 1]


def test_whole_words_are_hidden_together():
    word = make_tokens().word[0]
    for seed in range(20):
        mask = token_mask(make_tokens(), 0.5, True, generator(seed))[0]
        hidden = [bool(mask[word == number].all()) for number in range(4)]
        shown = [not mask[word == number].any() for number in range(4)]
        assert sum(hidden) == 2 and sum(shown) == 2


def test_single_tokens_are_hidden_by_share():
    counts = {int(token_mask(make_tokens(), 0.5, False, generator(seed))[0].sum()) for seed in range(10)}
    assert counts == {4}  # round half to even of 3.5
    assert not torch.equal(*(token_mask(make_tokens(), 0.5, False, generator(seed)) for seed in (0, 1)))


def test_a_small_ratio_still_hides_one():
    assert token_mask(make_tokens(), 0.01, False, generator())[0].sum() == 1


def test_token_ratios_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        token_mask(make_tokens(), 0.0, True, generator())


@pytest.mark.parametrize("shape", [(16, 8, 8), (17, 8, 13), (5, 9, 20)])
def test_blocks_are_cut_where_a_crop_of_any_size_ends(shape):
    volumes = torch.zeros(3, 2, *shape)
    hidden = hidden_voxels(volumes, 8, 0.5, generator())
    assert hidden.shape == (3, 1, *shape)
    grid = tuple(-(-edge // 8) for edge in shape)
    for study in hidden[:, 0]:
        whole = 0
        for i, j, k in torch.cartesian_prod(*(torch.arange(edge) for edge in grid)).tolist():
            block = study[8 * i : 8 * i + 8, 8 * j : 8 * j + 8, 8 * k : 8 * k + 8]
            assert block.all() or not block.any()
            whole += bool(block.all())
        assert whole == max(round(0.5 * grid[0] * grid[1] * grid[2]), 1)


def test_masks_that_take_turns_are_few_and_always_the_same():
    tokens = make_tokens()
    drawn = [token_mask(tokens, 0.5, True, generator(seed), turns=3) for seed in range(40)]
    # Two of the three may happen to be equal: four words have six masks.
    assert 1 < len({tuple(mask[0].tolist()) for mask in drawn}) <= 3
    assert len({tuple(token_mask(tokens, 0.5, True, generator(seed))[0].tolist()) for seed in range(40)}) > 3
    alone = Tokens(**{slot: getattr(tokens, slot)[:1] for slot in Tokens.__slots__})
    others = {tuple(token_mask(alone, 0.5, True, generator(seed), turns=3)[0].tolist()) for seed in range(40)}
    assert others == {tuple(mask[0].tolist()) for mask in drawn}
    assert all(not mask[tokens.word < 0].any() and mask[2, 1] for mask in drawn)


def test_a_key_tells_reports_apart_by_their_words_whatever_the_padding():
    tokens = make_tokens()
    keys = report_keys(tokens)
    assert len(set(keys.tolist())) == 3 and (keys >= 0).all()
    longer = {slot: torch.nn.functional.pad(getattr(tokens, slot), (0, 2)) for slot in Tokens.__slots__}
    assert torch.equal(report_keys(Tokens(**longer)), keys)
