"""Reports to tokens, each token knowing its sentence and its word.

Sentences and words are found in the text and carried over by character offsets, so they do not depend on how a
tokenizer happens to cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoglot.batches.batch import Tokens
from tomoglot.studies.report import sentences

WORD = re.compile(r"\w+|[^\w\s]")


def tokenise(reports: Sequence[str | None], tokenizer: Any, max_tokens: int) -> Tokens:
    """Tokenise reports, padded to the longest of them and cut at `max_tokens`; a report of None is all padding.

    `tokenizer` is a transformers tokenizer that gives character offsets (a "fast" one). Sentence and word are -1 for
    special tokens, padding, and text outside every sentence. A word is a run of letters and digits, or one mark.

    Raises:
        ValueError: the tokenizer gives no character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("the tokenizer gives no character offsets; load the fast version of it (tokenizer.json)")
    lines = [_line(report, tokenizer, max_tokens) for report in reports]
    longest = max((len(line) for line in lines), default=0)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    table = np.tile(np.array([padding, 0, -1, -1], dtype=np.int64), (len(lines), max(longest, 1), 1))
    for row, line in zip(table, lines, strict=True):
        row[: len(line)] = line
    ids, attended, sentence, word = (torch.from_numpy(table[..., part].copy()) for part in range(4))
    return Tokens(ids=ids, attended=attended.bool(), sentence=sentence, word=word)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character range of each sentence of `text`, in order; white space inside a sentence may differ."""
    spans = []
    cursor = 0
    for sentence in sentences(text):
        begin = text.find(sentence, cursor)
        end = begin + len(sentence)
        if begin < 0:
            found = re.compile(r"\s+".join(re.escape(word) for word in sentence.split())).search(text, cursor)
            assert found is not None, "a sentence is not part of its report"
            begin, end = found.span()
        spans.append((begin, end))
        cursor = end
    return spans


def _line(report: str | None, tokenizer: Any, max_tokens: int) -> NDArray[np.int64]:
    """One report as rows of (id, attended, sentence, word)."""
    if report is None:
        return np.empty((0, 4), dtype=np.int64)
    coded = tokenizer(report, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    sentence_of = _owners(sentence_spans(report), len(report))
    word_of = _owners((found.span() for found in WORD.finditer(report)), len(report))
    rows = []
    for token, (begin, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        # Byte-level tokenizers count the space before a word as part of its token.
        while begin < end and report[begin].isspace():
            begin += 1
        empty = begin >= end
        rows.append((token, 1, -1 if empty else sentence_of[begin], -1 if empty else word_of[begin]))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _owners(spans: Iterable[tuple[int, int]], length: int) -> NDArray[np.int64]:
    """For each character, the index of the span that holds it, or -1."""
    owners = np.full(length, -1, dtype=np.int64)
    found = list(spans)
    assert all(left[1] <= right[0] for left, right in pairwise(found)), "spans overlap"
    for index, (begin, end) in enumerate(found):
        owners[begin:end] = index
    return owners
