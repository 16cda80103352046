"""The contrastive losses are their slow definitions, on one process and on two."""

import math
from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype import beartype
from torch import distributed, nn
from torch.multiprocessing import spawn

from tomoglot.objectives.contrastive import gather_with_gradient, info_nce, sigmoid_loss

DIRECTIONS = ["both", "image_to_text", "text_to_image"]


def pairs(num_images=5, num_texts=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (num_images, num_texts)]
    return draw[0].requires_grad_(), draw[1].requires_grad_()


def shared_reports(num_images=5, num_texts=3):
    """Image n belongs to text n modulo the number of texts."""
    return torch.arange(num_images)[:, None] % num_texts == torch.arange(num_texts)


def cosine(one, other):
    return (one @ other) / (one.norm() * other.norm())


def rank_in_words(queries, candidates, belongs, temperature):
    """For each query, minus the log of each positive's share among all candidates, averaged."""
    losses = []
    for row, query in enumerate(queries):
        weights = [torch.exp(cosine(query, candidate) / temperature) for candidate in candidates]
        of_positives = [-torch.log(weights[n] / sum(weights)) for n in range(len(candidates)) if belongs[row][n]]
        losses.append(sum(of_positives) / len(of_positives))
    return sum(losses) / len(losses)


def info_nce_in_words(image, text, temperature, direction, weight, belongs):
    forth = rank_in_words(image, text, belongs, temperature)
    back = rank_in_words(text, image, belongs.T, temperature)
    return {"both": weight * forth + (1 - weight) * back, "image_to_text": forth, "text_to_image": back}[direction]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("weight", [0.5, 0.75])
@pytest.mark.parametrize("several", [False, True])
def test_info_nce_is_its_definition(direction, weight, several):
    image, text = pairs(5, 3 if several else 5)
    belongs = shared_reports() if several else torch.eye(5, dtype=torch.bool)
    given = belongs if several else None
    ours = info_nce(image, text, temperature=0.2, direction=direction, weight=weight, positives=given)
    slow = info_nce_in_words(image, text, 0.2, direction, weight, belongs)
    torch.testing.assert_close(ours, slow)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (image, text)), torch.autograd.grad(slow, (image, text)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("several", [False, True])
def test_sigmoid_loss_is_its_definition(several):
    image, text = pairs(5, 3 if several else 5)
    belongs = shared_reports() if several else torch.eye(5, dtype=torch.bool)
    ours = sigmoid_loss(image, text, temperature=0.1, bias=-2.0, positives=belongs if several else None)
    slow = 0.0
    for row in range(len(image)):
        for column in range(len(text)):
            yes = 1 / (1 + torch.exp(-(cosine(image[row], text[column]) / 0.1 - 2.0)))
            slow = slow - torch.log(yes if belongs[row, column] else 1 - yes)
    torch.testing.assert_close(ours, slow / len(image))


def test_a_report_shared_by_two_volumes_is_no_false_negative():
    text = torch.eye(4)[[0, 0, 1]]
    same = text[:, None].eq(text).all(-1)
    told = info_nce(text, text, temperature=0.01, positives=same)
    untold = info_nce(text, text, temperature=0.01)
    # Even perfect images pay: the two equal texts share the positives, so half of the certainty is the best there is.
    torch.testing.assert_close(told, torch.tensor(2 / 3 * math.log(2)))
    wrong = torch.eye(4)[[0, 0, 1]] + torch.tensor([[0, 0, 0.1, 0], [0, 0, 0, 0.1], [0, 0, 0, 0]])
    assert info_nce(wrong, wrong, temperature=0.01, positives=same) >= told
    assert info_nce(wrong, wrong, temperature=0.01) < untold  # without positives, telling them apart pays


def test_a_learnable_temperature_gets_its_gradient():
    image, text = pairs()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: info_nce(image, text, temperature=t), (temperature,))
    assert torch.autograd.gradcheck(lambda t, b: sigmoid_loss(image, text, temperature=t, bias=b), (temperature, bias))


