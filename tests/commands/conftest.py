"""An empty folder to work in, with a dataset and a small configuration."""

import json

import pytest
from toys import TINY, gaussian

from synther_buffers.datasets import write_dataset


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real(tmp_path):
    write_dataset("real.hdf5", gaussian(400))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    return "real.hdf5"
