"""What the tests of the TorchRL storages share: readable rows and an upsampler that costs nothing."""

from dataclasses import replace

import torch
import toys
from synther_buffers.torchrl import SynthERMemmapStorage, SynthERStorage, is_synthetic
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer

from synther_buffers.upsampling.protocol import FitReport

#: The reward of every row that `Marked` makes.
MARK = -7.0
#: An episode of `rows` has so many steps.
EPISODE = 20

#: The real diffusion upsampler, as small as it gets; without terminals, whose classifier takes seconds to train.
TINY = replace(toys.TINY, num_synthetic=500, model_terminals=False)

PLAIN = {SynthERStorage: LazyTensorStorage, SynthERMemmapStorage: LazyMemmapStorage}


class Marked:
    """An upsampler that draws the real rows themselves, but for the reward, by which they can be told."""

    def __init__(self, spec, *, device, seed, progress_bar):
        self.spec, self.generator = spec, torch.Generator().manual_seed(seed)
        self.rows, self.num_fits = None, 0

    @property
    def config(self):
        return {"upsampler": type(self).__name__}

    def fit(self, transitions, *, held_out=None):
        self.num_fits += 1
        self.rows = transitions[torch.arange(len(transitions))]
        return FitReport(loss=1.0, held_out_loss=1.0, steps=1, seconds=0.0, warm=False)

    def sample(self, num_samples):
        index = torch.randint(len(self.rows), (num_samples,), generator=self.generator)
        rows = self.rows[index.to(self.rows.device)]
        rows.reward = torch.full_like(rows.reward, MARK)
        return rows

    def state_dict(self):
        return {"rows": self.rows, "num_fits": self.num_fits, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.rows, self.num_fits = state["rows"], state["num_fits"]
        self.generator.set_state(state["generator"])


def rows(num_rows, first=0, **more):
    """Row i: observation (i, -i), action sin(i), reward 1, a step further next, the end of an episode every 20th."""
    index = torch.arange(first, first + num_rows)
    observation = torch.stack((index, -index), 1).float()
    never = torch.zeros(num_rows, 1, dtype=torch.bool)
    terminated = (index % EPISODE == EPISODE - 1)[:, None]
    data = {
        "observation": observation,
        "action": torch.sin(index.float())[:, None],
        "done": never,
        "terminated": never.clone(),
        "truncated": never.clone(),
        "collector": {"traj_ids": index // EPISODE},
        "next": {
            "observation": observation + torch.tensor([1.0, -1.0]),
            "reward": torch.ones(num_rows, 1),
            "done": terminated,
            "terminated": terminated.clone(),
            "truncated": never.clone(),
        },
    }
    data = TensorDict(data, [num_rows])
    for key, value in more.items():
        data[tuple(key.split("__")) if "__" in key else key] = value
    return data


def make_storage(cls=SynthERStorage, max_size=400, **kwargs):
    settings = {"upsampler": Marked, "retrain_every": 120, "num_synthetic": 90, "progress_bar": False, "seed": 3}
    return cls(max_size, **{**settings, **kwargs})


def make_buffer(cls=SynthERStorage, max_size=400, *, buffer_cls=TensorDictReplayBuffer, **kwargs):
    """A buffer over a storage of ours; each keyword goes where it belongs."""
    names = ("batch_size", "dim_extend", "prefetch", "sample_unit", "sampler", "shared", "transform", "writer")
    for_buffer = {name: kwargs.pop(name) for name in names if name in kwargs}
    return buffer_cls(storage=make_storage(cls, max_size, **kwargs), **for_buffer)


def num_marked(batch):
    """How many rows of a batch `Marked` has made."""
    return int((batch["next", "reward"] == MARK).sum())


def synthetic_of(batch):
    """The synthetic rows of a batch, told by their index."""
    return batch[is_synthetic(batch["index"])]


def real_of(batch):
    return batch[~is_synthetic(batch["index"])]


def assert_same(left, right):
    """Two tensordicts have the same keys, dtypes, shapes and values."""
    flat_left, flat_right = (dict(data.items(include_nested=True, leaves_only=True)) for data in (left, right))
    assert flat_left.keys() == flat_right.keys()
    assert left.batch_size == right.batch_size
    for key, tensor in flat_left.items():
        assert (tensor.dtype, tensor.shape) == (flat_right[key].dtype, flat_right[key].shape), key
        assert torch.equal(tensor, flat_right[key]), key


def no_priorities():
    """Why prioritised sampling does not work here; empty if it does."""
    try:
        PrioritizedSampler(10, 1.0, 1.0)
    except RuntimeError:
        return f"TorchRL's compiled extension does not load with torch {torch.__version__}: no PrioritizedSampler"
    return ""
