"""Hidden words and sentences: the losses are their definitions, and visible words take no part."""

import torch

from tomoglot.objectives.language import hidden_token_loss, sentence_reconstruction


def test_the_loss_of_hidden_words_is_their_mean_surprise() -> None:
    maker = torch.Generator().manual_seed(0)
    outputs, table = torch.randn(4, 6, generator=maker), torch.randn(9, 6, generator=maker)
    bias, words = torch.randn(9, generator=maker), torch.tensor([3, 0, 8, 3])
    surprise = []
    for row, word in zip(outputs, words.tolist(), strict=True):
        odds = torch.stack([(row @ entry + add).exp() for entry, add in zip(table, bias, strict=True)])
        surprise.append(-(odds[word] / odds.sum()).log())
    found = hidden_token_loss(outputs, words, table=table, bias=bias)
    torch.testing.assert_close(found, torch.stack(surprise).mean())


def test_nothing_hidden_costs_nothing_and_has_no_gradient() -> None:
    outputs = torch.zeros(0, 6, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = hidden_token_loss(outputs, none, table=torch.zeros(9, 6), bias=torch.zeros(9))
    loss.backward()
    assert loss == 0


def test_sentences_are_summed_within_a_report_and_averaged_over_reports_that_have_some() -> None:
    maker = torch.Generator().manual_seed(0)
    rebuilt, true = (torch.randn(3, 4, 8, generator=maker) for _ in range(2))
    present = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    total = 0.0
    for report in (0, 2):
        for sentence in range(4):
            if present[report, sentence]:
                one, other = rebuilt[report, sentence], true[report, sentence]
                total += 1 - one @ other / (one.norm() * other.norm())
    torch.testing.assert_close(sentence_reconstruction(rebuilt, true, present), total / 2)
    assert sentence_reconstruction(rebuilt, true, torch.zeros_like(present)) == 0
