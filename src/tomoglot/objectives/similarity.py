"""How many directions a set of embeddings really uses."""

import torch
from jaxtyping import Float
from torch import Tensor

from tomoglot.types import Scalar


def effective_rank(embeddings: Float[Tensor, "n e"]) -> Scalar:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli 2007, sec. 2).

    It lies between 1 (every row on one line: collapsed) and min(n, e) (all directions used equally). The rows are
    not centred. A matrix of zeros has effective rank 0.

    Raises:
        ValueError: no rows, or a value that is not finite.
    """
    if embeddings.shape[0] == 0:
        raise ValueError("effective_rank got no embeddings")
    if not embeddings.isfinite().all():
        raise ValueError("effective_rank got embeddings that are not finite")
    values = torch.linalg.svdvals(embeddings.detach().float())
    total = values.sum()
    if total == 0:
        return total
    share = values / total
    return torch.special.entr(share).sum().exp()
