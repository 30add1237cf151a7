"""How the learning rate follows the batch."""

from __future__ import annotations


def rate_ratio(old: float, new: float, noise_scale: float, exponent: float) -> float:
    """ε(B₁)/ε(B₀) by the rule ε(B) = ε*/(1 + B*/B)^α of McCandlish et al. 2018.

    Args:
        old: B₀.
        new: B₁.
        noise_scale: B*.
        exponent: α.

    Examples:
        Without noise the batch does not matter, and with much of it SGD's rate is proportional to the batch:

        >>> rate_ratio(64, 256, 0, 1), round(rate_ratio(64, 256, 1e9, 1), 4)
        (1.0, 4.0)
    """
    return float(((1 + noise_scale / old) / (1 + noise_scale / new)) ** exponent)
