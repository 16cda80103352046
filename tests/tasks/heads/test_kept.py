"""What is the same of every network that a task keeps: whom it learned from, and weights that are whole and finite."""

import pytest
import torch
from torch import nn

from tomoglot.store.plan import Plan
from tomoglot.tasks.heads.kept import WEIGHTS, KeptCard, account_of, load_weights_kept, read_kept, write_kept

CARD = "thing.json"


def keep(folder, net: nn.Module, **account) -> KeptCard:
    card = KeptCard(plan=Plan(), simulated=True, **(account or account_of({"sub-1"})))
    write_kept(folder, CARD, card, net)
    return read_kept(folder, CARD, KeptCard, hint="another folder")


def test_weights_and_card_come_back_and_nothing_else_is_left(tmp_path):
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    card = keep(tmp_path, net)
    load_weights_kept(tmp_path, other, what="thing", fit="its card")
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, WEIGHTS]
    assert card.simulated and "research" in card.use.lower()


def test_subjects_are_counted_and_not_named_and_those_of_the_network_before_stay(tmp_path):
    first = keep(tmp_path, nn.Linear(1, 1), **account_of({"sub-1", "sub-2"}))
    second = KeptCard(plan=Plan(), simulated=True, **account_of({"sub-2", "sub-3"}, first))
    assert second.salt == first.salt and "sub-" not in second.to_json()
    assert second.count_seen({"sub-1", "sub-2", "sub-3", "sub-4"}) == 3 and len(second.subjects) == 3
    assert first.count_seen({"sub-3"}) == 0 and account_of({"sub-1"})["salt"] != first.salt


def test_what_is_damaged_or_does_not_fit_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"no thing\.json here; give another folder"):
        read_kept(tmp_path, CARD, KeptCard, hint="another folder")
    with pytest.raises(ValueError, match=r"thing .*: its weights do not fit its card \(FileNotFoundError\)"):
        load_weights_kept(tmp_path, nn.Linear(2, 2), what="thing", fit="its card")
    net = nn.Linear(2, 2)
    keep(tmp_path, net)
    with pytest.raises(ValueError, match=r"do not fit its card \(RuntimeError\)"):
        load_weights_kept(tmp_path, nn.Linear(3, 2), what="thing", fit="its card")
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    keep(tmp_path, net)
    with pytest.raises(ValueError, match="values that are not finite"):
        load_weights_kept(tmp_path, nn.Linear(2, 2), what="thing", fit="its card")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:20])
    with pytest.raises(ValueError, match="do not fit its card"):
        load_weights_kept(tmp_path, nn.Linear(2, 2), what="thing", fit="its card")
