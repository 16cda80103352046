import math

import pytest
import torch

from tomoglot.objectives.similarity import effective_rank


def effective_rank_in_words(embeddings):
    values = [float(v) for v in torch.linalg.svd(embeddings.double())[1]]
    shares = [v / sum(values) for v in values]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def test_effective_rank_is_its_definition():
    embeddings = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    assert effective_rank(embeddings).item() == pytest.approx(effective_rank_in_words(embeddings), rel=1e-5)


def test_orthogonal_directions_count_in_full_and_a_line_counts_once():
    assert effective_rank(3 * torch.eye(6)[:4]).item() == pytest.approx(4)
    assert effective_rank(torch.ones(8, 5)).item() == pytest.approx(1, abs=1e-4)


def test_scale_does_not_matter():
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(effective_rank(embeddings), effective_rank(100 * embeddings))


def test_embeddings_that_are_all_zero_have_rank_zero():
    assert effective_rank(torch.zeros(3, 4)).item() == 0


def test_no_rows_and_non_finite_rows_are_refused():
    with pytest.raises(ValueError, match="no embeddings"):
        effective_rank(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="not finite"):
        effective_rank(torch.full((2, 2), float("inf")))
