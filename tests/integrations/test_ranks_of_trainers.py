"""Two real processes under DDP: the moments are those of all micro-batches of both, by plain autograd.

Run as a script under torchrun, this file is one rank: `test_ranks_of_trainers.py JOB FOLDER`.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import HANG, child_environment
from support.tolerances import assert_same_moments, rounding
from support.trainers import Seen, assert_unequal_moments, gradients
from test_parallel import free_port

from rlgns import moments_from_groups
from rlgns.noise.history import TRAINED

SIZE, ACCUMULATED, MICRO_BATCH = 2, 2, 3


def with_lightning(folder):
    import lightning.pytorch
    from test_lightning import data, module_of
    from torch.utils.data import DataLoader

    from rlgns.integrations.lightning import NoiseScaleCallback

    callback, module = NoiseScaleCallback(measure_every=1), module_of()
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu", devices=SIZE, strategy="ddp", accumulate_grad_batches=ACCUMULATED, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(24), batch_size=MICRO_BATCH))
    return trainer.global_rank, callback.history, module.seen


def with_transformers(folder):
    from test_hf_trainer import gpt2, texts, trained

    options = {"gradient_accumulation_steps": ACCUMULATED, "num_train_epochs": 1, "ddp_backend": "gloo"}
    trainer, callback = trained(gpt2(), texts(16), folder, **options)
    return trainer.args.process_index, callback.history, trainer.seen


def with_accelerate(folder):
    import test_accelerate

    test_accelerate.ACCUMULATED, test_accelerate.MICRO_BATCH = ACCUMULATED, MICRO_BATCH
    _, seen, noise, _ = test_accelerate.trained(num_examples=24)
    return noise._accelerator.process_index, noise.history, seen


JOBS = {"lightning": with_lightning, "transformers": with_transformers, "accelerate": with_accelerate}


def of_both_ranks(job, folder):
    """The history of every rank, and what each has seen."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(SIZE), "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), __file__, job, str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=child_environment(), cwd=folder, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    both = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(SIZE)]
    histories, seen = zip(*both, strict=True)
    assert repr(histories[0].measurements) == repr(histories[1].measurements)  # with nan in both
    assert [len(each.batches) for each in seen] == [len(seen[0].batches)] * SIZE
    return histories[0].moments(TRAINED), seen


def by_update(rows):
    """[updates, ranks × micro-batches] of the values [micro-batches of all updates] of each rank, by rank."""
    per_rank = [[each[i : i + ACCUMULATED] for i in range(0, len(each), ACCUMULATED)] for each in rows]
    return [[*itertools.chain(*parts)] for parts in zip(*per_rank, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("job", ["lightning", "accelerate"])
def test_ranks_are_groups_beside_micro_batches(tmp_path, job):
    import test_accelerate
    import test_lightning

    found, seen = of_both_ranks(job, tmp_path)
    if job == "lightning":
        model, loss = test_lightning.module_of().net, test_lightning.loss_of
    else:
        model, loss = test_accelerate.network(), test_accelerate.loss_of
    expected = by_update([gradients(model, each, loss) for each in seen])
    assert len(found) == len(expected) == 2
    for moments, rows in zip(found, expected, strict=True):
        assert_same_moments(moments, moments_from_groups(np.array(rows), MICRO_BATCH), torch.float64)


@pytest.mark.slow
def test_tokens_of_all_ranks_weight_the_micro_batches(tmp_path):
    from test_hf_trainer import gpt2, mean_loss, tokens_of

    found, seen = of_both_ranks("transformers", tmp_path)
    expected = by_update([gradients(gpt2(), each, mean_loss) for each in seen])
    sizes = by_update([[tokens_of(batch) for batch in each.batches] for each in seen])
    assert len(found) == len(expected) == 2
    for moments, rows, n in zip(found, expected, sizes, strict=True):
        assert_unequal_moments(moments, rows, n, n, rounding(torch.float32))


if __name__ == "__main__":
    _, name, destination = sys.argv
    rank, history, batches = JOBS[name](Path(destination))
    batches = Seen(batches.batches, [{k: v.clone() for k, v in each.items()} for each in batches.parameters])
    torch.save((history, batches), Path(destination) / f"rank{rank}.pt")
