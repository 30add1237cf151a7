"""Several real processes compared with a single one, and the fate of the other ranks when one dies.

Run as a script, this file is one rank: `test_parallel.py JOB FOLDER SECONDS` joins the others, does the job and saves
what it returns.
"""

import os
import socket
import subprocess
import sys
import time
import weakref
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from support.processes import HANG, child_environment, wait_until
from support.tolerances import assert_equal_to_rounding
from torch import nn
from torch.distributed import group, is_initialized

from rlgns.runs.ranks import ALONE, Ranks, first_host, store_address

ROOT = Path(__file__).parents[2]
TIMEOUT = HANG

# --- what a rank does -------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Sequential:
    """Convolution with batch statistics in channels_last, a frozen layer, and a count too large for a float32."""
    draws = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 5), nn.Linear(5, 2))
    model[-1].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    model[1].num_batches_tracked.fill_(2**40 + seed)
    return model.to(memory_format=torch.channels_last)


def network_with_gradients(rank: int) -> nn.Sequential:
    """Different gradients on every rank; on odd ranks in another memory format, and without one for one bias."""
    model = network(seed=0)
    draws = torch.Generator().manual_seed(100 + rank)
    for parameter in model.parameters():
        if parameter.requires_grad:
            gradient = torch.randn(parameter.shape, generator=draws)
            last = parameter.dim() == 4 and rank % 2 == 0
            parameter.grad = gradient.to(memory_format=torch.channels_last) if last else gradient
    model[1].bias.grad = None
    if rank % 2 == 1:
        model[3].bias.grad = None
    return model


def tensors_of(rank: int) -> dict[str, torch.Tensor]:
    """Tensors of several types with equal shapes on all ranks; the transposed one is contiguous on rank 0 only."""
    draws = torch.Generator().manual_seed(200 + rank)
    turned = torch.randn(3, 4, generator=draws).T
    return {
        "float32": torch.randn(5, 2, generator=draws),
        "float64": torch.randn(5, generator=draws, dtype=torch.float64),
        "int64": torch.tensor([2**60 + rank, -rank]),
        "turned": turned.contiguous() if rank == 0 else turned,
    }


