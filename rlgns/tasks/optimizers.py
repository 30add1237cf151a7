"""The optimisers of the supervised tasks: torch's, pytorch-optimizer's LARS and LAMB, momentum that absorbs the rate.

Biases and the parameters of batch normalisation are not decayed unless that is asked for (Goyal et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rlgns.tasks.config import SupervisedConfig


def make_optimizer(config: SupervisedConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, for all parameters of the model."""
    decayed = [p for p in model.parameters() if config.decay_all or p.dim() > 1]
    others = [p for p in model.parameters() if not (config.decay_all or p.dim() > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "momentum": _momentum(config),
        "nesterov": lambda groups, lr: torch.optim.SGD(groups, lr, config.momentum, nesterov=True),
        "rmsprop": lambda groups, lr: torch.optim.RMSprop(groups, lr, config.adam_beta2, config.optimizer_eps),
        "adam": lambda groups, lr: torch.optim.Adam(groups, lr, _betas(config), config.optimizer_eps),
        "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr, _betas(config), config.optimizer_eps),
        "lars": lambda groups, lr: _package().LARS(
            groups, lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient
        ),
        "lamb": lambda groups, lr: _lamb(groups, lr, config),
    }
    return make[config.optimizer]([group for group in groups if group["params"]], lr=config.learning_rate)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class AbsorbedMomentum(torch.optim.Optimizer):
    """v ← mv + ηg, w ← w − v: momentum that absorbs the learning rate, as Caffe has it.

    When η changes, v still carries the old one. With `correction` it is multiplied by η₊/η then, which makes the form
    equal to torch's, v ← mv + g, w ← w − ηv (Goyal et al. 2017, equation 10).
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, *, correction: bool) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.correction = correction

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients; the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            eta, before = group["lr"], group.get("last_lr", group["lr"])
            kept = group["momentum"] * (eta / before if self.correction else 1.0)
            group["last_lr"] = eta
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                velocity.mul_(kept).add_(gradient, alpha=eta)
                parameter.sub_(velocity)
        return loss


def _momentum(config: SupervisedConfig) -> Callable[..., torch.optim.Optimizer]:
    if config.momentum_form == "plain":
        return lambda groups, lr: torch.optim.SGD(groups, lr, config.momentum)
    return lambda groups, lr: AbsorbedMomentum(groups, lr, config.momentum, correction=config.momentum_correction)


def _lamb(groups: list[dict[str, Any]], lr: float, config: SupervisedConfig) -> torch.optim.Optimizer:
    """As You et al. 2019, arXiv:1904.00962, algorithm 2, without bias correction (their version 3).

    Left to itself the package decays weights beside the trust ratio, and divides the step by 1 − β₁ᵗ after it, which
    makes the first step ten times as long as the layer's weights allow.
    """
    groups = [{**group, "adam_debias": True} for group in groups]
    optimizer: torch.optim.Optimizer = _package().Lamb(
        groups, lr, _betas(config), eps=config.optimizer_eps, weight_decouple=False
    )
    return optimizer


def _betas(config: SupervisedConfig) -> tuple[float, float]:
    return config.adam_beta1, config.adam_beta2


def _package() -> Any:
    try:
        import pytorch_optimizer
    except ImportError:
        raise ValueError("lars and lamb need the package pytorch-optimizer; pip install 'rlgns[data]'") from None
    return pytorch_optimizer
