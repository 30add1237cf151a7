"""The commands of `rlgns`, one module each: its `main` takes the arguments after the name and returns the exit code."""
