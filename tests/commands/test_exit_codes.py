"""Wrong usage is 2, a failure is 1, and either is told in one line."""

import json

import pytest
from commands_helpers import open_exists, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage"),
        (("nonsense",), "No such command"),
        (("upsample",), "Missing"),
        (("upsample", "real.hdf5"), "--output"),
        (("upsample", "real.hdf5", "-o", "x.npz", "-n", "0"), "--num-samples"),
        (("upsample", "real.hdf5", "-o", "x.npz", "-n", "many"), "--num-samples"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--preset", "magic"), "unknown preset 'magic'; known presets"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--device", "abacus"), "cannot be used here"),
        (("upsample", "real.hdf5", "-o", "x.csv"), "suffix tells no format"),
        (
            ("upsample", "real.hdf5", "-o", "x.npz", "--output-format", "csv"),
            "--output-format is 'csv'; formats that can",
        ),
        (("upsample", "real.hdf5", "-o", "x.npz", "--input-format", "csv"), "--input-format is 'csv'; known formats"),
        (("evaluate", "real.hdf5", "real.hdf5", "--input-format", "csv"), "--input-format is 'csv'; known formats"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--augmentation", "blur"), "known ones: bootstrap"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--augmentation", "gaussian", "--preset", "cpu"), "leave out"),
        (("upsample", "real.hdf5", "-o", "x.npz", "--config", "missing.json"), "is no JSON"),
        (
            ("plot", "real.hdf5", "real.hdf5", "-o", "pictures", "--image-format", "gif"),
            "--image-format is 'gif'; wanted png",
        ),
        (("info", "real.hdf5", "--format", "hdf5"), "write --input-format."),
        (("upsample", "real.hdf5", "--format", "npz"), "write --output-format or --input-format."),
        (("evaluate", "real.hdf5", "--format", "npz"), "write --input-format."),
        (
            ("plot", "real.hdf5", "real.hdf5", "--format", "pdf"),
            "--format is 'pdf', but says not of what; write --image-",
        ),
    ],
)
def test_wrong_usage_is_2(real, arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr + (result.stdout if not arguments else "")
    assert not open_exists("x.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_step": 5}, "wrong.json: unknown train_step. Did you mean 'train_steps'? Known: network, training"),
        ({"network": {"depht": 2}}, "unknown network.depht. Did you mean 'depth'? Known: width"),
        ({"network": 3}, "network is 3; wanted names and values"),
        ([1], "the whole is [1]; wanted names and values"),
        ({"train_steps": 0}, "train_steps is 0"),
        ({"train_steps": "many"}, "train_steps is 'many'"),
    ],
)
def test_wrong_configurations_are_told(real, tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    assert message in run("upsample", real, "-o", "x.npz", "--config", "wrong.json", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "missing.hdf5"), "there is no file or local Minari dataset missing.hdf5"),
        (("info", "broken.hdf5"), "cannot be read as HDF5"),
        (("info", "buffer.pkl"), "run any code that is in it"),
        (("upsample", "real.hdf5", "-o", "real.hdf5"), "exists already"),
        (("upsample", "real.hdf5", "-o", "missing/x.npz"), "there is no folder missing"),
        (("evaluate", "real.hdf5", "broken.hdf5"), "broken.hdf5 cannot be read"),
        (("evaluate", "real.hdf5", "real.hdf5", "--html", "real.hdf5"), "--html is real.hdf5, which exists already"),
        (("evaluate", "real.hdf5", "real.hdf5", "--html", "no/page.html"), "there is no folder no to write it into"),
    ],
)
def test_failures_are_1_and_end_in_one_line(real, tmp_path, arguments, message):
    (tmp_path / "broken.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04K\x01.")
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
