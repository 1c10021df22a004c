"""Malformed, hostile, empty, truncated and mistyped files: a ValueError that names the file and the key."""

import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest
from datasets_helpers import columns, rows, save
from gymnasium import spaces
from minari.serialization import serialize_space
from numpy.lib import format as npy
from stable_baselines3.common.buffers import ReplayBuffer

from synther_buffers.datasets import open_dataset, write_dataset
from synther_buffers.datasets.columns import as_dtype


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))


class Explosive:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def opened_whole(path, **kwargs):
    return open_dataset(path, **kwargs).subset(10**9)


def refused(path, match, **kwargs):
    """Opening or reading names the file and says what is wrong."""
    with pytest.raises(ValueError, match=match) as info:
        opened_whole(path, **kwargs)
    assert path.name in str(info.value)


@pytest.fixture(params=["rows.npz", "rows.hdf5"])
def flat(request, tmp_path):
    return tmp_path / request.param


# -- what both flat formats share ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_missing_keys(flat, key):
    data = columns(10)
    del data[key]
    save(flat, data)
    refused(flat, f"has no {key}")


def test_neither_next_observations_nor_timeouts(flat):
    data = columns(10)
    del data["next_observations"]
    save(flat, data)
    refused(flat, "neither next_observations nor timeouts")


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "next_observations"])
def test_wrong_lengths(flat, key):
    save(flat, columns(10) | {key: columns(9)[key]})
    refused(flat, f"different numbers of rows.*{key}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
def test_not_finite(flat, key, value):
    data = columns(10)
    data[key][7] = value
    save(flat, data)
    refused(flat, f"{key} has NaN or infinity in row 7")


def test_rewards_that_float32_does_not_hold(flat):
    data = columns(10)
    data["rewards"] = data["rewards"].astype(np.float64)
    data["rewards"][7] = 1e39
    save(flat, data)
    refused(flat, r"rewards holds 1e\+39, which does not fit float32")


@pytest.mark.parametrize(("key", "value"), [("observations", "S4"), ("rewards", np.complex64), ("actions", "S1")])
def test_wrong_dtype(flat, key, value):
    save(flat, columns(10) | {key: columns(10)[key].astype(value)})
    refused(flat, f"{key} has dtype.*wanted numbers")


def test_terminals_that_are_no_flags(flat):
    save(flat, columns(10) | {"terminals": np.linspace(0, 1, 10)})
    refused(flat, "terminals has other values than 0 and 1")


def test_empty_columns(flat):
    save(flat, columns(0))
    refused(flat, "has no rows")


def test_nothing_inside(flat):
    save(flat, {"something": np.zeros(3)})
    refused(flat, "has no observations; it has something")


def test_a_reward_of_several_values(flat):
    save(flat, columns(10) | {"rewards": np.ones((10, 2))})
    refused(flat, "rewards has rows of shape")


def test_next_observations_of_another_shape(flat):
    save(flat, columns(10) | {"next_observations": np.ones((10, 3))})
    refused(flat, "next_observations has rows of shape.*must be alike")


def test_single_values(flat):
    save(flat, columns(10) | {"rewards": np.array(1.0)})
    refused(flat, "rewards is a single value")


def test_images(flat):
    image = np.zeros((4, 3, 8, 8), np.uint8)
    data = {"observations": image, "next_observations": image, "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    save(flat, data | {"terminals": np.zeros(4, bool)})
    with pytest.raises(ValueError, match="is an image"):
        _ = open_dataset(flat).spec


def test_only_ends_of_episodes(flat):
    data = columns(5)
    del data["next_observations"]
    save(flat, data | {"timeouts": np.ones(5, bool)})
    refused(flat, "no row has a next observation")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04" + bytes(40)])
def test_files_that_are_none(flat, content):
    flat.write_bytes(content)
    refused(flat, "no HDF5, npz or pickle|cannot be read as")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files(flat, share):
    write_dataset(flat, rows(2_000))
    flat.write_bytes(flat.read_bytes()[: int(share * flat.stat().st_size)])
    refused(flat, "cannot be read as|damaged|truncated|are stored")


def test_flipped_bits_never_end_in_another_error(flat):
    """Wherever a byte is damaged: the rows, or a ValueError."""
    write_dataset(flat, rows(30))
    content = flat.read_bytes()
    generator = np.random.default_rng(0)
    num_refused = 0
    for position in generator.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[position] ^= int(generator.integers(1, 256))
        flat.write_bytes(bytes(damaged))
        try:
            opened_whole(flat)
        except ValueError:
            num_refused += 1
    assert 0 < num_refused < 150


@pytest.mark.parametrize("path", ["nowhere.npz", "nobody/nothing-v0", "nowhere"])
def test_nothing_there(tmp_path, path):
    with pytest.raises(ValueError, match="there is no"):
        open_dataset(tmp_path / path if path != "nobody/nothing-v0" else path)


def test_unknown_formats(tmp_path):
    with pytest.raises(ValueError, match="known formats: minari"):
        open_dataset(tmp_path, "csv")
    with pytest.raises(ValueError, match="suffix tells no format"):
        write_dataset(tmp_path / "rows.csv", rows(3))
    with pytest.raises(ValueError, match="can be written: minari"):
        write_dataset(tmp_path / "rows", rows(3), format="sb3")
    with pytest.raises(ValueError, match="no folder"):
        write_dataset(tmp_path / "missing" / "rows.npz", rows(3))


# -- HDF5 ------------------------------------------------------------------------------------------------------------


def test_links_into_other_files_are_not_followed(tmp_path):
    save(tmp_path / "secret.hdf5", {"rewards": np.ones(10)})
    data = columns(10)
    del data["rewards"]
    for name, link in (
        ("external.hdf5", h5py.ExternalLink("secret.hdf5", "/rewards")),
        ("soft.hdf5", h5py.SoftLink("/actions")),
    ):
        save(tmp_path / name, data)
        with h5py.File(tmp_path / name, "a") as file:
            file["rewards"] = link
        refused(tmp_path / name, "rewards is a link")


def test_data_in_other_files_are_not_followed(tmp_path):
    save(tmp_path / "secret.hdf5", {"rewards": np.ones(10)})
    (tmp_path / "secret.bin").write_bytes(np.ones(10).tobytes())
    data = columns(10)
    del data["rewards"]
    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "rewards", (10,))
    save(tmp_path / "virtual.hdf5", data)
    with h5py.File(tmp_path / "virtual.hdf5", "a") as file:
        file.create_virtual_dataset("rewards", layout)
    save(tmp_path / "raw.hdf5", data)
    with h5py.File(tmp_path / "raw.hdf5", "a") as file:
        file.create_dataset("rewards", (10,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 80)])
    for name in ("virtual.hdf5", "raw.hdf5"):
        refused(tmp_path / name, "rewards lie in other files")


