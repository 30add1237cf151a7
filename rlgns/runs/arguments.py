"""Errors that name arguments to a library's user and flags to a command's.

A function that scripts may call says `use n_envs=4`, and the command that calls it says `use --num-envs 4`. Such a
function raises `ArgumentError`, whose text is the library's; `exit_code_of`, which every command ends in, prints
`in_flags` instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument, with a value where one is meant, as scripts and as commands name it.

    Attributes:
        python: In a script: `n_envs=4`.
        command: On the command line: `--num-envs 4`.
    """

    python: str
    command: str

    @classmethod
    def of(cls, name: str, value: object = None) -> Argument:
        """The argument of a function whose name is that of the option, too."""
        flag = "--" + name.replace("_", "-")
        return cls(name, flag) if value is None else cls(f"{name}={value!r}", f"{flag} {value}")


class ArgumentError(ValueError):
    """A value that cannot be, with the arguments that would do."""

    def __init__(self, *parts: str | Argument) -> None:
        """Join the parts.

        Args:
            parts: Text, and the arguments in it.
        """
        super().__init__("".join(part if isinstance(part, str) else part.python for part in parts))
        self.in_flags = "".join(part if isinstance(part, str) else part.command for part in parts)


def in_flags(error: Exception) -> str:
    """The text of an error for a person at the command line."""
    return error.in_flags if isinstance(error, ArgumentError) else str(error)
