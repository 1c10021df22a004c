"""What is written can be read, and what others wrote is read right."""

import pickle

import h5py
import minari
import numpy as np
import pytest
import torch
from datasets_helpers import Counter, columns, equal, rows
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl
from tianshou.data import Batch, VectorReplayBuffer

from synther_buffers import Transitions, TransitionSpec
from synther_buffers.datasets import open_dataset, write_dataset


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))


def read(dataset, **kwargs):
    return dataset.subset(10**9, **kwargs)


# -- written and read again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["rows.hdf5", "rows.h5", "rows.npz"])
def test_flat_files_give_back_what_was_written(tmp_path, output):
    path = write_dataset(tmp_path / output, rows(50))
    dataset = open_dataset(path)
    assert equal(read(dataset), rows(50))
    assert len(dataset) == 50
    assert dataset.num_dropped == 0
    assert dataset.spec == TransitionSpec.infer(rows(50))
    assert not list(tmp_path.glob("*.partial"))


def nested_rows(num_rows):
    index = torch.arange(num_rows)
    observation = {"arm": {"angle": index[:, None].double(), "grip": index % 2 == 0}, "level": index % 3}
    following = {"arm": {"angle": (index + 1)[:, None].double(), "grip": index % 2 == 1}, "level": (index + 1) % 3}
    return Transitions(observation, index % 4, torch.ones(num_rows), following, index % 10 == 9)


@pytest.mark.parametrize("output", ["rows.hdf5", "rows.npz", "toys/nested-v0"])
def test_nested_observations_and_discrete_actions_survive(tmp_path, output):
    given = nested_rows(30)
    write_dataset(output if "/" in output else tmp_path / output, given)
    dataset = open_dataset(output if "/" in output else tmp_path / output)
    found = read(dataset)
    if "/" in output:  # Minari has no boolean space
        found.observation["arm"]["grip"] = found.observation["arm"]["grip"].bool()
        found.next_observation["arm"]["grip"] = found.next_observation["arm"]["grip"].bool()
    assert equal(found, given)
    assert dataset.spec.action.num_categories == (4,)


@pytest.mark.parametrize("output", ["rows.hdf5", "toys/slash-v0"])
def test_keys_with_a_slash_are_for_npz_alone(tmp_path, output):
    """As dm_control calls them; in HDF5 a slash is a group within a group."""
    given = nested_rows(30)
    given.observation = {"walker/pos": given.observation["arm"]}
    given.next_observation = {"walker/pos": given.next_observation["arm"]}
    with pytest.raises(ValueError, match=r"observation\.walker/pos\.angle has a '/' .*write \.npz, or rename the key"):
        write_dataset(output if output.startswith("toys") else tmp_path / output, given)
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("store", "toys")]
    write_dataset(tmp_path / "rows.npz", given)
    assert equal(read(open_dataset(tmp_path / "rows.npz")), given)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_vectors_have_a_space_in_minari_that_holds_them(dtype):
    given = rows(12)
    given.observation, given.next_observation = given.observation.to(dtype), given.next_observation.to(dtype)
    write_dataset("toys/whole-v0", given)
    dataset = minari.load_dataset("toys/whole-v0")
    limits = torch.iinfo(dtype)
    space = dataset.observation_space
    assert (space.low.tolist(), space.high.tolist()) == ([limits.min] * 2, [limits.max] * 2)
    assert space.contains(dataset[3].observations[0])
    assert equal(read(open_dataset("toys/whole-v0")), given)


def test_bounds_of_integers_survive_in_minari():
    given = rows(12)
    given.observation, given.next_observation = given.observation.long(), given.next_observation.long()
    box = spaces.Box(np.array([-3, -(2**63)]), np.array([2**63 - 1, 99]), (2,), np.int64)
    write_dataset("toys/whole-v0", given, TransitionSpec.from_spaces(box, spaces.Box(-1, 1, (1,), np.float32)))
    assert minari.load_dataset("toys/whole-v0").observation_space == box


def test_a_dataset_is_converted_to_another_format(tmp_path):
    write_dataset(tmp_path / "rows.npz", rows(50))
    write_dataset(tmp_path / "rows.hdf5", open_dataset(tmp_path / "rows.npz"))
    assert equal(read(open_dataset(tmp_path / "rows.hdf5")), rows(50))


def test_hdf5_rows_are_marked_as_not_going_on(tmp_path):
    write_dataset(tmp_path / "rows.hdf5", rows(20))
    with h5py.File(tmp_path / "rows.hdf5") as file:
        assert np.array_equal(file["timeouts"][()], ~file["terminals"][()])