def test_absurd_shapes_are_refused_before_anything_is_allocated(tmp_path):
    for name, shape, match in (
        ("unwritten.hdf5", (10**12, 2), "none are stored"),
        ("wide.hdf5", (10, 10**9), "a row of observations has"),
    ):
        data = columns(10)
        del data["observations"]
        save(tmp_path / name, data)
        with h5py.File(tmp_path / name, "a") as file:
            file.create_dataset("observations", shape, "f8", chunks=(1, 2))
        refused(tmp_path / name, match)


def test_a_bomb(tmp_path):
    """One written chunk of many declared ones."""
    save(tmp_path / "bomb.hdf5", columns(10))
    with h5py.File(tmp_path / "bomb.hdf5", "a") as file:
        del file["observations"]
        bomb = file.create_dataset("observations", (10**9, 2), "f8", chunks=(1_000, 2), compression="gzip")
        bomb[:10] = 1.0
    refused(tmp_path / "bomb.hdf5", "no honest compression")


def test_groups_within_themselves(tmp_path):
    data = columns(10)
    del data["observations"], data["next_observations"]
    save(tmp_path / "loop.hdf5", data)
    with h5py.File(tmp_path / "loop.hdf5", "a") as file:
        group = file.create_group("observations")
        group["again"] = group
    refused(tmp_path / "loop.hdf5", "groups deep")