def trained(ranks: Ranks) -> list[torch.Tensor]:
    """The parameters after three steps of gradient descent on 12 examples, divided among the ranks."""
    draws = torch.Generator().manual_seed(7)
    inputs = torch.randn(12, 3, generator=draws, dtype=torch.float64)
    targets = torch.randn(12, generator=draws, dtype=torch.float64)
    torch.manual_seed(ranks.rank)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    ranks.broadcast(model.parameters())
    share = slice(ranks.rank, None, ranks.size)
    for _ in range(3):
        model.zero_grad()
        ((model(inputs[share]).squeeze(1) - targets[share]) ** 2).sum().div(len(inputs)).backward()
        ranks.sum_gradients(model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    return [p.detach() for p in model.parameters()]


def all_methods(ranks: Ranks) -> dict[str, object]:
    if ranks.size == 2:
        torch.optim.SGD([nn.Parameter(torch.ones(1))])  # a slow import of modules that would keep the current group
    copy = network(seed=ranks.rank)
    ranks.broadcast(copy.state_dict().values())
    model = network_with_gradients(ranks.rank)
    before = [p.grad for p in model.parameters()]
    ranks.sum_gradients(iter(list(model.parameters())))
    ranks.sum_gradients([])
    tensors = tensors_of(ranks.rank)
    return {
        "ranks": [ranks.rank, ranks.size, ranks.local_rank],
        "broadcast": dict(copy.state_dict()),
        "gradients": [p.grad for p in model.parameters()],
        "in_place": [g is None or p.grad is g for g, p in zip(before, model.parameters(), strict=True)],
        "sums": {name: ranks.sum(tensor) for name, tensor in tensors.items()},
        "sum_of_parameter": ranks.sum(nn.Parameter(torch.ones(2))),
        "gathered": {name: ranks.gather(tensor) for name, tensor in tensors.items()},
        "gathered_flags": ranks.gather(torch.tensor([ranks.is_first, True])),
        "tensors_after": tensors,
        "objects": ranks.gather_objects({"rank": ranks.rank, "returns": [0.1] * ranks.rank}),
        "largest": [ranks.largest(ranks.rank), ranks.largest(-ranks.rank), ranks.largest(15)],
        "trained": trained(ranks),
    }


def dies(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os._exit(3)
    ranks.largest(0)


def raises(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise ArithmeticError("rank 1 has a bad day")
    ranks.largest(0)


def hangs(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(TIMEOUT)
    ranks.largest(0)


def leaves_at_once(ranks: Ranks) -> None:
    pass


def dies_once(ranks: Ranks) -> list[int]:
    """Rank 1 dies in the first attempt, while rank 0 is too busy to notice; the ranks meet in the second attempt."""
    attempts = Path(sys.argv[2]) / f"attempts_of_{ranks.rank}"
    with attempts.open("a") as file:
        file.write(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if len(attempts.read_text()) == 1:
        if ranks.rank == 1:
            os._exit(3)
        time.sleep(TIMEOUT)
    return [int(ranks.sum(torch.tensor(10**ranks.rank))), ranks.local_rank]


# --- ranks as processes -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**variables: object) -> dict[str, str]:
    """Environment variables of a process without ranks, in which warnings are errors."""
    return child_environment(
        PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}", PYTHONWARNINGS="error", **variables
    )


def start(
    job: str, folder: Path, size: int, only: int | None = None, seconds: float = TIMEOUT
) -> list[subprocess.Popen]:
    """Start one process per rank, or only that of rank `only`."""
    port = free_port()
    command = [sys.executable, __file__, job, str(folder), str(seconds)]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(command, env=environment(RANK=r, LOCAL_RANK=r, **shared), stderr=subprocess.PIPE, text=True)
        for r in (range(size) if only is None else [only])
    ]


def end(process: subprocess.Popen, within: float = HANG) -> tuple[int, str]:
    """The exit code and standard error of a process; TimeoutExpired if it does not end in time."""
    try:
        err = process.communicate(timeout=within)[1]
    finally:
        process.kill()
        process.wait()
    return process.returncode, err


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def saved(request, tmp_path_factory) -> list[dict]:
    """The values that `all_methods` returned on every rank."""
    folder = tmp_path_factory.mktemp("ranks")
    assert [end(process) for process in start("all_methods", folder, request.param)] == [(0, "")] * request.param
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def torchrun(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


# --- the methods ------------------------------------------------------------------------------------------------------


def test_each_process_knows_its_rank(saved):
    assert [rank["ranks"] for rank in saved] == [[r, len(saved), r] for r in range(len(saved))]


def test_broadcast_gives_all_ranks_the_values_of_rank_0_and_keeps_memory_format(saved):
    expected = network(seed=0).state_dict()
    for rank in saved:
        assert all(torch.equal(rank["broadcast"][name], value) for name, value in expected.items())
        assert rank["broadcast"]["1.num_batches_tracked"] == 2**40
        assert rank["broadcast"]["0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_summed_and_no_gradient_counts_as_zeros(saved):
    models = [list(network_with_gradients(rank).parameters()) for rank in range(len(saved))]
    for i, parameters in enumerate(zip(*models, strict=True)):
        own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for rank in saved:
            if parameters[0].requires_grad:
                assert_equal_to_rounding(rank["gradients"][i], torch.stack(own).sum(0))
            else:
                assert rank["gradients"][i] is None


def test_summed_gradients_are_the_same_bits_on_all_ranks_in_each_ones_memory_format(saved):
    for r, rank in enumerate(saved):
        for own, first in zip(rank["gradients"], saved[0]["gradients"], strict=True):
            assert own is first is None or torch.equal(own, first)
        last = rank["gradients"][0].is_contiguous(memory_format=torch.channels_last)
        assert last == (r % 2 == 0)


def test_gradients_are_summed_in_place(saved):
    assert all(all(rank["in_place"]) for rank in saved)


def test_sum_is_over_ranks_whatever_the_type_and_the_strides(saved):
    own = [tensors_of(rank) for rank in range(len(saved))]
    for name in own[0]:
        for rank in saved:
            torch.testing.assert_close(rank["sums"][name], torch.stack([t[name] for t in own]).sum(0))
            assert torch.equal(rank["sums"][name], saved[0]["sums"][name])


def test_sum_of_a_parameter_has_no_graph(saved):
    assert all(torch.equal(rank["sum_of_parameter"], torch.full((2,), float(len(saved)))) for rank in saved)
    assert not any(rank["sum_of_parameter"].requires_grad for rank in saved)


def test_gather_concatenates_in_rank_order(saved):
    own = [tensors_of(rank) for rank in range(len(saved))]
    for rank in saved:
        for name, tensor in rank["gathered"].items():
            assert torch.equal(tensor, torch.cat([t[name] for t in own]))
        assert rank["gathered_flags"].tolist() == [True, True, *[False, True] * (len(saved) - 1)]


def test_sum_and_gather_leave_their_argument_alone(saved):
    for r, rank in enumerate(saved):
        assert all(torch.equal(rank["tensors_after"][name], tensor) for name, tensor in tensors_of(r).items())


def test_objects_of_different_sizes_come_in_rank_order(saved):
    expected = [{"rank": r, "returns": [0.1] * r} for r in range(len(saved))]
    assert all(rank["objects"] == expected for rank in saved)


def test_any_is_true_everywhere_if_it_is_true_on_one_rank(saved):
    assert all(rank["largest"] == [len(saved) - 1, 0, 15] for rank in saved)


def test_training_on_several_ranks_is_training_on_one_with_all_examples(saved):
    for rank in saved:
        for own, first, alone in zip(rank["trained"], saved[0]["trained"], trained(ALONE), strict=True):
            assert torch.equal(own, first)
            assert_equal_to_rounding(own, alone, updates=3)


# --- a single process -------------------------------------------------------------------------------------------------


def test_alone_every_method_is_the_identity_without_torch_distributed():
    with ALONE.joined(torch.device("cpu")):
        assert not is_initialized()
        model, tensors = network_with_gradients(rank=1), tensors_of(0)
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        ALONE.sum_gradients(model.parameters())
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)
        ALONE.broadcast(model.parameters())
        for tensor in tensors.values():
            assert torch.equal(ALONE.sum(tensor), tensor)
            assert torch.equal(ALONE.gather(tensor), tensor)
        assert ALONE.gather_objects("statistics") == ["statistics"]
        assert ALONE.largest(15) == 15
        assert ALONE.is_first


# --- the environment --------------------------------------------------------------------------------------------------

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Ranks(3, 4, 0)),
        ({**STEP, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        (STEP, Ranks(5, 8, 1)),
        ({**STEP, "WORLD_SIZE": "8"}, Ranks(5, 8, 1)),
        ({"WORLD_SIZE": "1"}, Ranks()),
    ],
)
def test_torchrun_comes_before_srun_before_alone(variables, ranks):
    assert Ranks.from_environment(variables) == ranks


def test_a_shell_in_an_allocation_of_several_tasks_is_alone():
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert Ranks.from_environment(batch) == ALONE
    interactive = {**batch, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert Ranks.from_environment(interactive) == ALONE


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, r"RANK=5 is not an integer in \[0, 2\); start with torchrun"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, r"RANK=-1 is not an integer in \[0, 2\)"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"}, r"LOCAL_RANK=2 is not an integer in \[0, 2\)"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, r"RANK=one is not an integer in"),
        ({"RANK": "0", "WORLD_SIZE": "2.0"}, r"WORLD_SIZE=2\.0 is not an integer in \[1, inf\)"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, r"WORLD_SIZE=0 is not an integer in \[1, inf\)"),
        ({"RANK": "0"}, r"WORLD_SIZE= is not an integer in"),
        ({"WORLD_SIZE": "4"}, r"WORLD_SIZE=4 is set but RANK is not; start with torchrun, or unset WORLD_SIZE"),
        ({**STEP, "SLURM_PROCID": "8"}, r"SLURM_PROCID=8 is not an integer in \[0, 8\)"),
    ],
)
def test_an_environment_that_cannot_be_is_named_in_one_line_with_the_remedy(variables, said):
    with pytest.raises(ValueError, match=said) as error:
        Ranks.from_environment(variables)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node7", "node7"),
        ("gpu-a.cluster,gpu-b.cluster", "gpu-a.cluster"),
        ("node[01-03,7],other", "node01"),
        ("node[7,01-03]", "node7"),
        ("n[009-010]", "n009"),
        ("rack[1-2]node[03-04]x,other[1-2]", "rack1node03x"),
        ("login,node[1-2]", "login"),
    ],
)
def test_first_host_of_a_node_list(node_list, host):
    assert first_host(node_list) == host


