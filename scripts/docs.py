"""Build the API documentation: `pip install -e .[docs]`, then `python scripts/docs.py site`.

The public names that need heavy libraries are loaded when they are first used. pdoc looks for names in the modules'
dictionaries only, so that they are loaded and entered there before it starts.
"""

import argparse
import importlib
from pathlib import Path

MODULES = ("rlgns", "rlgns.agents", "rlgns.noise", "rlgns.gradients")


def main() -> None:
    """Write one page for each documented module."""
    parser = argparse.ArgumentParser(description="Build the API documentation with pdoc.")
    parser.add_argument("folder", type=Path, help="folder for the HTML pages, made if it does not exist")
    folder = parser.parse_args().folder
    import pdoc

    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            setattr(module, public, getattr(module, public))
    pdoc.render.configure(docformat="google", math=False)
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    main()