def test_huge_hdf5_chunks(tmp_path):
    save(tmp_path / "chunk.hdf5", columns(10))
    with h5py.File(tmp_path / "chunk.hdf5", "a") as file:
        del file["observations"]
        dataset = file.create_dataset(
            "observations", (10, 2), "f8", chunks=(2**26, 2), maxshape=(None, 2), compression="gzip"
        )
        assert dataset.chunks == (2**26, 2)
    refused(tmp_path / "chunk.hdf5", "none are stored|HDF5 chunks")


# -- npz -------------------------------------------------------------------------------------------------------------


def test_object_arrays_are_not_unpickled(tmp_path):
    objects = np.empty(10, object)
    for index in range(10):
        objects[index] = np.array([index, index], float)
    objects[0] = Explosive(tmp_path / "exploded")
    np.savez(tmp_path / "rows.npz", **columns(10) | {"observations": objects})
    refused(tmp_path / "rows.npz", "observations holds pickled objects.*--allow-pickle")
    assert not (tmp_path / "exploded").exists()


def test_object_arrays_can_be_asked_for(tmp_path):
    objects = np.empty(10, object)
    for index in range(10):
        objects[index] = np.array([index, index], float)
    np.savez(tmp_path / "rows.npz", **columns(10) | {"observations": objects})
    assert opened_whole(tmp_path / "rows.npz", allow_pickle=True).observation[:, 1].tolist() == list(range(10))
    objects[3] = "text"
    np.savez(tmp_path / "rows.npz", **columns(10) | {"observations": objects})
    refused(tmp_path / "rows.npz", "no rows of numbers", allow_pickle=True)


def test_headers_that_lie(tmp_path):
    for name, shape in (("long.npz", (10**12, 2)), ("short.npz", (5, 2)), ("wide.npz", (1, 10**12))):
        np.savez(tmp_path / name, **{key: value for key, value in columns(10).items() if key != "observations"})
        with zipfile.ZipFile(tmp_path / name, "a") as archive, archive.open("observations.npy", "w") as member:
            npy.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
            member.write(bytes(160))
        refused(tmp_path / name, "observations declares shape|a row of observations")


def test_a_member_that_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x01\x00\x10\x00import os; os  \n")
    refused(tmp_path / "rows.npz", "observations is no .npy array")


# -- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [None, "sb3", "tianshou"])
def test_pickles_are_not_loaded_unasked(tmp_path, format):
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(Explosive(tmp_path / "exploded")))
    refused(tmp_path / "buffer.pkl", "run any code.*--allow-pickle", format=format)
    assert not (tmp_path / "exploded").exists()


def test_pickles_of_something_else(tmp_path):
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps({"observations": 3}))
    refused(tmp_path / "buffer.pkl", "holds a dict; wanted a replay buffer", allow_pickle=True)


def test_pickled_buffers_that_are_not_supported(tmp_path):
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    buffer = ReplayBuffer(10, image, spaces.Discrete(2), device="cpu")
    (tmp_path / "empty.pkl").write_bytes(pickle.dumps(ReplayBuffer(10, spaces.Discrete(2), spaces.Discrete(2))))
    (tmp_path / "image.pkl").write_bytes(pickle.dumps(buffer))
    del buffer.actions
    (tmp_path / "damaged.pkl").write_bytes(pickle.dumps(buffer))
    refused(tmp_path / "empty.pkl", "the buffer is empty", allow_pickle=True)
    refused(tmp_path / "image.pkl", "is an image", allow_pickle=True)
    refused(tmp_path / "damaged.pkl", "is damaged or not supported", allow_pickle=True)


def test_damaged_pickles(tmp_path):
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(list(range(1_000)))[:-50])
    refused(tmp_path / "buffer.pkl", "cannot be unpickled", allow_pickle=True)