def test_npz_has_the_published_keys_and_loads_with_numpy(tmp_path):
    write_dataset(tmp_path / "rows.npz", rows(20))
    with np.load(tmp_path / "rows.npz") as archive:
        assert set(archive.files) == {"observations", "actions", "rewards", "next_observations", "terminals"}
        assert archive["terminals"].dtype == np.float32
        assert np.array_equal(archive["observations"], columns(20)["observations"])


def test_minari_opens_what_was_written(tmp_path):
    write_dataset("toys/rows-v0", rows(12))
    dataset = minari.load_dataset("toys/rows-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (12, 12)
    assert "toys/rows-v0" in minari.list_local_datasets()
    episode = dataset[9]
    assert episode.observations.tolist() == [[9.0, 9.0], [10.0, 10.0]]
    assert episode.actions.tolist() == [[np.float32(0.009)]]
    assert episode.rewards.tolist() == [1.0]
    assert (episode.terminations.tolist(), episode.truncations.tolist()) == ([True], [False])
    assert dataset[0].truncations.tolist() == [True]
    assert equal(read(open_dataset("toys/rows-v0")), rows(12))


def test_writing_leaves_what_is_there_alone(tmp_path):
    write_dataset(tmp_path / "rows.npz", rows(5))
    with pytest.raises(ValueError, match="exists already"):
        write_dataset(tmp_path / "rows.npz", rows(6))
    assert len(open_dataset(tmp_path / "rows.npz")) == 5


def test_a_failed_write_leaves_nothing(tmp_path):
    write_dataset(tmp_path / "good.hdf5", rows(50))
    with h5py.File(tmp_path / "good.hdf5", "a") as file:
        file["rewards"][40] = np.nan
    for output in ("copy.hdf5", "copy.npz", "toys/copy-v0"):
        with pytest.raises(ValueError, match=r"good\.hdf5: rewards has NaN"):
            write_dataset(tmp_path / output if "/" not in output else output, open_dataset(tmp_path / "good.hdf5"))
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["good.hdf5"]
    assert not list((tmp_path / "store").rglob("*.hdf5"))


def test_many_rows_for_minari_want_confirmation(caplog):
    few = rows(2)
    many = Transitions.from_flat(
        {name: tensor[:1].expand(100_001, *tensor.shape[1:]) for name, tensor in few.flat().items()}
    )
    with pytest.raises(ValueError, match="confirm with allow_large_minari"):
        write_dataset("toys/many-v0", many)
    from synther_buffers.datasets.minari import check_size

    check_size(1_000, False)
    assert not caplog.messages
    check_size(1_001, False)
    assert "faster" in caplog.text


# -- subsets and chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["rows.hdf5", "rows.npz", "toys/rows-v0"])
def test_chunks_are_the_rows_in_order(tmp_path, output):
    write_dataset(output if "/" in output else tmp_path / output, rows(50))
    dataset = open_dataset(output if "/" in output else tmp_path / output)
    chunks = list(dataset.chunks(7))
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1]
    assert torch.cat([chunk.observation for chunk in chunks])[:, 0].tolist() == list(range(50))


def test_a_subset_is_uniform_seeded_and_without_replacement(tmp_path):
    write_dataset(tmp_path / "rows.npz", rows(200))
    dataset = open_dataset(tmp_path / "rows.npz")
    index = dataset.subset(20, seed=3).observation[:, 0]
    assert len(set(index.tolist())) == 20
    assert torch.equal(index, dataset.subset(20, seed=3).observation[:, 0])
    assert not torch.equal(index, dataset.subset(20, seed=4).observation[:, 0])
    counts = sum(
        torch.bincount(dataset.subset(100, seed=seed).observation[:, 0].long(), minlength=200) for seed in range(60)
    )
    # 60 draws of one half: 30 +- 3.9 each; five standard deviations for the extremes of 200.
    assert counts.min() > 10
    assert counts.max() < 50


