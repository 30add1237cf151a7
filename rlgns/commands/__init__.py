"""One module a command of `rlgns`: its `main` takes the arguments after the command's name and gives the exit code."""