def test_half_precision_inputs_are_compared_in_full_precision():
    image, text = (rows.detach().float() for rows in pairs(16, 16, 64))
    exact = info_nce(image.bfloat16().float(), text.bfloat16().float(), temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = info_nce(image.bfloat16(), text.bfloat16(), temperature=0.01)
    torch.testing.assert_close(ours, exact)


def test_texts_without_an_image_are_negatives_for_images_only():
    image, text = pairs(2, 3)
    belongs = torch.eye(2, 3, dtype=torch.bool)
    more = info_nce(image, text, temperature=0.2, direction="image_to_text", positives=belongs)
    assert more > info_nce(image, text[:2], temperature=0.2, direction="image_to_text")
    with pytest.raises(ValueError, match="1 of 3 text rows have no positive"):
        info_nce(image, text, temperature=0.2, positives=belongs)


def test_what_cannot_be_meant_is_refused():
    image, text = pairs(4, 3)
    with pytest.raises(ValueError, match="4 images and 3 texts"):
        info_nce(image, text, temperature=0.2)
    with pytest.raises(ValueError, match="4 of 4 image rows have no positive"):
        info_nce(image, text, temperature=0.2, positives=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="above zero"):
        info_nce(image, image, temperature=0.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        info_nce(image, image, temperature=0.2, weight=1.5)
    with pytest.raises(ValueError, match=r"positives is \(3, 4\), wanted 4 images by 3 texts"):
        info_nce(image, text, temperature=0.2, positives=torch.ones(3, 4, dtype=torch.bool))


def test_the_shapes_in_the_signatures_are_checked():
    image, text = pairs(4, 4)
    for loss, more in ((info_nce, {}), (sigmoid_loss, {"bias": 0.0})):
        checked = jaxtyping.jaxtyped(typechecker=beartype)(loss)
        checked(image, text, temperature=0.2, positives=torch.eye(4, dtype=torch.bool), **more)
        checked(image, text, temperature=torch.tensor(0.2), **more)
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(image, text[:, :3], temperature=0.2, **more)
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(image, text, temperature=0.2, positives=torch.eye(4), **more)


def test_gathering_on_one_process_changes_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(rows) is rows


# Two processes. Process 0 holds three images, process 1 five: studies differ in how many sequences they have.
BORDERS = [0, 3, 8]
NUM_TEXTS = [2, 2]


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    volumes = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    texts = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return volumes, texts, torch.arange(8)[:, None] % 4 == torch.arange(4)


def towers():
    torch.manual_seed(2)
    return nn.ModuleDict({"image": nn.Linear(6, 5), "text": nn.Linear(6, 5)}).double()


def run_losses(model, volumes, texts, belongs, *, gather):
    """Value and parameter gradients of each loss."""
    results = {}
    for name in [*DIRECTIONS, "weighted", "sigmoid"]:
        image, text = model["image"](volumes), model["text"](texts)
        options = {"temperature": 0.2, "positives": belongs, "gather": gather}
        if name == "sigmoid":
            loss = sigmoid_loss(image, text, bias=-1.0, **options)
        elif name == "weighted":
            loss = info_nce(image, text, weight=0.75, **options)
        else:
            loss = info_nce(image, text, direction=name, **options)
        model.zero_grad()
        loss.backward()
        results[name] = (loss.detach(), {key: value.grad.clone() for key, value in model.named_parameters()})
    return results


def one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    volumes, texts, belongs = whole_batch()
    mine = slice(BORDERS[rank], BORDERS[rank + 1])
    my_texts = texts[sum(NUM_TEXTS[:rank]) : sum(NUM_TEXTS[: rank + 1])]
    results = run_losses(towers(), volumes[mine], my_texts, belongs[mine], gather=True)
    for _, gradients in results.values():
        for value in gradients.values():  # what DDP does
            distributed.all_reduce(value)
            value /= 2
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_parts_of_the_batch_equal_one_with_the_whole(tmp_path):
    spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    whole = run_losses(towers(), *whole_batch(), gather=False)
    for rank in range(2):
        parts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, (value, gradients) in whole.items():
            torch.testing.assert_close(parts[name][0], value, msg=f"{name}: the value differs")
            for key, gradient in gradients.items():
                torch.testing.assert_close(parts[name][1][key], gradient, msg=f"{name}: the gradient of {key} differs")
