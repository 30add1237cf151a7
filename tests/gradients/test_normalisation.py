"""Batch normalisation over ghost batches against torch's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tolerances import assert_equal_to_rounding
from test_parallel import end, environment, free_port
from torch import nn

from rlgns.gradients.normalisation import GroupBatchNorm
from rlgns.runs.ranks import Ranks

C = 5


def images(n=12, seed=0):
    return torch.randn(n, C, 4, 3, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def both(batch_size):
    torch.manual_seed(1)
    ours, theirs = GroupBatchNorm(C, batch_size), nn.BatchNorm2d(C)
    with torch.no_grad():
        ours.affine.weight.copy_(torch.rand(C))
        ours.affine.bias.copy_(torch.rand(C))
        theirs.weight.copy_(ours.affine.weight)
        theirs.bias.copy_(ours.affine.bias)
    return ours, theirs


@pytest.mark.parametrize("batch_size", [12, 100, 0])
def test_one_ghost_batch_is_torchs_batch_normalisation(batch_size):
    ours, theirs = both(batch_size)
    x, y = (images().requires_grad_() for _ in range(2))
    out, expected = ours(x), theirs(y)
    assert_equal_to_rounding(out, expected)
    out.pow(3).sum().backward()  # cubes, because the sum of squares does not depend on x
    expected.pow(3).sum().backward()  # cubes, because the sum of squares does not depend on x
    assert_equal_to_rounding(x.grad, y.grad)
    assert_equal_to_rounding(ours.affine.weight.grad, theirs.weight.grad)
    assert_equal_to_rounding(ours.affine.bias.grad, theirs.bias.grad)


def test_several_ghost_batches_are_normalised_as_torch_normalises_each():
    ours, theirs = both(4)
    x = images()
    assert_equal_to_rounding(ours(x), torch.cat([theirs(part) for part in torch.split(x, 4)]))


def test_a_ghost_batch_does_not_depend_on_the_others():
    ours, _ = both(4)
    x, changed = images(), images()
    changed[4:] *= 7
    assert torch.equal(ours(x)[:4], ours(changed)[:4])


def test_the_statistics_for_evaluation_are_right_from_the_first_batch_on():
    ours, _ = both(12)
    ours(images())
    mean, variance = ours.statistics()
    assert_equal_to_rounding(mean, images().mean((0, 2, 3)))
    assert_equal_to_rounding(variance, images().var((0, 2, 3)))


def test_after_many_batches_the_statistics_are_torchs_running_statistics():
    ours, theirs = both(12)
    for seed in range(200):
        x = images(seed=seed)
        ours(x)
        theirs(x)
    mean, variance = ours.statistics()
    assert_equal_to_rounding(mean, theirs.running_mean)
    assert_equal_to_rounding(variance, theirs.running_var)
    ours.eval()
    theirs.eval()
    assert_equal_to_rounding(ours(images()), theirs(images()))


def test_untrained_or_after_forgetting_evaluation_leaves_the_input_as_it_is():
    ours, _ = both(12)
    ours(images())
    ours.forget()
    ours.eval()
    shape = (-1, 1, 1)
    expected = images() / (1 + ours.eps) ** 0.5 * ours.affine.weight.view(shape) + ours.affine.bias.view(shape)
    assert_equal_to_rounding(ours(images()), expected)


def test_a_batch_that_is_not_made_of_ghost_batches_is_refused():
    with pytest.raises(ValueError, match="12 examples cannot be split into ghost batches of 5; use a multiple"):
        both(5)[0](images())


def two_ranks(folder: Path) -> None:
    """Body of one of two processes: its half of the batch, normalised over both halves."""
    ranks = Ranks.from_environment()
    with ranks.joined(torch.device("cpu")):
        ours, _ = both(0)
        x = images()[ranks.rank * 6 : (ranks.rank + 1) * 6].requires_grad_()
        out = ours(x)
        out.pow(3).sum().backward()  # cubes, because the sum of squares does not depend on x
        torch.save({"out": out.detach(), "grad": x.grad, "statistics": ours.statistics()}, folder / f"{ranks.rank}.pt")


def test_over_all_ranks_two_halves_are_normalised_as_one_batch(tmp_path):
    shared = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **shared), stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    assert [end(rank) for rank in ranks] == [(0, ""), (0, "")]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    ours, _ = both(0)
    x = images().requires_grad_()
    out = ours(x)
    out.pow(3).sum().backward()  # cubes, because the sum of squares does not depend on x
    assert_equal_to_rounding(torch.cat([result["out"] for result in results]), out.detach())
    assert_equal_to_rounding(torch.cat([result["grad"] for result in results]), x.grad)
    for result in results:
        assert_equal_to_rounding(result["statistics"], ours.statistics())


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
