"""The notebook runs as it stands, and what it shows is stored."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.processes import HANG, child_environment

NOTEBOOK = Path(__file__).parents[2] / "scripts" / "notebook.ipynb"


def shown(notebook):
    """Text and kinds of data that the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    return text, {kind for output in outputs for kind in output.get("data", {})}


def check(notebook):
    text, kinds = shown(notebook)
    assert "policy" in text
    assert "n_envs=" in text
    assert "image/png" in kinds
    assert "Error" not in text


def test_the_stored_outputs_answer_the_question_and_are_of_every_cell_in_order():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert str(Path.home()) not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=int(HANG), kernel_name="python3", resources=resources)
    client.execute(env=child_environment())
    check(notebook)
