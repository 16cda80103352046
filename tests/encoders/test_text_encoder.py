"""Frozen means frozen, asked once means asked once, and nothing of the text model enters a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from tomoglot.encoders import text as text_file
from tomoglot.encoders.text import FrozenTextEncoder, TextEncoder
from tomoglot.studies.report import sentences

REPORT = "There is a mass in the left frontal lobe. No haemorrhage is seen. The ventricles are normal."
SHORT = "No haemorrhage is seen."


@pytest.fixture
def encoder():
    built = TextEncoder.Config().build()
    built._model.known.clear()
    return built


@pytest.fixture
def asked(encoder, monkeypatch):
    """Texts the network really read, batch by batch."""
    batches = []
    run = FrozenTextEncoder._run

    def recorded(self, texts):
        batches.append(list(texts))
        return run(self, texts)

    monkeypatch.setattr(FrozenTextEncoder, "_run", recorded)
    return batches


@torch.no_grad()
def vector_in_words(encoder, text):
    """One text alone through the model; the mean of its tokens, at unit length."""
    tokens = encoder.tokenizer([text], return_tensors="pt")
    mean = encoder._model.network(**tokens).last_hidden_state[0].mean(0)
    return mean / mean.norm()


def test_a_batch_gives_what_each_text_gives_alone(encoder):
    texts = [REPORT, SHORT, "Oedema."]
    in_words = torch.stack([vector_in_words(encoder, text) for text in texts])
    embedded = encoder.embed(texts)
    assert embedded.dtype == torch.float32 and embedded.shape == (3, encoder.embedding)
    torch.testing.assert_close(embedded, in_words, atol=1e-5, rtol=1e-4)


def test_sentence_pooling_is_the_mean_of_unit_sentence_vectors(encoder):
    by_sentence = TextEncoder.Config(pooling="sentences").build()
    assert len(sentences(REPORT)) == 3
    in_words = torch.stack([vector_in_words(encoder, sentence) for sentence in sentences(REPORT)]).mean(0)
    torch.testing.assert_close(by_sentence.embed([REPORT])[0], in_words, atol=1e-5, rtol=1e-4)


def test_cls_pooling_takes_the_first_token():
    encoder = TextEncoder.Config(pooling="cls").build()
    features = encoder([REPORT, SHORT])
    torch.testing.assert_close(encoder.embed([SHORT])[0], nn.functional.normalize(features.tokens[1, 0], dim=0))


def test_each_distinct_text_is_read_once(encoder, asked):
    first = encoder.embed([REPORT, SHORT, REPORT])
    again = encoder.embed([SHORT, REPORT])
    assert asked == [[SHORT], [REPORT]]
    torch.testing.assert_close(first[[1, 0]], again, atol=0, rtol=0)
    torch.testing.assert_close(first[0], first[2], atol=0, rtol=0)


def test_a_sentence_common_to_two_reports_is_read_once(asked):
    by_sentence = TextEncoder.Config(pooling="sentences").build()
    by_sentence.embed([REPORT])
    by_sentence.embed([f"{SHORT} There is an infarct."])
    assert asked[-1] == ["There is an infarct."]


def test_poolings_and_limits_do_not_share_answers(encoder):
    mean = encoder.embed([REPORT])
    for changes in ({"pooling": "cls"}, {"pooling": "sentences"}, {"max_tokens": 8}):
        other = encoder.config.but(**changes).build()
        assert (other.embed([REPORT]) - mean).abs().max() > 1e-3
        assert other.digest != encoder.digest
    assert TextEncoder.Config().build().digest == encoder.digest


def test_texts_are_batched_by_length(asked):
    texts = [f"{'small ' * count}lesion" for count in (5, 1, 4, 2, 3)]
    TextEncoder.Config(batch_size=2).build().embed(texts)
    assert [len(batch) for batch in asked] == [2, 2, 1]
    flat = [len(text) for batch in asked for text in batch]
    assert flat == sorted(flat)


def test_a_text_has_the_same_vector_to_the_last_bit_in_any_company(encoder):
    """Where a run was stopped the cache begins empty, and a step meets its texts beside others than it would have."""
    texts = [f"{'small ' * count}lesion of the liver. {REPORT}" for count in (9, 1, 30)]
    vectors = []
    for company in (texts, texts[1:], texts[:1]):
        encoder._model.known.clear()
        vectors.append(dict(zip(company, encoder.embed(company), strict=True)))
    for text in texts:
        first, *others = (its[text] for its in vectors if text in its)
        assert all(torch.equal(first, other) for other in others)


class Recipe(nn.Module):
    def __init__(self):
        super().__init__()
        self.text = TextEncoder.Config().build()
        self.head = nn.Linear(self.text.embedding, 2)


def test_a_checkpoint_and_an_optimiser_see_nothing_of_the_text_model():
    recipe = Recipe()
    assert set(recipe.state_dict()) == {"head.weight", "head.bias"}
    assert {name for name, _ in recipe.named_parameters()} == {"head.weight", "head.bias"}


def test_training_the_recipe_leaves_the_text_model_frozen_and_in_evaluation_mode(encoder):
    recipe = Recipe()
    recipe.train()
    encoder._model.known.clear()
    before = recipe.text.embed([REPORT])
    recipe.head(before).sum().backward()
    assert not before.requires_grad
    network = recipe.text._model.network
    assert not any(module.training for module in network.modules())
    assert not any(value.requires_grad or value.grad is not None for value in network.parameters())
    network.train()  # somebody else's mistake is put right too: dropout would make this differ
    encoder._model.known.clear()
    torch.testing.assert_close(recipe.text.embed([REPORT]), before, atol=0, rtol=0)


def test_a_copy_shares_the_model():
    recipe = Recipe()
    assert copy.deepcopy(recipe).text._model is recipe.text._model


def test_token_sentence_and_text_vectors_come_together(encoder):
    features = encoder([REPORT, SHORT])
    assert features.tokens.shape[0] == 2 and features.tokens.shape[2] == encoder.embedding
    assert features.sentences.shape == (2, 3, encoder.embedding)
    assert not features.sentences[1, 1:].any()
    torch.testing.assert_close(features.sentences[1, 0], encoder.embed([SHORT])[0])
    torch.testing.assert_close(features.pooled, encoder.embed([REPORT, SHORT]))


def test_no_text_gives_no_vector_and_an_empty_text_is_refused(encoder):
    assert encoder.embed([]).shape == (0, encoder.embedding)
    with pytest.raises(ValueError, match="1 of 2 texts are empty"):
        encoder.embed([REPORT, " \n"])


def test_a_model_that_is_not_there_is_an_error_and_not_a_download(monkeypatch):
    with pytest.raises(ValueError, match=r"'organisation/model' is not a folder.*set hub=true"):
        TextEncoder.Config(path="organisation/model").build()
    with pytest.raises(ValueError, match="path must name the model"):
        TextEncoder.Config(hub=True)
    monkeypatch.setattr(text_file, "PACKAGED", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install 'tomoglot\[demo\]'"):
        text_file._packaged_path()


def test_more_tokens_than_the_model_reads_is_refused():
    with pytest.raises(ValueError, match="max_tokens is 4096, this text model reads at most 512"):
        TextEncoder.Config(max_tokens=4096).build()


def test_a_folder_with_a_model_is_read(encoder, tmp_path):
    encoder._model.network.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    other = TextEncoder.Config(path=str(tmp_path)).build()
    assert other.digest == encoder.digest
    torch.testing.assert_close(other.embed([SHORT]), encoder.embed([SHORT]))
