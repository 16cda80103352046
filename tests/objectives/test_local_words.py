"""Words and patches of every pair, by the definition, in pieces, and on two processes."""

from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn import functional as F

from tomoglot.objectives import local_words
from tomoglot.objectives.local_words import attention_maps, gather_rows, word_contrast, word_likeness

TEMPERATURES = {"temperature": 0.2, "attention_temperature": 0.3}


def pairs(reports=4, images=3, words=5, patches=6, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    given = {
        "words": torch.randn(reports, words, width, generator=generator).requires_grad_(),
        "patches": torch.randn(images, patches, width, generator=generator).requires_grad_(),
        "present": torch.rand(reports, words, generator=generator) > 0.3,
        "imaged": torch.rand(images, patches, generator=generator) > 0.3,
    }
    given["present"][:, 0] = True
    given["imaged"][:, 0] = True
    return given


def belongs(images=3, reports=4):
    """Image n belongs to report n, and the last report to the first image too."""
    return torch.arange(images)[:, None] == torch.arange(reports) % images


def cosine(one, other):
    return (one @ other) / (one.norm() * other.norm())


def mean_in_words(asking, told, temperature):
    """Mean over those asking of the cosine to their own mixture of what they are told."""
    told = F.normalize(told, dim=1)
    found = []
    for one in asking:
        shares = torch.stack([cosine(one, other) / temperature for other in told]).softmax(0)
        found.append(cosine(one, (shares[:, None] * told).sum(0)))
    return torch.stack(found).mean()


def likeness_in_words(words, patches, present, imaged, temperature):
    by_word, by_patch = torch.zeros(len(patches), len(words)), torch.zeros(len(patches), len(words))
    for n in range(len(patches)):
        for m in range(len(words)):
            said, shown = words[m][present[m]], patches[n][imaged[n]]
            by_word[n, m] = mean_in_words(said, shown, temperature)
            by_patch[n, m] = mean_in_words(shown, said, temperature)
    return by_word, by_patch


def rank_in_words(table, positive):
    rows = []
    for row, own in zip(table, positive, strict=True):
        shares = row.softmax(0)
        rows.append(-torch.stack([shares[at].log() for at in own.nonzero().flatten()]).mean())
    return torch.stack(rows).mean()


def test_likeness_is_its_definition_without_any_mixture_being_made():
    given = pairs()
    found = word_likeness(**given, attention_temperature=0.3)
    wanted = likeness_in_words(given["words"], given["patches"], given["present"], given["imaged"], 0.3)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("ways", ["both", "word_to_patch", "patch_to_word"])
def test_the_contrast_is_its_definition(ways):
    given = pairs()
    tables = likeness_in_words(given["words"], given["patches"], given["present"], given["imaged"], 0.3)
    of_way = [
        (rank_in_words(table / 0.2, belongs()) + rank_in_words(table.T / 0.2, belongs().T)) / 2 for table in tables
    ]
    wanted = {"both": sum(of_way) / 2, "word_to_patch": of_way[0], "patch_to_word": of_way[1]}[ways]
    torch.testing.assert_close(word_contrast(**given, positives=belongs(), ways=ways, **TEMPERATURES), wanted)


@pytest.mark.parametrize("max_entries", [1, 3 * 6 * 5 * 2 + 5])
def test_pieces_give_the_value_and_the_gradient_of_the_whole(max_entries):
    whole, pieces = pairs(), pairs()
    values = []
    for given, entries in ((whole, 2**20), (pieces, max_entries)):
        values.append(word_contrast(**given, positives=belongs(), max_entries=entries, **TEMPERATURES))
        values[-1].backward()
    torch.testing.assert_close(*values)
    for name in ("words", "patches"):
        torch.testing.assert_close(whole[name].grad, pieces[name].grad)


def test_no_table_of_all_pairs_words_and_patches_is_ever_made_or_kept(monkeypatch):
    """What is kept for the backward pass grows with the reports and not with their pairs; what is made is a piece."""
    made, piece = [], local_words._piece

    def counting(*given):
        made.append(len(given[0]) * given[3].numel() * given[0].shape[1])
        return piece(*given)

    monkeypatch.setattr(local_words, "_piece", counting)
    kept: dict[tuple[int, int], int] = {}
    for count in (8, 16):
        for max_entries in (2**30, 16 * 30 * 40):
            given, sizes = pairs(count, count, words=30, patches=40), {}

            def pack(tensor, sizes=sizes):
                sizes[tensor.data_ptr()] = tensor.numel()
                return tensor

            made.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = word_contrast(**given, positives=torch.eye(count) > 0, max_entries=max_entries, **TEMPERATURES)
            kept[count, max_entries] = sum(sizes.values())
            loss.backward()
            assert max(made) <= max(max_entries, count * 30 * 40)
    assert kept[16, 2**30] > 3 * kept[8, 2**30] > 3 * 8 * 8 * 30 * 40
    assert kept[16, 16 * 30 * 40] < kept[16, 2**30] / 8


def test_words_and_patches_that_are_not_there_have_no_say_and_no_gradient():
    given = pairs()
    before = word_contrast(**given, positives=belongs(), **TEMPERATURES)
    before.backward()
    assert (given["words"].grad[~given["present"]] == 0).all()
    assert (given["patches"].grad[~given["imaged"]] == 0).all()
    assert (given["words"].grad[given["present"]] != 0).any()
    changed = pairs()
    with torch.no_grad():
        changed["words"][~given["present"]] = 9.0
        changed["patches"][~given["imaged"]] = -9.0
    torch.testing.assert_close(word_contrast(**changed, positives=belongs(), **TEMPERATURES), before)


def test_a_pair_that_agrees_word_for_patch_is_ranked_above_the_others():
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(4, 5, 16, generator=generator)
    patches = torch.cat([words.flip(1), torch.randn(4, 3, 16, generator=generator)], dim=1)
    there = {"present": torch.ones(4, 5, dtype=torch.bool), "imaged": torch.ones(4, 8, dtype=torch.bool)}
    own = torch.eye(4, dtype=torch.bool)
    right = word_contrast(words, patches, positives=own, **there, **TEMPERATURES)
    wrong = word_contrast(words, patches, positives=own.roll(1, 0), **there, **TEMPERATURES)
    assert right < wrong


def test_nothing_to_compare_by_and_rows_without_a_positive_are_refused():
    given = pairs()
    given["present"][2] = False
    with pytest.raises(ValueError, match="1 of 4 reports have no word"):
        word_likeness(**given, attention_temperature=0.3)
    given = pairs()
    given["imaged"][:2] = False
    with pytest.raises(ValueError, match="2 of 3 images have no patch"):
        word_likeness(**given, attention_temperature=0.3)
    with pytest.raises(ValueError, match="1 of 4 report rows have no positive"):
        word_contrast(**pairs(), positives=torch.eye(3, 4) > 0, **TEMPERATURES)


def test_a_phrase_looks_at_the_patch_that_is_like_its_word():
    given = pairs(reports=2)
    with torch.no_grad():
        given["patches"][1, 4] = 3 * given["words"][0, 0]
    given["present"][0] = torch.arange(5) == 0
    given["imaged"][1, 4] = True
    maps = attention_maps(**given, attention_temperature=0.05)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(3, 2))
    assert maps[1, 0].argmax() == 4
    assert (maps[~given["imaged"][:, None].expand_as(maps)] == 0).all()


