"""Who may import whom: scripts over agents over rlgns, and the levels inside rlgns, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rlgns.cli import COMMANDS

ROOT = Path(__file__).parents[1]

MATHS = {"records", "estimators", "statistics", "grouping", "measurements", "goals", "likelihoods", "fits"}
"""Level 0: can be read and trusted without a GPU, imports in an instant."""

MAY_IMPORT = {
    **{name: {"numpy", "scipy"} for name in MATHS},
    "parallel": {"torch"},
    "normalisation": {"torch"},
    "grams": {"numpy", "torch"},
    "layer_products": {"torch"},
    "gradients": {"numpy", "torch"},
    "checkpoints": {"numpy", "torch"},
    "run_directory": set(),
    "running": set(),
    "sinks": {"numpy", "wandb"},
    "figures": {"numpy", "matplotlib"},
    "console": {"rich"},
    "flags": {"pydantic", "tyro", "yaml"},
    "tasks.__init__": set(),
    "tasks.quadratic": {"numpy"},
    "tasks.config": set(),
    "tasks.data": {"numpy", "torch", "cv2", "datasets", "sklearn"},
    "tasks.text": {"torch", "tokenizers"},
    "tasks.networks": {"torch"},
    "tasks.catalogue": {"torch"},
    "tasks.optimizers": {"torch", "pytorch_optimizer"},
    "tasks.learning": {"numpy", "torch"},
    "tasks.swap": {"torch"},
    "sharpness": {"numpy", "scipy", "torch"},
    "tasks.supervised": {"torch"},
    "tasks.entry": set(),
    "schedules": set(),
    "machine": set(),
    "network": set(),
    "__main__": set(),
    "cli": set(),
    "outcomes": set(),
    "points": set(),
    "goal_fits": {"numpy", "scipy"},
    "predictions": set(),
    "advice": set(),
    "study": set(),
    "sweeps": {"sweeps"},
    "following": set(),
    "jobs": set(),
    "launcher": set(),
    "sweep_figures": {"numpy", "matplotlib"},
    "report": {"jinja2"},
    "comparison": set(),
    "comparison_figures": {"numpy", "matplotlib"},
    "comparison_page": set(),
    **{f"commands.{name}": set() for name in ("__init__", *COMMANDS)},
    "summary": set(),
    "__init__": set(),
}
"""Packages beyond the standard library by module of rlgns."""

ABOVE_MATHS = {
    **dict.fromkeys(MATHS, MATHS),
    "parallel": set(),
    "grams": MATHS | {"parallel"},
    "normalisation": set(),
    "layer_products": MATHS | {"parallel", "grams", "normalisation"},
    "gradients": MATHS | {"parallel", "grams", "layer_products"},
    "checkpoints": MATHS,
    "schedules": set(),
    "network": set(),
    "run_directory": set(),
    "flags": {"run_directory"},
    "outcomes": MATHS,
    "points": MATHS | {"outcomes"},
    "goal_fits": MATHS | {"outcomes", "points"},
    "predictions": MATHS | {"outcomes", "points"},
    "advice": MATHS | {"outcomes", "points", "goal_fits", "predictions"},
    "study": MATHS | {"outcomes", "points", "goal_fits", "predictions", "advice"},
    "__init__": MATHS,
}
"""Modules of rlgns that a module of rlgns may import; level 3 may import all."""


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


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted, below rlgns."""
    return ".".join(path.relative_to(ROOT / "rlgns").with_suffix("").parts)


def modules_of_rlgns(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    exported = set(ast.literal_eval((ROOT / "rlgns/__init__.py").read_text().partition("__all__ = ")[2]))
    found = {"__init__" if name[1] in exported else name[1] for name in names if name[0] == "rlgns"}
    return {f"{name}.__init__" if (ROOT / "rlgns" / name / "__init__.py").exists() else name for name in found}


@pytest.mark.parametrize("path", sources("rlgns"), ids=name_of)
def test_a_module_of_rlgns_imports_only_the_packages_of_its_level(path):
    name = name_of(path)
    assert name in MAY_IMPORT, f"say in tests/test_layers.py which packages rlgns/{name} may import"
    assert packages(path) <= MAY_IMPORT[name] | {"rlgns"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", sources("rlgns"), ids=name_of)
def test_a_module_of_rlgns_imports_no_level_above_its_own(path):
    assert modules_of_rlgns(path) <= ABOVE_MATHS.get(name_of(path), MAY_IMPORT.keys())


def test_modules_of_rlgns_do_not_import_each_other_in_a_circle():
    order, graph = [], {name_of(path): modules_of_rlgns(path) for path in sources("rlgns")}
    while graph:
        ready = {name for name, needed in graph.items() if needed <= set(order)}
        assert ready, f"a circle among {sorted(graph)}"
        order += ready
        graph = {name: needed for name, needed in graph.items() if name not in ready}


def test_wandb_is_imported_in_one_file():
    assert [p for folder in ("rlgns", "agents") for p in sources(folder) if "wandb" in packages(p)] == [
        ROOT / "rlgns/sinks.py"
    ]


def test_rlgns_imports_neither_agents_nor_scripts_and_agents_no_scripts():
    for path in sources("rlgns"):
        assert not packages(path) & {"agents", "scripts", "stable_baselines3", "gymnasium", "ale_py"}, path
    for path in sources("agents"):
        assert "scripts" not in packages(path), path


def test_importing_rlgns_or_its_mathematics_loads_no_torch_wandb_or_matplotlib():
    modules = ", ".join(["rlgns", *(f"rlgns.{name}" for name in sorted(MATHS))])
    heavy = ("torch", "wandb", "matplotlib", "stable_baselines3", "gymnasium")
    code = f"import sys, {modules}; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) in {(0, ""), (1, "")}, done.stderr