def test_reading_moves_no_global_stream(tmp_path):
    write_dataset(tmp_path / "rows.npz", rows(200))
    before = (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002
    open_dataset(tmp_path / "rows.npz").subset(20)
    assert before == (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002


def test_large_compressed_files_are_streamed(tmp_path):
    """The whole of the file never is in memory, though a chunk is."""
    import tracemalloc

    observations = np.zeros((200_000, 16))
    np.savez_compressed(
        tmp_path / "rows.npz", observations=observations, next_observations=observations,
        actions=np.zeros((200_000, 1)), rewards=np.zeros(200_000), terminals=np.zeros(200_000),
    )  # fmt: skip
    dataset = open_dataset(tmp_path / "rows.npz")
    tracemalloc.start()
    assert sum(len(chunk) for chunk in dataset.chunks(2_000)) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * observations.nbytes


# -- D4RL ------------------------------------------------------------------------------------------------------------


def save_hdf5(path, data):
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file[key] = value


def test_shifted_rows_are_dropped_at_each_end(tmp_path, caplog):
    """Two episodes of 4 rows, one terminal, one cut, and a third that goes on to the end of the file."""
    index = np.arange(10, dtype=np.float32)
    save_hdf5(
        tmp_path / "rows.hdf5",
        {
            "observations": index[:, None],
            "actions": index[:, None],
            "rewards": index,
            "terminals": index == 3,
            "timeouts": index == 7,
            "infos/qpos": index,
            "metadata/version": "4",
        },
    )
    dataset = open_dataset(tmp_path / "rows.hdf5")
    for max_rows in (1, 3, 4, 100):
        found = Transitions.from_flat(
            {
                name: torch.cat([chunk.flat()[name] for chunk in dataset.chunks(max_rows)])
                for name in next(dataset.chunks()).flat()
            }
        )
        assert found.observation[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8]
        assert found.next_observation[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 9]
        assert found.reward.tolist() == [0, 1, 2, 4, 5, 6, 8]
        assert not found.terminated.any()
    assert (len(dataset), dataset.num_dropped) == (7, 3)
    assert "3 rows that end an episode" in caplog.text
    assert "1 of them terminal" in caplog.text


def test_a_time_limit_is_no_terminal(tmp_path):
    data = columns(20) | {"timeouts": np.arange(20) % 10 == 4}
    save_hdf5(tmp_path / "rows.hdf5", data)
    found = read(open_dataset(tmp_path / "rows.hdf5"))
    assert found.terminated.nonzero().flatten().tolist() == [9, 19]
    assert len(found) == 20  # each has its next observation


def test_dtypes_of_others(tmp_path):
    """Big-endian, half, unsigned, flags as floats and scalars in a column of one."""
    data = {
        "observations": np.arange(6, dtype=">f8").reshape(3, 2),
        "next_observations": np.arange(6, dtype=">f8").reshape(3, 2),
        "actions": np.arange(3, dtype=np.uint32),
        "rewards": np.ones((3, 1), np.float64),
        "terminals": np.array([[0.0], [1.0], [0.0]]),
    }
    save_hdf5(tmp_path / "rows.hdf5", data)
    np.savez(tmp_path / "rows.npz", **data)
    for name in ("rows.hdf5", "rows.npz"):
        found = read(open_dataset(tmp_path / name))
        assert found.observation.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert (found.observation.dtype, found.action.dtype) == (torch.float64, torch.int64)
        assert (found.reward.dtype, tuple(found.reward.shape)) == (torch.float32, (3,))
        assert found.terminated.tolist() == [False, True, False]


def test_fortran_order(tmp_path):
    data = columns(20)
    np.savez(tmp_path / "rows.npz", **{key: np.asfortranarray(value) for key, value in data.items()})
    assert equal(read(open_dataset(tmp_path / "rows.npz")), rows(20))
    assert [len(chunk) for chunk in open_dataset(tmp_path / "rows.npz").chunks(9)] == [9, 9, 2]


def test_categories_are_those_of_all_rows(tmp_path):
    """A first chunk that shows few actions must not settle how many there are."""
    action = np.zeros(70_000, np.int64)
    action[-1] = 5
    data = {
        "observations": np.zeros((70_000, 1), np.float32), "next_observations": np.zeros((70_000, 1), np.float32),
        "actions": action, "rewards": np.zeros(70_000), "terminals": np.zeros(70_000, bool),
    }  # fmt: skip
    np.savez(tmp_path / "rows.npz", **data)
    assert open_dataset(tmp_path / "rows.npz").spec.action.num_categories == (6,)


# -- Minari ----------------------------------------------------------------------------------------------------------


def record(dataset_id, episodes=2):
    """Episodes of `Counter` under a policy that always takes action 2."""
    env, buffers = Counter(), []
    for _ in range(episodes):
        observations = [env.reset()[0]]
        steps = []
        while not steps or not (steps[-1][1] or steps[-1][2]):
            observation, reward, terminated, truncated, _ = env.step(2)
            observations.append(observation)
            steps.append((reward, terminated, truncated))
        rewards, terminations, truncations = (list(values) for values in zip(*steps, strict=True))
        buffers.append(
            EpisodeBuffer(
                observations=np.stack(observations),
                actions=np.full(len(steps), 2),
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    minari.create_dataset_from_buffers(
        dataset_id, buffers, observation_space=env.observation_space, action_space=env.action_space
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_recorded_episodes_have_their_true_ends(tmp_path):
    record("toys/counter-v0")
    for path in ("toys/counter-v0", tmp_path / "store/toys/counter-v0", tmp_path / "store/toys/counter-v0/data"):
        dataset = open_dataset(path)
        found = read(dataset)
        assert found.observation[:, 0].tolist() == [100, 101, 102, 200, 201, 202, 203, 204]
        assert found.next_observation[:, 0].tolist() == [101, 102, 103, 201, 202, 203, 204, 205]
        assert found.terminated.nonzero().flatten().tolist() == [2]  # the other episode was cut
        assert dataset.spec == TransitionSpec.from_spaces(Counter.observation_space, Counter.action_space)
        assert len(dataset) == 8
        assert [len(chunk) for chunk in dataset.chunks(2)] == [2, 1, 2, 2, 1]
        assert [len(chunk) for chunk in dataset.chunks(6)] == [3, 5]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_more_than_ten_episodes_come_in_order():
    """Names sort as text: episode_10 before episode_2."""
    record("toys/counter-v0", episodes=12)
    found = read(open_dataset("toys/counter-v0"))
    assert found.observation[:, 0].tolist() == sorted(found.observation[:, 0].tolist())


# -- saved replay buffers --------------------------------------------------------------------------------------------


def filled_sb3(num_adds, **kwargs):
    """Two environments; env e at step i observes 100 e + i. Every 4th step ends an episode, every 8th by time."""
    action_space = spaces.Box(-2.0, 4.0, (1,), np.float32)
    buffer = ReplayBuffer(
        20, spaces.Box(-np.inf, np.inf, (1,), np.float32), action_space, device="cpu", n_envs=2, **kwargs
    )
    for step in range(num_adds):
        observation = np.array([[step], [100 + step]], np.float32)
        ended = step % 4 == 3
        infos = [{"TimeLimit.truncated": step % 8 == 7}] * 2
        buffer.add(observation, observation + 1, np.full((2, 1), -0.5), np.ones(2), np.full(2, ended), infos)
    return buffer


def test_sb3_buffer_of_two_environments(tmp_path):
    save_to_pkl(tmp_path / "buffer.pkl", filled_sb3(6))
    dataset = open_dataset(tmp_path / "buffer.pkl", allow_pickle=True)
    found = read(dataset)
    assert dataset.format == "sb3"
    assert found.observation[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
    assert torch.equal(found.next_observation, found.observation + 1)
    assert found.terminated.nonzero().flatten().tolist() == [3, 9]
    assert found.action.unique().tolist() == [-0.5]  # a quarter of the way from -2 to 4


def test_sb3_ring_that_has_wrapped(tmp_path):
    save_to_pkl(tmp_path / "buffer.pkl", filled_sb3(13))
    found = read(open_dataset(tmp_path / "buffer.pkl", "sb3", allow_pickle=True))
    assert found.observation[:, 0].tolist() == [*range(3, 13), *range(103, 113)]
    assert found.observation[found.terminated, 0].tolist() == [3, 11, 103, 111]  # 7 was a time limit


def test_sb3_without_next_observations(tmp_path):
    """The rows that end an episode, and the newest of each environment, have none."""
    buffer = filled_sb3(13, optimize_memory_usage=True, handle_timeout_termination=False)
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    found = read(open_dataset(tmp_path / "buffer.pkl", allow_pickle=True))
    kept = [4, 5, 6, 8, 9, 10]
    assert found.observation[:, 0].tolist() == [*kept, *(100 + step for step in kept)]
    assert torch.equal(found.next_observation, found.observation + 1)


def filled_sb3_ring(size, num_adds):
    """One environment: s = t, a = 2 t, r = t, s' = t + 1."""
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    buffer = ReplayBuffer(
        size, space, space, device="cpu", optimize_memory_usage=True, handle_timeout_termination=False
    )
    for step in range(num_adds):
        observation = np.array([[step]], np.float32)
        buffer.add(observation, observation + 1, 2 * observation, np.array([step]), np.zeros(1, bool), [{}])
    return buffer


def test_sb3_slot_of_the_newest_next_observation_is_no_row(tmp_path):
    """A ring of 4 rows without next observations has room for 3 transitions, and of the newest nothing goes on."""
    save_to_pkl(tmp_path / "buffer.pkl", filled_sb3_ring(4, 6))
    dataset = open_dataset(tmp_path / "buffer.pkl", allow_pickle=True)
    found = read(dataset)
    columns = (found.observation[:, 0], found.action[:, 0], found.reward, found.next_observation[:, 0])
    assert [column.tolist() for column in columns] == [[3, 4], [6, 8], [3, 4], [4, 5]]
    assert (len(dataset), dataset.num_dropped) == (2, 1)


@pytest.mark.parametrize("key", ["last_actions", "past_observations"])
def test_sb3_dict_buffer_with_keys_like_those_of_the_fields(tmp_path, key):
    space = spaces.Dict({key: spaces.Discrete(7)})
    buffer = DictReplayBuffer(10, space, spaces.Discrete(3), device="cpu")
    for step in range(5):
        observations = ({key: np.array([step])}, {key: np.array([step + 1])})
        buffer.add(*observations, np.array([[step % 3]]), np.ones(1), np.zeros(1, bool), [{}])
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    found = read(open_dataset(tmp_path / "buffer.pkl", allow_pickle=True))
    assert found.observation[key].tolist() == [0, 1, 2, 3, 4]
    assert found.next_observation[key].tolist() == [1, 2, 3, 4, 5]


def test_sb3_dict_buffer_with_discrete_parts(tmp_path):
    space = spaces.Dict({"level": spaces.Discrete(7), "pose": spaces.Box(-1, 1, (2,), np.float64)})
    buffer = DictReplayBuffer(10, space, spaces.Discrete(3), device="cpu")
    for step in range(5):
        observation = {"level": np.array([step]), "pose": np.full((1, 2), step / 10)}
        following = {"level": np.array([step + 1]), "pose": np.full((1, 2), step / 10 + 0.1)}
        buffer.add(observation, following, np.array([[step % 3]]), np.ones(1), np.zeros(1, bool), [{}])
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    dataset = open_dataset(tmp_path / "buffer.pkl", allow_pickle=True)
    found = read(dataset)
    assert found.observation["level"].tolist() == [0, 1, 2, 3, 4]
    assert found.next_observation["level"].tolist() == [1, 2, 3, 4, 5]
    assert found.action.tolist() == [0, 1, 2, 0, 1]
    assert found.observation["pose"].dtype == torch.float64
    assert dataset.spec == TransitionSpec.from_spaces(space, spaces.Discrete(3))


def filled_tianshou(num_adds, **kwargs):
    """Two environments with rings of 5 rows; step i of env e observes 100 e + i. Step 3 terminates, step 7 is cut."""
    buffer = VectorReplayBuffer(10, 2, **kwargs)
    for step in range(num_adds):
        observation = np.array([[step], [100 + step]], np.float32)
        buffer.add(
            Batch(
                obs=observation, act=np.full((2, 1), 0.5, np.float32), rew=np.ones(2), obs_next=observation + 1,
                terminated=np.full(2, step == 3), truncated=np.full(2, step == 7), info={},
            )
        )  # fmt: skip
    return buffer


@pytest.mark.parametrize("kind", ["hdf5", "pickle"])
@pytest.mark.parametrize("num_adds", [4, 5, 8])
def test_tianshou_rings(tmp_path, kind, num_adds):
    path = tmp_path / "buffer"
    if kind == "hdf5":
        filled_tianshou(num_adds).save_hdf5(str(path))
        dataset = open_dataset(path)
    else:
        path.write_bytes(pickle.dumps(filled_tianshou(num_adds)))
        dataset = open_dataset(path, allow_pickle=True)
    steps = list(range(max(0, num_adds - 5), num_adds))
    found = read(dataset)
    assert dataset.format == "tianshou"
    assert found.observation[:, 0].tolist() == [*steps, *(100 + step for step in steps)]
    assert torch.equal(found.next_observation, found.observation + 1)
    assert found.observation[found.terminated, 0].tolist() == [3, 103]


@pytest.mark.parametrize("kind", ["hdf5", "pickle"])
def test_tianshou_without_next_observations(tmp_path, kind):
    path = tmp_path / "buffer"
    buffer = filled_tianshou(9, ignore_obs_next=True)  # rings hold 4 to 8
    if kind == "hdf5":
        buffer.save_hdf5(str(path))
    else:
        path.write_bytes(pickle.dumps(buffer))
    for max_rows in (1, 100):
        chunks = list(open_dataset(path, allow_pickle=True).chunks(max_rows))
        observation = torch.cat([chunk.observation for chunk in chunks])
        assert observation[:, 0].tolist() == [4, 5, 6, 104, 105, 106]  # 7 was cut, 8 is the newest
        assert torch.equal(torch.cat([chunk.next_observation for chunk in chunks]), observation + 1)
