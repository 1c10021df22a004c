"""What the tests of the SB3 buffers share: tiny environments, an upsampler that costs nothing, readable data."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch
import toys
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer

from synther_buffers.upsampling.protocol import FitReport

#: The reward of every row that `Marked` makes.
MARK = -7.0

#: The real diffusion upsampler, as small as it gets; without terminals, whose classifier takes seconds to train.
TINY = replace(toys.TINY, num_synthetic=500, model_terminals=False)


class Bootstrap:
    """An upsampler that draws the real rows themselves."""

    def __init__(self, spec, *, device, seed, progress_bar):
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = None
        self.num_fits = 0

    @property
    def config(self):
        return {"upsampler": type(self).__name__}

    def fit(self, transitions, *, held_out=None):
        self.num_fits += 1
        # A copy: real rows are views of a ring that goes on being written.
        self.rows = transitions[torch.arange(len(transitions))]
        return FitReport(loss=1.0, held_out_loss=1.0, steps=1, seconds=0.0, warm=False)

    def sample(self, num_samples):
        return self.rows[torch.randint(len(self.rows), (num_samples,), generator=self.generator)]

    def state_dict(self):
        return {"rows": self.rows, "num_fits": self.num_fits, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.rows, self.num_fits = state["rows"], state["num_fits"]
        self.generator.set_state(state["generator"])


class Marked(Bootstrap):
    """`Bootstrap` whose rows can be told from real ones by their reward."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        rows.reward = torch.full_like(rows.reward, MARK)
        return rows


