"""How flat files call their fields, which order their columns have, and what other readers make of ours."""

import tracemalloc

import h5py
import numpy as np
import pytest
from datasets_helpers import columns, equal, rows, save

from synther_buffers.datasets import npz, open_dataset, write_dataset


@pytest.fixture(params=["rows.npz", "rows.hdf5"])
def flat(request, tmp_path):
    return tmp_path / request.param


def read(path, **kwargs):
    return open_dataset(path, **kwargs).subset(10**6)


def renamed(num_rows, **names):
    """`columns` with other names for some."""
    return {names.get(key, key): value for key, value in columns(num_rows).items()}


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("obs", "act", "rew", "obs_next", "terminated"),
        ("observation", "action", "reward", "next_observation", "terminal"),
        ("states", "actions", "rewards", "next_states", "terminations"),
        ("obs", "acts", "rews", "next_obs", "terminals"),
    ],
)
def test_usual_names_need_no_help(flat, names):
    save(flat, dict(zip(names, columns(20).values(), strict=True)))
    assert equal(read(flat), rows(20))


def test_other_names_can_be_given(flat):
    save(flat, renamed(20, observations="x", next_observations="y", terminals="over"))
    keys = {"observation": "x", "next_observation": "y", "terminated": "over"}
    assert equal(read(flat, keys=keys), rows(20))
    with pytest.raises(ValueError, match=r"has no observations; it has .*give it with keys=\{\.\.\.\} \(--key"):
        read(flat)
    with pytest.raises(ValueError, match=r"has no z, which keys \(--key\) names; it has actions, over, rewards, x, y"):
        read(flat, keys={"observation": "z"})
    with pytest.raises(ValueError, match="keys has 'obs'; fields that can be named: observation, action"):
        read(flat, keys={"obs": "x"})


def test_a_name_that_is_given_goes_before_the_usual_ones(flat):
    save(flat, columns(20) | {"scaled": columns(20)["actions"] * 2})
    assert read(flat, keys={"action": "scaled"}).action[10].tolist() == [np.float32(0.02)]


def test_done_is_no_terminal_where_a_time_limit_cut(flat):
    """Rows 3 and 7 are done, row 7 by a time limit: without its next observation it would be left out too."""
    done, cut = np.isin(np.arange(10), [3, 7]), np.arange(10) == 7
    data = renamed(10, terminals="dones") | {"dones": done, "timeouts": cut}
    save(flat, data)
    found = read(flat)
    assert found.terminated.nonzero().flatten().tolist() == [3]
    assert len(found) == 10
    del data["next_observations"]
    save(flat.with_stem("short"), data)
    found = read(flat.with_stem("short"))
    assert found.observation[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert not found.terminated.any()


def test_done_alone_is_warned_about(flat, caplog):
    save(flat, renamed(20, terminals="done"))
    assert read(flat).terminated.nonzero().flatten().tolist() == [9, 19]
    (record,) = caplog.records
    assert "has done but none of timeouts, timeout" in record.message
    assert "rows that a time limit ended would be learned as terminal" in record.message


def test_files_without_terminals(flat):
    data = columns(20)
    del data["terminals"]
    save(flat, data)
    with pytest.raises(ValueError, match=r"has no terminals; .*terminals=False \(--no-terminals\)"):
        read(flat)
    found = read(flat, terminals=False)
    assert len(found) == 20
    assert not found.terminated.any()


def test_terminals_that_are_there_are_not_ignored(flat):
    save(flat, columns(20))
    with pytest.raises(ValueError, match=r"has terminals: leave out terminals=False \(--no-terminals\)"):
        read(flat, terminals=False)


def test_formats_with_names_of_their_own_take_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_dataset("toys/rows-v0", rows(5))
    with pytest.raises(ValueError, match=r"keys \(--key\) is for HDF5 and npz; toys/rows-v0 is minari"):
        open_dataset("toys/rows-v0", keys={"observation": "x"})
    with pytest.raises(ValueError, match=r"terminals=False \(--no-terminals\) is for HDF5 and npz"):
        open_dataset("toys/rows-v0", terminals=False)


def test_the_names_are_part_of_what_identifies_the_data(flat):
    """An interrupted run must not go on with another column."""
    save(flat, columns(20) | {"scaled": columns(20)["actions"] * 2})
    plain, scaled = open_dataset(flat), open_dataset(flat, keys={"action": "scaled"})
    assert plain.fingerprint() == open_dataset(flat).fingerprint() != scaled.fingerprint()


# -- timeouts, which other readers take for what they are not --------------------------------------------------------


def read_as_others(path):
    """A common way to read D4RL: the next row is the next observation, and rows with a timeout are skipped."""
    with h5py.File(path) as file:
        data = {key: file[key][()] for key in file}
    skipped = data.get("timeouts", np.zeros(len(data["rewards"]), bool))
    return data["observations"][~skipped][:, 0].tolist()


def test_readers_that_skip_timeouts_get_every_row_of_a_file_without(tmp_path):
    write_dataset(tmp_path / "with.hdf5", rows(20))
    write_dataset(tmp_path / "without.hdf5", rows(20), timeouts=False)
    assert read_as_others(tmp_path / "with.hdf5") == [9, 19]  # the terminal ones
    assert read_as_others(tmp_path / "without.hdf5") == list(range(20))
    assert equal(read(tmp_path / "without.hdf5"), rows(20))
    assert equal(read(tmp_path / "with.hdf5"), rows(20))


def test_only_hdf5_has_timeouts(tmp_path):
    with pytest.raises(ValueError, match=r"timeouts=False \(--no-timeouts\) is for HDF5; npz has none to leave out"):
        write_dataset(tmp_path / "rows.npz", rows(20), timeouts=False)
    assert not (tmp_path / "rows.npz").exists()


# -- Fortran's order -------------------------------------------------------------------------------------------------


def fortran(path, num_rows, width):
    """Columns of zeros, each stored one element of all rows after the other, in a small file."""
    wide = np.zeros((num_rows, width), order="F")
    data = {"observations": wide, "next_observations": wide, "actions": np.zeros((num_rows, 1), order="F")}
    np.savez_compressed(path, **data, rewards=np.zeros(num_rows), terminals=np.zeros(num_rows, bool))


def test_large_columns_in_fortrans_order_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """They cannot be streamed: a file of a few kB would take as much memory as all of its columns."""
    fortran(tmp_path / "rows.npz", 20_000, 50)
    assert (tmp_path / "rows.npz").stat().st_size < 100_000
    monkeypatch.setattr(npz, "_MAX_FORTRAN_BYTES", 10 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"Fortran's order, so that their 15\.3 MiB would have") as info:
            open_dataset(tmp_path / "rows.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    for words in ("rows.npz: observations, next_observations are", "wanted at most 10.0 MiB", "np.ascontiguousarray"):
        assert words in str(info.value)


def test_smaller_ones_are_read_in_chunks(tmp_path):
    fortran(tmp_path / "rows.npz", 1_000, 3)
    assert [len(chunk) for chunk in open_dataset(tmp_path / "rows.npz").chunks(400)] == [400, 400, 200]
