"""Who may import whom: one row a package, read from the source."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Room(NamedTuple):
    """What a package may import: other packages of rlgns, and packages beyond the standard library."""

    below: set[str]
    libraries: set[str]


ROOMS = {
    "noise": Room(set(), {"numpy", "scipy"}),
    "runs": Room({"noise"}, {"annotated_types", "numpy", "pydantic", "rich", "tensorboard", "torch", "wandb", "yaml"}),
    "gradients": Room({"noise", "runs"}, {"numpy", "torch"}),
    "study": Room({"noise", "runs"}, {"numpy", "scipy"}),
    "sweeps": Room({"runs", "study"}, {"submitit", "sweeps"}),
    "report": Room({"noise", "runs", "study"}, {"jinja2", "matplotlib", "numpy", "rich"}),
    "tasks": Room(
        {"noise", "runs", "gradients", "report"},
        {
            "PIL",
            "annotated_types",
            "cv2",
            "datasets",
            "huggingface_hub",
            "numpy",
            "pyarrow",
            "pytorch_optimizer",
            "sklearn",
        }
        | {"tokenizers", "torch"},
    ),
    "commands": Room({"noise", "runs", "study", "sweeps", "report", "tasks"}, {"annotated_types", "shtab", "yaml"}),
    "integrations": Room(
        {"noise", "runs", "gradients"},
        {"accelerate", "lightning", "numpy", "pytorch_lightning", "torch", "transformers"},
    ),
    "agents": Room(
        {"noise", "runs", "gradients", "report"},
        {
            "annotated_types",
            "ale_py",
            "envpool",  # where it is installed
            "gymnasium",
            "huggingface_hub",
            "imageio",
            "matplotlib",  # the type of the figure that NoiseScaleCallback.plot returns
            "numpy",
            "pygame",
            "rich",
            "sb3_contrib",
            "stable_baselines3",
            "torch",
            "typing_extensions",
        },
    ),
    "": Room({"noise", "runs", "gradients", "commands"}, set()),  # rlgns/__init__.py and __main__.py
}

INSTANT = ("rlgns", "rlgns.noise.scale", "rlgns.noise.history", "rlgns.runs.records", "rlgns.study.fits")
"""Modules that load neither torch nor anything else that is slow to import."""


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def sources(room: str) -> list[Path]:
    if room == "agents":  # rlgns/agents is a link to this folder
        return sorted((ROOT / "agents").rglob("*.py"))
    return sorted((ROOT / "rlgns" / room).glob("*.py" if room == "" else "**/*.py"))


def rooms_imported_by(path: Path) -> set[str]:
    second = {name.split(".")[1] for name in imports(path) if name.startswith("rlgns.")}
    return {name for name in second if (ROOT / "rlgns" / name).is_dir()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_imports_what_its_row_allows_and_nothing_else(room):
    for path in sources(room):
        allowed = ROOMS[room].below | {room}
        assert rooms_imported_by(path) <= allowed, path
        assert top_level_packages(path) <= ROOMS[room].libraries | {"rlgns"} | sys.stdlib_module_names, path


def test_every_row_is_needed_in_full():
    for room, (below, libraries) in ROOMS.items():
        assert below <= set().union(*map(rooms_imported_by, sources(room))), room
        assert libraries <= set().union(*map(top_level_packages, sources(room))), room


def test_every_package_has_a_row():
    packages = {path.parent.name for path in (ROOT / "rlgns").glob("*/__init__.py")}
    assert packages == ROOMS.keys() - {""}


def test_packages_do_not_import_each_other_in_a_circle():
    order, waiting = set(), {room: row.below for room, row in ROOMS.items()}
    while waiting:
        ready = {room for room, below in waiting.items() if below <= order}
        assert ready, f"a circle among {sorted(waiting)}"
        order |= ready
        waiting = {room: below for room, below in waiting.items() if room not in ready}


def test_modules_do_not_import_each_other_in_a_circle():
    files = {
        ".".join(["rlgns", *([room] if room else []), *path.relative_to(folder).with_suffix("").parts]): path
        for room in ROOMS
        for folder in [ROOT / "agents" if room == "agents" else ROOT / "rlgns" / room]
        for path in sources(room)
    }
    waiting = {
        name: {other for imported in imports(path) for other in (imported, imported.rpartition(".")[0])}
        & files.keys() - {name}
        for name, path in files.items()
    }
    order: set[str] = set()
    while waiting:
        ready = {name for name, needed in waiting.items() if needed <= order}
        assert ready, f"a circle among {sorted(waiting)}"
        order |= ready
        waiting = {name: needed for name, needed in waiting.items() if name not in ready}


def test_wandb_is_imported_in_one_file():
    importing = [path for room in ROOMS for path in sources(room) if "wandb" in top_level_packages(path)]
    assert importing == [ROOT / "rlgns/runs/wandb_sink.py"]


@pytest.mark.parametrize("room", ["noise", "study"])
def test_mathematics_and_study_never_import_torch_or_a_plotting_library(room):
    for path in sources(room):
        assert not top_level_packages(path) & {"torch", "matplotlib"}, path


def test_importing_rlgns_or_its_mathematics_loads_no_torch_wandb_or_matplotlib():
    heavy = (
        "torch",
        "wandb",
        "matplotlib",
        "sb3_contrib",
        "stable_baselines3",
        "gymnasium",
        "lightning",
        "transformers",
    )
    code = f"import sys, {', '.join(INSTANT)}; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) in {(0, ""), (1, "")}, done.stderr


@pytest.mark.parametrize("package", ["rlgns", "rlgns.agents"])
def test_a_package_lists_its_public_names_and_nothing_else(package):
    code = (
        f"import {package} as p, json; print(json.dumps([dir(p), [getattr(p, name) is not None for name in dir(p)]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names, exist = json.loads(done.stdout)
    tree = ast.parse((ROOT / package.rpartition(".")[2] / "__init__.py").read_text())
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert set(names) - {"__version__"} == set(ast.literal_eval(assigned["__all__"]))
    assert all(exist)
