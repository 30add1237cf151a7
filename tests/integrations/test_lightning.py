"""PyTorch Lightning's trainer, with real trainings of a tiny network on the CPU."""

import importlib

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from support.tolerances import assert_same_moments, rounding
from support.trainers import Seen, assert_unequal_moments, gradients, moments_of_updates
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rlgns.integrations.lightning import NoiseScaleCallback
from rlgns.noise.history import TRAINED

LIBRARIES = {"lightning": lightning.pytorch, "pytorch_lightning": pytorch_lightning}
ACCUMULATED, MICRO_BATCH = 4, 6

pytestmark = [  # what Lightning itself does
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated"),
]


def data(num_examples=96, dtype=torch.float64):
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(num_examples, 5, generator=draws, dtype=torch.float64)
    y = x.sum(1) + torch.randn(num_examples, generator=draws, dtype=torch.float64)
    return TensorDataset(x.to(dtype), y.to(dtype))


def loss_of(call, batch):
    return (call(batch[0]).squeeze(1) - batch[1]).square().mean()


def module_of(library=lightning.pytorch, *, optimizer=torch.optim.Adam, dtype=torch.float64):
    """A module of either library that notes what it trains on."""

    class Module(library.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1)).to(dtype)
            self.seen = Seen()

        def training_step(self, batch, _):
            self.seen.add(self.net, batch)
            loss = loss_of(self.net, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return optimizer(self.parameters(), lr=0.01)

    return Module()


def trainer_of(library, callbacks=(), **options):
    options = {"accumulate_grad_batches": ACCUMULATED, "max_epochs": 2, "logger": False, "devices": 1} | options
    return library.Trainer(
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1, callbacks=list(callbacks), **options,
    )  # fmt: skip


def trained(callback=None, library=lightning.pytorch, *, dataset=None, module=None, **options):
    module = module or module_of(library)
    trainer = trainer_of(library, [callback] if callback else [], **options)
    trainer.fit(module, DataLoader(dataset or data(), batch_size=MICRO_BATCH))
    return module, trainer


@pytest.mark.parametrize("name", LIBRARIES)
def test_moments_are_those_of_plain_autograd_at_every_update(name):
    callback = NoiseScaleCallback(measure_every=1)
    module, trainer = trained(callback, LIBRARIES[name], gradient_clip_val=0.1)
    rows = gradients(module.net, module.seen, loss_of)
    expected = moments_of_updates(rows, ACCUMULATED, MICRO_BATCH)
    found = callback.history.moments(TRAINED)
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        assert_same_moments(one, other, torch.float64)
    assert trainer.callback_metrics["noise/trained/noise_scale"] == pytest.approx(callback.noise_scale().point)
    assert trainer.callback_metrics["noise/trained/sq_norm"] == pytest.approx(found[-1].sq_norm)


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}])
def test_training_is_bitwise_the_same(options):
    callback = NoiseScaleCallback(measure_every=2)
    with_it, without = (
        trained(each, module=module_of(dtype=torch.float32), dataset=data(dtype=torch.float32), **options)[0]
        for each in (callback, None)
    )
    assert callback.noise_scale() is not None
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def by_amp(callback, scale=None):
    """A training in float32, or in float16 with a scale of the loss."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    plugins = [lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)] if scale else None
    trained(
        callback, module=module_of(dtype=torch.float32), dataset=data(dtype=torch.float32), plugins=plugins,
        gradient_clip_val=0.1, max_epochs=1,
    )  # fmt: skip
    return callback.history.moments(TRAINED)


def test_the_scale_of_amp_is_taken_out():
    found, expected = by_amp(NoiseScaleCallback(1), scale=1024.0), by_amp(NoiseScaleCallback(1))
    # activations have 11 bits in float16: their rounding, and no factor of 1024
    assert found[0].small_sq_norm != expected[0].small_sq_norm
    assert found[0].small_sq_norm == pytest.approx(expected[0].small_sq_norm, rel=64 * 2**-11)


def test_an_overflow_of_amp_is_skipped_as_its_step_is():
    callback = NoiseScaleCallback(measure_every=1)
    with pytest.warns(UserWarning, match="update 1 is not measured"):
        by_amp(callback, scale=2.0**17)
    assert 1 <= callback.meter.skipped < 4


def test_a_short_last_micro_batch_and_a_short_last_accumulation():
    """64 examples: batches of 6, the last of 4, accumulated by 5 and then by 5 and 1."""
    callback = NoiseScaleCallback(measure_every=1)
    module, _ = trained(callback, dataset=data(58), accumulate_grad_batches=5, max_epochs=1)
    rows = gradients(module.net, module.seen, loss_of)
    assert [len(batch[0]) for batch in module.seen.batches] == [6] * 9 + [4]
    first, last = callback.history.moments(TRAINED)
    assert_same_moments(first, moments_of_updates(rows[:5], 5, 6)[0], torch.float64)
    # Lightning averages over micro-batches, so that each has the same weight
    assert_unequal_moments(last, rows[5:], [6, 6, 6, 6, 4], [1] * 5, rounding(torch.float64))
    short = NoiseScaleCallback(measure_every=1)
    trained(short, dataset=data(6 * 7), accumulate_grad_batches=5, max_epochs=1)
    assert (len(short.history.measurements), short.meter.skipped) == (1, 1)


def test_tokens_are_counted_by_an_argument():
    callback = NoiseScaleCallback(1, count=lambda batch: 10 * len(batch[0]), unit="tokens")
    trained(callback, max_epochs=1)
    assert callback.history.moments(TRAINED)[0].small_batch_size == 10 * MICRO_BATCH
    assert "tokens" in callback.recommendation()
    assert callback.summary()["noise/num_measurements"] == 4


class Opaque:
    """A batch that Lightning cannot look into."""

    def __init__(self, rows):
        self.rows = rows


def test_a_batch_of_unknown_size_is_refused_in_the_callback_s_argument():
    callback = NoiseScaleCallback(1)
    with pytest.raises(ValueError, match="cannot be told from a batch of type Opaque; pass count="):
        callback.on_train_batch_start(trainer_of(lightning.pytorch), module_of(), Opaque([]), 0)
    callback.meter.close()


def test_a_checkpoint_keeps_the_measurements(tmp_path):
    callback, resumed = NoiseScaleCallback(1), NoiseScaleCallback(1)
    _, trainer = trained(callback, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = trainer_of(lightning.pytorch, [resumed], max_epochs=2)
    module = module_of()
    other.fit(module, DataLoader(data(), batch_size=MICRO_BATCH), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.history.updates == list(range(1, 9))
    assert repr(resumed.history.measurements[:4]) == repr(callback.history.measurements)  # with nan in both


def test_loggers_receive_the_noise_scale(tmp_path):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    trained(NoiseScaleCallback(measure_every=2), logger=logger)
    header, *lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = header.split(",").index("noise/trained/trace_covariance")
    assert sum(bool(line.split(",")[column]) for line in lines) >= 7


class Manual(lightning.pytorch.LightningModule):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 1).double()

    def training_step(self, batch, _):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 1}, r"use Trainer\(accumulate_grad_batches=4\).* or devices=2"),
        ({"accumulate_grad_batches": 1, "module": Manual()}, "automatic_optimization is False"),
        ({"module": module_of(optimizer=torch.optim.LBFGS)}, "LBFGS"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        trained(NoiseScaleCallback(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_gradients_are_refused(name):
    strategies = importlib.import_module("lightning.pytorch.strategies")
    trainer = trainer_of(lightning.pytorch)
    # DeepSpeed is not installed: a strategy of its class is all that the callback looks at
    trainer._accelerator_connector.strategy = object.__new__(getattr(strategies, name))
    with pytest.raises(ValueError, match=f"{name} shards gradients; use strategy='ddp'"):
        NoiseScaleCallback().on_train_start(trainer, module_of())