class CounterEnv(gym.Env):
    """Counts steps; the next episode goes on 100 higher, so that a row across a reset shows. Reward 1."""

    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)

    def __init__(self, length=10, truncate=False):
        self.length, self.truncate = length, truncate
        self.episode, self.step_count = -1, 0

    def _observation(self):
        return np.array([100.0 * self.episode + self.step_count], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.step_count = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.step_count += 1
        over = self.step_count == self.length
        return self._observation(), 1.0, over and not self.truncate, over and self.truncate, {}


class RandomEnv(gym.Env):
    """Random observations of any space, reward 1, an episode's end every `length` steps."""

    def __init__(self, observation_space, action_space, length=10):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.step_count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.step_count = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.step_count += 1
        return self.observation_space.sample(), 1.0, self.step_count == self.length, False, {}


def box(*shape, low=-1, high=1, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


PLAIN = {SynthERBuffer: ReplayBuffer, SynthERDictBuffer: DictReplayBuffer, SynthERNStepBuffer: NStepReplayBuffer}

DICT = spaces.Dict(
    {
        "position": box(2),
        "matrix": box(2, 3, dtype=np.float64),
        "mode": spaces.Discrete(3, start=1),
        "switches": spaces.MultiBinary(2),
        "gears": spaces.MultiDiscrete([3, 5]),
    }
)

# name: (class, observation space, action space)
SPACES = {
    "vector": (SynthERBuffer, box(3), box(2)),
    "matrix": (SynthERBuffer, box(2, 3), box(2)),
    "float64": (SynthERBuffer, box(3, dtype=np.float64), box(2, dtype=np.float64)),
    "float16": (SynthERBuffer, box(3, dtype=np.float16), box(2)),
    "int32": (SynthERBuffer, box(3, low=-9, high=9, dtype=np.int32), box(2)),
    "int8": (SynthERBuffer, box(3, low=-9, high=9, dtype=np.int8), box(2)),
    "uint8 vector": (SynthERBuffer, box(3, low=0, high=255, dtype=np.uint8), box(2)),
    "discrete": (SynthERBuffer, spaces.Discrete(5), spaces.Discrete(3)),
    "discrete from -2": (SynthERBuffer, spaces.Discrete(5, start=-2), spaces.Discrete(3)),
    "multi-discrete": (SynthERBuffer, spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([2, 3])),
    "multi-binary": (SynthERBuffer, spaces.MultiBinary(4), spaces.MultiBinary(3)),
    "multi-binary matrix": (SynthERBuffer, spaces.MultiBinary([2, 3]), box(2)),
    "action matrix": (SynthERBuffer, box(3), box(2, 3)),
    "action scalar": (SynthERBuffer, box(3), box()),
    "action int16": (SynthERBuffer, box(3), box(2, low=-9, high=9, dtype=np.int16)),
    "action uint8": (SynthERBuffer, box(3), box(2, low=0, high=5, dtype=np.uint8)),
    "action bool": (SynthERBuffer, box(3), box(2, low=0, high=1, dtype=np.bool_)),
    "dict": (SynthERDictBuffer, DICT, box(2)),
    "dict, discrete actions": (SynthERDictBuffer, DICT, spaces.Discrete(4)),
    "n-step": (SynthERNStepBuffer, box(3), box(2)),
    "n-step, discrete": (SynthERNStepBuffer, spaces.Discrete(5), spaces.Discrete(3)),
    "n-step, float64": (SynthERNStepBuffer, box(3, dtype=np.float64), box(2, 2, dtype=np.float64)),
}


def make_buffer(cls, size=400, observation_space=None, action_space=None, *, n_envs=1, **kwargs):
    """A buffer of one of our classes that refreshes at 120 rows, with an upsampler that costs nothing."""
    kwargs = {"upsampler": Marked, "retrain_every": 120, "num_synthetic": 300, "seed": 0} | kwargs
    return cls(size, observation_space or box(1, high=1e6), action_space or box(1), "cpu", n_envs=n_envs, **kwargs)


def count_into(buffer, start, stop, *, ends=(), timeouts=()):
    """Write steps `start` to `stop` - 1: observation = 1,000 * env + step, the next one 1 more, reward 1."""
    offset = 1_000.0 * np.arange(buffer.n_envs)[:, None]
    for step in range(start, stop):
        observation = offset + step
        done = np.full(buffer.n_envs, step in ends or step in timeouts)
        infos = [{"TimeLimit.truncated": step in timeouts}] * buffer.n_envs
        buffer.add(observation, observation + 1, np.zeros((buffer.n_envs, 1)), np.ones(buffer.n_envs), done, infos)


def random_into(buffers, num_steps, observation_space, action_space, seed=0):
    """Write the same random rows to every buffer, with terminations and time limits among them."""
    rng = np.random.default_rng(seed)
    observation_space.seed(seed)
    action_space.seed(seed)
    n_envs = buffers[0].n_envs

    def stack(space):
        samples = [space.sample() for _ in range(n_envs)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
        return np.stack(samples)

    for _ in range(num_steps):
        observation, following, action = stack(observation_space), stack(observation_space), stack(action_space)
        reward, done = rng.normal(size=n_envs).astype(np.float32), rng.random(n_envs) < 0.2
        infos = [{"TimeLimit.truncated": bool(end and rng.random() < 0.5)} for end in done]
        for buffer in buffers:
            copies = [dict(part) if isinstance(part, dict) else part for part in (observation, following)]
            buffer.add(*copies, action, reward, done, infos)


def flat_batch(batch):
    """The tensors of a batch by name, Dict observations as ``observations.key``."""
    out = {}
    for name, value in batch._asdict().items():
        if isinstance(value, dict):
            out |= {f"{name}.{key}": tensor for key, tensor in value.items()}
        elif value is not None:
            out[name] = value
    return out


def assert_same(left, right, rows=slice(None)):
    """Two batches are equal, bit for bit and dtype for dtype; `rows` of the left one, all of the right one."""
    left, right = flat_batch(left), flat_batch(right)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(left[name][rows], tensor, rtol=0, atol=0, msg=lambda text, name=name: name + text)


def assert_same_rows(left, right):
    """Two `Transitions` are equal, bit for bit."""
    left, right = left.flat(), right.flat()
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(left[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: name + text)


def parameters(model):
    """Every parameter of an algorithm's networks, target networks included, in one vector."""
    tensors = model.policy.state_dict().values()
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def record_batches(model):
    """A list that every batch the algorithm samples from now on is appended to."""
    sample, batches = model.replay_buffer.sample, []

    def recording(*args, **kwargs):
        batches.append(sample(*args, **kwargs))
        return batches[-1]

    model.replay_buffer.sample = recording
    return batches


def num_marked(batch):
    """How many rows of a batch `Marked` made."""
    return int((batch.rewards == MARK).sum())


def vec(env_class, *args, n_envs=1, **kwargs):
    return DummyVecEnv([lambda: env_class(*args, **kwargs)] * n_envs)


def small(**kwargs):
    """An algorithm's arguments for a small net; new ones each time, because the algorithms write into them."""
    defaults = {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 50, "batch_size": 32, "seed": 1}
    return {"device": "cpu", **defaults, **kwargs}


def kwargs_for(buffer_class, **kwargs):
    """An algorithm's arguments for a small run: one refresh at 120 steps, another at 240."""
    defaults = {"upsampler": Marked, "retrain_every": 120, "num_synthetic": 300, "progress_bar": False}
    return small(buffer_size=1_000, replay_buffer_class=buffer_class, replay_buffer_kwargs=defaults | kwargs)
