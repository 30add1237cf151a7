"""Numbers as words."""

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


def counted(count: int, noun: str) -> str:
    """Format a count with its noun, in the singular for one.

    Args:
        count: Number of things.
        noun: What they are, in the singular; its plural ends in s.

    Returns:
        The text, with commas between thousands.

    Examples:
        >>> counted(1, "run"), counted(1200, "run")
        ('1 run', '1,200 runs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
