"""What the tests of the Tianshou buffers share: readable rows, an upsampler that costs nothing, small algorithms."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch
import toys
from gymnasium import spaces
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.redq import REDQ, REDQPolicy
from tianshou.algorithm.modelfree.sac import SAC, SACPolicy
from tianshou.algorithm.modelfree.td3 import TD3
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, PrioritizedVectorReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.exploration import GaussianNoise
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import EnsembleLinear, Net
from tianshou.utils.net.continuous import (
    ContinuousActorDeterministic,
    ContinuousActorProbabilistic,
    ContinuousCritic,
)

from synther_buffers.upsampling.protocol import FitReport

#: The reward of every row that `Marked` makes.
MARK = -7.0

#: The real diffusion upsampler, as small as it gets; without terminals, whose classifier takes seconds to train.
TINY = replace(toys.TINY, num_synthetic=500, model_terminals=False)

#: The classes of ours, beside the plain one of each.
PLAIN = {SynthERReplayBuffer: VectorReplayBuffer, SynthERPrioritizedReplayBuffer: PrioritizedVectorReplayBuffer}
#: What the constructor of each wants besides sizes.
OPTIONS = {SynthERReplayBuffer: {}, SynthERPrioritizedReplayBuffer: {"alpha": 0.6, "beta": 0.4}}


class Bootstrap:
    """An upsampler that draws the real rows themselves; `trained` has the rows of every fit."""

    def __init__(self, spec, *, device, seed, progress_bar):
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = None
        self.trained = []

    @property
    def config(self):
        return {"upsampler": type(self).__name__}

    def fit(self, transitions, *, held_out=None):
        self.rows = transitions
        self.trained.append((transitions, held_out))
        return FitReport(loss=1.0, held_out_loss=1.0, steps=1, seconds=0.0, warm=False)

    def sample(self, num_samples):
        return self.rows[torch.randint(len(self.rows), (num_samples,), generator=self.generator)]

    def state_dict(self):
        return {"rows": self.rows, "trained": self.trained, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.rows, self.trained = state["rows"], state["trained"]
        self.generator.set_state(state["generator"])


class Marked(Bootstrap):
    """`Bootstrap` whose rows can be told from real ones by their reward."""

    def sample(self, num_samples):
        rows = super().sample(num_samples)
        rows.reward = torch.full_like(rows.reward, MARK)
        return rows


def make_buffer(cls=SynthERReplayBuffer, size=400, buffer_num=1, **kwargs):
    """A buffer of one of our classes that refreshes at 120 rows, with an upsampler that costs nothing."""
    ours = {"upsampler": Marked, "retrain_every": 120, "num_synthetic": 300, "seed": 0, "progress_bar": False}
    return cls(size, buffer_num, **OPTIONS[cls] | ours | kwargs)


def make_plain(cls=SynthERReplayBuffer, size=400, buffer_num=1, **kwargs):
    """Tianshou's buffer that `cls` replaces."""
    return PLAIN[cls](size, buffer_num, **OPTIONS[cls] | kwargs)


def rows(step, num_envs=1, *, terminated=False, truncated=False, **more):
    """One row of each environment: observation = 1,000 * environment + step, the next one 1 more, reward 1."""
    observation = (1_000.0 * np.arange(num_envs) + step).astype(np.float32)[:, None]
    return Batch(
        obs=observation,
        act=np.full((num_envs, 1), 0.5, np.float32),
        rew=np.ones(num_envs),
        terminated=np.full(num_envs, terminated),
        truncated=np.full(num_envs, truncated),
        obs_next=observation + 1,
        info=Batch(),
        **more,
    )


def count_into(buffer, start, stop, *, ends=(), timeouts=(), ids=None):
    """Write steps `start` to `stop` - 1 into every sub-buffer, or into those of `ids`."""
    ids = np.arange(buffer.buffer_num) if ids is None else np.asarray(ids)
    for step in range(start, stop):
        batch = rows(step, buffer.buffer_num, terminated=step in ends, truncated=step in timeouts)
        buffer.add(batch[ids], ids)


def refreshed(cls=SynthERReplayBuffer, **kwargs):
    """A buffer of two sub-buffers with 150 rows, terminal at every 10th and cut at every 15th step, and its set."""
    buffer = make_buffer(cls, buffer_num=2, **kwargs)
    count_into(buffer, 0, 75, ends=range(9, 75, 10), timeouts=range(14, 75, 15))
    buffer.sample(2)
    assert buffer.synthetic.num_refreshes == (buffer.synthetic.synthetic_fraction > 0)
    return buffer