def loss_of_all(given, rows, *, gather):
    """The loss and its gradients, from the rows that a process has, whose reports are cut at its longest."""
    longest = int(given["present"][rows].sum(dim=1).max())
    own = {name: value[rows] for name, value in given.items()}
    own |= {name: own[name][:, :longest] for name in ("words", "present")}
    if gather:
        own = {name: gather_rows(value) for name, value in own.items()}
    loss = word_contrast(**own, positives=torch.eye(4, dtype=torch.bool), **TEMPERATURES)
    loss.backward()
    return loss.detach()


def four_pairs():
    given = pairs(reports=4, images=4)
    given["present"] = torch.arange(5) < torch.tensor([5, 3, 4, 2])[:, None]
    return given


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    given = four_pairs()
    rows = slice(0, 3) if rank == 0 else slice(3, 4)
    loss = loss_of_all(given, rows, gather=True)
    for name in ("words", "patches"):  # what DDP does
        distributed.all_reduce(given[name].grad)
    torch.save([loss, *(given[name].grad / 2 for name in ("words", "patches"))], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_reports_of_different_length_equal_one_with_the_whole(tmp_path):
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    given = four_pairs()
    whole = [loss_of_all(given, slice(None), gather=False), given["words"].grad, given["patches"].grad]
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole, strict=True):
            torch.testing.assert_close(found, wanted)
