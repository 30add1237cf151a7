"""The optimisers of the supervised tasks: those of torch, LARS and LAMB of pytorch-optimizer, and absorbed momentum.

Weight decay leaves out biases and the parameters of batch normalisation unless `decay_all` is set (Goyal et al. 2017,
arXiv:1706.02677).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rlgns.gradients.normalisation import forget_statistics
from rlgns.tasks.config import SupervisedConfig


def make_optimizer(config: SupervisedConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Create the configured optimiser for all parameters of the model.

    Raises:
        ValueError: If LARS or LAMB is configured and pytorch-optimizer is not installed.
    """
    decayed = [p for p in model.parameters() if config.decay_all or p.dim() > 1]
    others = [p for p in model.parameters() if not (config.decay_all or p.dim() > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    constructors: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "momentum": _momentum(config),
        "nesterov": lambda groups, lr: torch.optim.SGD(groups, lr, config.momentum, nesterov=True),
        "rmsprop": lambda groups, lr: torch.optim.RMSprop(groups, lr, config.adam_beta2, config.optimizer_eps),
        "rmsprop_warmup": lambda groups, lr: RMSpropWarmup(
            groups, lr, config.rmsprop_rate, config.momentum, config.adam_beta2, config.optimizer_eps
        ),
        "adam": lambda groups, lr: torch.optim.Adam(groups, lr, _betas(config), config.optimizer_eps),
        "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr, _betas(config), config.optimizer_eps),
        "lars": lambda groups, lr: _import_pytorch_optimizer().LARS(
            groups, lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient
        ),
        "lamb": lambda groups, lr: _lamb(groups, lr, config),
    }
    return constructors[config.optimizer]([group for group in groups if group["params"]], lr=config.learning_rate)


def begin_update(optimizer: torch.optim.Optimizer, model: nn.Module, config: SupervisedConfig, epoch: float) -> None:
    """Prepare an update where its options ask for it, before the forward pass.

    Args:
        optimizer: The optimiser; that of RMSprop warm-up is told how far its transition is.
        model: The model, whose batch normalisation forgets earlier batches with `bn_statistics` "last".
        config: Options of the run.
        epoch: Passes over the training examples so far.
    """
    if isinstance(optimizer, RMSpropWarmup):
        optimizer.sgd_share = sgd_share(epoch, config.transition_epochs, config.transition_period)
    if config.bn_statistics == "last":
        forget_statistics(model)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def sgd_share(epoch: float, center: float, period: float) -> float:
    """α_SGD of RMSprop warm-up: exponential up to the centre, where it is ½, and then linear up to 1.

    Source: Akiba et al. 2017, arXiv:1711.04325, section 3.

    Args:
        epoch: Passes over the training examples.
        center: Epoch at which it is ½.
        period: Epochs over which the transition is spread.

    Examples:
        >>> [round(sgd_share(epoch, 10, 5), 3) for epoch in (0, 5, 10, 12.5, 20)]
        [0.009, 0.068, 0.5, 1.0, 1.0]
    """
    if epoch < center:
        return 0.5 * math.exp(2 * (epoch - center) / period)
    return min(0.5 + (epoch - center) / period, 1.0)


class _ByGroup(torch.optim.Optimizer):
    """An optimiser that updates one parameter group after the other."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters from their gradients.

        Args:
            closure: Recomputes the loss and the gradients, as for torch's own optimisers.

        Returns:
            The loss that the closure returns; None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update_group(group)
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        raise NotImplementedError


class RMSpropWarmup(_ByGroup):
    """RMSprop that turns into SGD with momentum: Δ ← μΔ − (α_SGD + α_RMSprop/(√m + ε))·g, w ← w + ηΔ.

    m is the running mean of g², and α_RMSprop = (1 − α_SGD)·η_RMSprop/η, so that the rates of the two are chosen apart
    (Akiba et al. 2017, arXiv:1711.04325, section 3). `sgd_share` is to be set before every step.

    Attributes:
        sgd_share: α_SGD.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, rmsprop_rate: float, momentum: float, smoothing: float, eps: float
    ) -> None:
        """Create the optimiser.

        Args:
            params: Parameters or parameter groups, which may hold `weight_decay`.
            lr: Learning rate η of momentum SGD.
            rmsprop_rate: Learning rate η_RMSprop.
            momentum: Momentum μ.
            smoothing: Weight of the old mean of g².
            eps: ε.
        """
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self.sgd_share = 0.0
        self._rmsprop_rate, self._momentum, self._smoothing, self._eps = rmsprop_rate, momentum, smoothing, eps

    def _update_group(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        square = state.setdefault("square_avg", torch.zeros_like(parameter))
        change = state.setdefault("change", torch.zeros_like(parameter))
        square.mul_(self._smoothing).addcmul_(gradient, gradient, value=1 - self._smoothing)
        rmsprop = (1 - self.sgd_share) * self._rmsprop_rate / group["lr"]
        change.mul_(self._momentum).sub_(gradient * (self.sgd_share + rmsprop / (square.sqrt() + self._eps)))
        parameter.add_(change, alpha=group["lr"])


class AbsorbedMomentum(_ByGroup):
    """SGD with momentum that absorbs the learning rate: v ← mv + ηg, w ← w − v, as in Caffe.

    After a change of η the velocity v still carries the old rate. With `correction` it is multiplied by η_new/η_old,
    which makes this form equal to torch's, v ← mv + g, w ← w − ηv (Goyal et al. 2017, equation 10).
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, *, correction: bool) -> None:
        """Create the optimiser.

        Args:
            params: Parameters or parameter groups, which may hold `weight_decay`.
            lr: Learning rate η.
            momentum: Momentum m.
            correction: Whether the velocity is rescaled when the learning rate changes.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.correction = correction

    def _update_group(self, group: dict[str, Any]) -> None:
        rate, last_rate = group["lr"], group.get("last_lr", group["lr"])
        momentum = group["momentum"] * (rate / last_rate if self.correction else 1.0)
        group["last_lr"] = rate
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
            velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
            velocity.mul_(momentum).add_(gradient, alpha=rate)
            parameter.sub_(velocity)


def _momentum(config: SupervisedConfig) -> Callable[..., torch.optim.Optimizer]:
    if config.momentum_form == "plain":
        return lambda groups, lr: torch.optim.SGD(groups, lr, config.momentum)
    return lambda groups, lr: AbsorbedMomentum(groups, lr, config.momentum, correction=config.momentum_correction)


def _lamb(groups: list[dict[str, Any]], lr: float, config: SupervisedConfig) -> torch.optim.Optimizer:
    """LAMB as in You et al. 2019, arXiv:1904.00962, algorithm 2, without bias correction (version 3 of the paper).

    By default the package decays the weights outside of the trust ratio, and divides the step by 1 − β₁ᵗ after applying
    the trust ratio, which makes the first step ten times as long as the norm of the layer's weights allows.
    """
    groups = [{**group, "adam_debias": True} for group in groups]
    optimizer: torch.optim.Optimizer = _import_pytorch_optimizer().Lamb(
        groups, lr, _betas(config), eps=config.optimizer_eps, weight_decouple=False
    )
    return optimizer


def _betas(config: SupervisedConfig) -> tuple[float, float]:
    return config.adam_beta1, config.adam_beta2


def _import_pytorch_optimizer() -> Any:
    try:
        import pytorch_optimizer
    except ImportError:
        raise ValueError("lars and lamb need the package pytorch-optimizer; pip install 'rlgns[tasks]'") from None
    return pytorch_optimizer