@pytest.mark.parametrize("node_list", ["", ",", ",node", "node[", "node[x]"])
def test_a_node_list_without_a_host_is_an_error(node_list):
    with pytest.raises(ValueError, match="set MASTER_ADDR"):
        first_host(node_list)


def test_under_srun_all_ranks_of_a_step_take_the_same_address_and_steps_differ():
    job = {**STEP, "SLURM_JOB_NODELIST": "a[1-9]", "SLURM_STEP_NODELIST": "a[3-4]"}
    host, port = store_address(job)
    assert host == "a3"
    assert store_address({**job, "SLURM_PROCID": "0"}) == (host, port)
    ports = {store_address({**job, "SLURM_STEP_ID": str(step)})[1] for step in range(10)}
    assert len(ports) == 10
    assert all(10_000 <= port < 30_000 for port in ports)


def test_a_given_address_comes_before_slurms():
    job = {**STEP, "SLURM_JOB_NODELIST": "a[1-9]", "MASTER_ADDR": "b", "MASTER_PORT": "1234"}
    assert store_address(job) == ("b", 1234)


@pytest.mark.parametrize(("variables", "missing"), [({"MASTER_PORT": "1"}, "ADDR"), ({"MASTER_ADDR": "a"}, "PORT")])
def test_without_an_address_the_error_names_what_is_missing(variables, missing):
    with pytest.raises(ValueError, match=f"MASTER_{missing}"):
        store_address(variables)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("job", "exit_code"), [("dies", 3), ("raises", 1)])