def flat(batch, prefix=""):
    """The arrays of a Batch by name, nested ones as ``obs.key``."""
    out = {}
    for key, value in batch.items():
        if isinstance(value, Batch):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def assert_same(left, right):
    """Two batches are equal, bit for bit and dtype for dtype."""
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for name, array in right.items():
        assert left[name].dtype == array.dtype, name
        np.testing.assert_array_equal(left[name], array, err_msg=name)


def assert_same_rows(left, right):
    """Two `Transitions` are equal, bit for bit."""
    left, right = left.flat(), right.flat()
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(left[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: name + text)


class CounterEnv(gym.Env):
    """Counts steps; the next episode goes on 100 higher, so that a row across a reset shows. Reward 1."""

    def __init__(self, length=10, truncate=False, num_actions=0):
        self.observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(num_actions) if num_actions else spaces.Box(-2.0, 2.0, (1,), np.float32)
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


def envs(make_env, num_envs=1):
    """A vectorised environment, seeded."""
    vector = DummyVectorEnv([make_env] * num_envs)
    vector.seed(0)
    for space in vector.action_space:
        space.seed(0)
    return vector


def net(env, **kwargs):
    return Net(state_shape=env.observation_space.shape, hidden_sizes=[16], **kwargs)


def critic(env, **kwargs):
    linear = kwargs.get("linear_layer")
    body = net(env, action_shape=env.action_space.shape, concat=True, **kwargs)
    return ContinuousCritic(preprocess_net=body, **({"linear_layer": linear, "flatten_input": False} if linear else {}))


def optim():
    return AdamOptimizerFactory(lr=1e-3)


def gaussian(env):
    return ContinuousActorProbabilistic(preprocess_net=net(env), action_shape=env.action_space.shape, unbounded=True)


def sac(env, n_step=1):
    return SAC(
        policy=SACPolicy(actor=gaussian(env), action_space=env.action_space),
        policy_optim=optim(),
        critic=critic(env),
        critic_optim=optim(),
        n_step_return_horizon=n_step,
    )


def td3(env, n_step=1):
    actor = ContinuousActorDeterministic(preprocess_net=net(env), action_shape=env.action_space.shape)
    policy = ContinuousDeterministicPolicy(
        actor=actor, action_space=env.action_space, exploration_noise=GaussianNoise(sigma=0.1)
    )
    return TD3(
        policy=policy,
        policy_optim=optim(),
        critic=critic(env),
        critic_optim=optim(),
        n_step_return_horizon=n_step,
    )


def redq(env, n_step=1):
    def linear(x, y):
        return EnsembleLinear(3, x, y)

    return REDQ(
        policy=REDQPolicy(actor=gaussian(env), action_space=env.action_space),
        policy_optim=optim(),
        critic=critic(env, linear_layer=linear),
        critic_optim=optim(),
        ensemble_size=3,
        subset_size=2,
        n_step_return_horizon=n_step,
    )


def dqn(env, n_step=1):
    model = Net(state_shape=env.observation_space.shape, action_shape=env.action_space.n, hidden_sizes=[16])
    policy = DiscreteQLearningPolicy(
        model=model, action_space=env.action_space, observation_space=env.observation_space, eps_training=0.3
    )
    return DQN(policy=policy, optim=optim(), n_step_return_horizon=n_step, target_update_freq=20)


def train(make_algorithm, buffer, make_env, *, num_steps=260, num_envs=1, n_step=1, batch_size=32):
    """Train through Collector and OffPolicyTrainer after 60 random steps; the algorithm and the sampled indices."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    algorithm, vector = make_algorithm(make_env(), n_step), envs(make_env, num_envs)
    collector = Collector(algorithm, vector, buffer, exploration_noise=True)
    collector.reset()
    with policy_within_training_step(algorithm.policy):
        collector.collect(n_step=60, random=True)
    indices, sample_indices = [], buffer.sample_indices

    def recording(size):
        drawn = sample_indices(size)
        if size:  # 0 asks for every row, to look for NaN
            indices.append(drawn)
        return drawn

    buffer.sample_indices = recording
    try:
        algorithm.run_training(
            OffPolicyTrainerParams(
                training_collector=collector,
                max_epochs=1,
                epoch_num_steps=num_steps - 60,
                collection_step_num_env_steps=20,
                batch_size=batch_size,
                update_step_num_gradient_steps_per_sample=0.25,
                test_step_num_episodes=1,
                verbose=False,
                show_progress=False,
            )
        )
    finally:
        del buffer.sample_indices
    return algorithm, indices


def parameters(algorithm):
    """Every parameter of an algorithm's networks in one vector."""
    return torch.cat(
        [tensor.double().flatten() for tensor in algorithm.state_dict().values() if torch.is_tensor(tensor)]
    )
