"""Errors whose remedy is an argument for the user of the library and a flag for the user of a command.

A function that scripts may call says `use n_envs=4`, and the command that calls it says `use --num-envs 4`. Such a
function raises `ArgumentError`, whose text names the argument; `rlgns.runs.exit_codes.exit_code_of`, with which every
command ends, prints `in_flags` instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument, possibly with a value, in the spelling of Python and in that of the command line.

    Attributes:
        python: The spelling in a script: `n_envs=4`.
        command: The spelling on the command line: `--num-envs 4`.
    """

    python: str
    command: str

    @classmethod
    def of(cls, name: str, value: object = None) -> Argument:
        """An argument that has the same name in Python and on the command line."""
        flag = "--" + name.replace("_", "-")
        return cls(name, flag) if value is None else cls(f"{name}={value!r}", f"{flag} {value}")


class ArgumentError(ValueError):
    """An invalid value, with the arguments that are the remedy.

    Attributes:
        in_flags: The message with the arguments as flags of the command line.
    """

    def __init__(self, *parts: str | Argument) -> None:
        """Join the parts of the message.

        Args:
            parts: Text and arguments in the order of the message.
        """
        super().__init__("".join(part if isinstance(part, str) else part.python for part in parts))
        self.in_flags = "".join(part if isinstance(part, str) else part.command for part in parts)


def in_flags(error: Exception) -> str:
    """The message of an error for a person at the command line."""
    return error.in_flags if isinstance(error, ArgumentError) else str(error)