def test_a_rank_that_dies_ends_the_others_with_an_error_at_once(job, exit_code, tmp_path):
    processes = start(job, tmp_path, size=2)
    (first_code, first_error), (code, _) = [end(process, within=TIMEOUT / 2) for process in processes]
    assert code == exit_code
    assert first_code == 1
    assert "RuntimeError" in first_error


def test_a_rank_that_waits_in_vain_gives_up_with_an_error_after_the_timeout(tmp_path):
    first, hanging = start("hangs", tmp_path, size=2, seconds=8)
    (first_alone,) = start("leaves_at_once", tmp_path, size=2, only=0, seconds=1)
    (second_alone,) = start("leaves_at_once", tmp_path, size=2, only=1, seconds=1)
    said = {
        first: "Timed out",
        first_alone: "TimeoutError: rank 1 of 2 did not come within 0:00:01",
        second_alone: "DistNetworkError",
    }
    for process, words in said.items():
        code, error = end(process)
        assert code == 1
        assert words in error
    assert hanging.poll() is None
    hanging.kill()
    hanging.communicate()


def test_ranks_that_leave_as_soon_as_they_have_met_do_not_fail_each_other(tmp_path):
    assert [end(process) for process in start("leaves_at_once", tmp_path, size=3)] == [(0, "")] * 3


def test_torchrun_starts_ranks_and_again_after_one_of_them_died(tmp_path):
    agent = torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1", __file__, "dies_once", tmp_path, TIMEOUT)
    code, error = end(agent)
    assert code == 0, error
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [[11, 0], [11, 1]]
    assert [(tmp_path / f"attempts_of_{rank}").read_text() for rank in range(2)] == ["01", "01"]


@pytest.mark.slow
def test_ranks_on_two_machines_meet_again_though_only_one_machine_counts_the_restart(tmp_path):
    where = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=two"]
    agents = [torchrun(*where, "--max-restarts=1", __file__, "dies_once", tmp_path, TIMEOUT) for _ in range(2)]
    for code, error in [end(agent) for agent in agents]:
        assert code == 0, error
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [[11, 0], [11, 0]]
    attempts = [(tmp_path / f"attempts_of_{rank}").read_text() for rank in range(2)]
    assert sorted(attempts) == ["00", "01"]


if __name__ == "__main__":
    JOB, FOLDER, SECONDS = sys.argv[1:]
    RANKS = Ranks.from_environment()
    if JOB == "hangs":  # its few seconds are not meant for the other rank's import of torch
        (Path(FOLDER) / f"here_{RANKS.rank}").touch()
        wait_until(lambda: len([*Path(FOLDER).glob("here_*")]) == RANKS.size)
    with RANKS.joined(torch.device("cpu"), timedelta(seconds=float(SECONDS))):
        GROUP = weakref.ref(group.WORLD)
        torch.save(globals()[JOB](RANKS), Path(FOLDER) / f"{RANKS.rank}.pt")
    assert GROUP() is None, "the group and its threads are still there, and may abort the exit"