def tianshou_file(path, **changes):
    """What `save_hdf5` writes of a buffer of 5 rows, 3 of them written, made by hand."""
    attributes = {"_size": 3, "maxsize": 5, "stack_num": 1} | changes
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file["last_index"] = np.array([2])
        file["_random_state"] = np.frombuffer(pickle.dumps(Explosive(path.parent / "exploded")), np.byte)
        meta = file.create_group("_meta")
        for key in ("obs", "obs_next"):
            meta[key] = np.zeros((5, 2), np.float32)
        for key in ("act", "rew"):
            meta[key] = np.zeros(5, np.float32)
        for key in ("terminated", "truncated"):
            meta[key] = np.zeros(5, bool)


def test_tianshou_files_are_read_without_unpickling(tmp_path):
    tianshou_file(tmp_path / "buffer.hdf5")
    assert len(opened_whole(tmp_path / "buffer.hdf5")) == 3
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"_size": 9}, "counters do not fit"),
        ({"_size": 0}, "is empty"),
        ({"_size": "many"}, "damaged"),
        ({"maxsize": -1}, "counters do not fit"),
        ({"maxsize": 10**9, "_size": 10**9}, "counters go beyond"),
        ({"stack_num": 4}, "stacked frames"),
    ],
)
def test_tianshou_counters_that_lie(tmp_path, changes, match):
    tianshou_file(tmp_path / "buffer.hdf5", **changes)
    refused(tmp_path / "buffer.hdf5", match)


# -- Minari ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def minari_directory(tmp_path):
    return write_dataset("toys/rows-v0", rows(5)) / "data"


def described(directory, **changes):
    file = directory / "metadata.json"
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"observation_space": None}, "a description of the spaces is needed"),
        ({"action_space": "nonsense"}, "metadata.json"),
        ({"action_space": '{"type": "Magic"}'}, "metadata.json"),
        ({"action_space": '{"type": "Box"}'}, "metadata.json"),
        ({"data_format": "arrow"}, "only 'hdf5' can be read"),
        ({"observation_space": '{"type": "Tuple", "subspaces": []}'}, "metadata.json"),
    ],
)
def test_minari_descriptions_that_lie(minari_directory, changes, match):
    described(minari_directory, **changes)
    with pytest.raises(ValueError, match=match):
        opened_whole("toys/rows-v0")


def test_a_minari_description_that_is_none(minari_directory):
    (minari_directory / "metadata.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"metadata\.json is no JSON"):
        open_dataset(minari_directory)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("rewards", None, "episode_3 has no rewards"),
        ("observations", np.zeros((5, 2)), "observations has 5 rows, but an episode of 1 steps has 2"),
        ("observations", np.full((2, 2), np.nan), "observations has NaN"),
        ("observations", np.zeros((2, 3)), "observations has rows of shape"),
        ("actions", np.zeros((1, 1), complex), "actions has dtype"),
        ("actions", h5py.ExternalLink("other.hdf5", "/rewards"), "actions is a link"),
        ("terminations", np.array([0.5]), "terminations has other values"),
    ],
)
def test_minari_episodes_that_are_wrong(minari_directory, key, value, match):
    with h5py.File(minari_directory / "main_data.hdf5", "a") as file:
        del file["episode_3"][key]
        if value is not None:
            file["episode_3"][key] = value
    with pytest.raises(ValueError, match=match) as info:
        opened_whole("toys/rows-v0")
    assert "main_data.hdf5" in str(info.value) or "toys/rows-v0" in str(info.value)


def test_minari_observations_that_their_space_does_not_hold(minari_directory):
    with h5py.File(minari_directory / "main_data.hdf5", "a") as file:
        observations = file["episode_0/observations"][()]
        assert observations.dtype == np.float64
        observations[0] = -1e39
        file["episode_0/observations"][...] = observations
    space = spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)
    described(minari_directory, observation_space=serialize_space(space))
    refused(minari_directory, r"observation holds -1e\+39, which does not fit float32")


def test_a_truncated_minari_file(minari_directory):
    file = minari_directory / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3_000])
    with pytest.raises(ValueError, match=r"main_data\.hdf5 cannot be read as HDF5"):
        opened_whole("toys/rows-v0")


def test_integers_that_their_space_does_not_hold():
    with pytest.raises(ValueError, match="file: x holds 300, which does not fit int8"):
        as_dtype("file", "x", np.array([1, 300]), np.dtype("int8"))
