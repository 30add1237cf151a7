"""Numbers of examples as words."""

from __future__ import annotations


def in_words(examples: float) -> str:
    """Format a number of examples: whole from 10 upwards, two significant digits below.

    A noise scale can be less than one example.

    Args:
        examples: Number of examples, finite.

    Returns:
        The text, with commas between thousands.

    Examples:
        >>> in_words(12345.6), in_words(0.0342)
        ('12,346', '0.034')
    """
    return f"{examples:,.0f}" if examples >= 10 else f"{examples:.2g}"
