"""The notebook runs from its first cell to its last, in a kernel, with fewer steps; and is kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path):
    changes = {
        "2_500": "300",
        "gradient_steps=6": "gradient_steps=1",
        '{"retrain_every": 1_000}': '{"retrain_every": 150, "num_synthetic": 500, "upsampler": '
        '{"network": {"width": 32, "depth": 1}, "train_steps": 30, "terminal_steps": 30, "outcome_steps": 30}}',
    }
    for cell in notebook.cells:
        for old, new in changes.items():
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = "".join(output.get("text", "") for output in outputs)
    # A refresh is seen without any setting, and so are its figures and pictures.
    assert "Synthetic refresh at 150 real transitions" in told
    assert "after 150 transitions: 500 rows" in told
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    # The mask of 16 rows, eight of them synthetic.
    masks = [
        output.data["text/plain"] for output in outputs if "tensor([" in output.get("data", {}).get("text/plain", "")
    ]
    assert masks[0].count("True") == 8
