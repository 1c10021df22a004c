"""Every pickle that saving causes looks up classes and functions of an allow-list alone, ours by their public paths.

A pickle that looked up something else, such as a function of a private module, would not load once that moved.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from opcodes import names_in, strings_in
from toys import SPEC, TINY, gaussian

from synther_buffers import DiffusionUpsampler, RowBudget

TINY = replace(TINY, budget=RowBudget())
SMALL = {"upsampler": TINY, "retrain_every": 100, "num_synthetic": 50, "upsampler_device": "cpu", "progress_bar": False}
BOX = spaces.Box(-1.0, 1.0, (1,))

#: Classes of ours, by the path that users import them by.
CONFIGURATION = {
    f"synther_buffers.{name}"
    for name in ("DPMSolver", "NetworkConfig", "RowBudget", "SamplerConfig", "TrainingConfig", "UpsamplerConfig")
}
REPLAY = {
    "synther_buffers.SyntheticOptions",
    "synther_buffers.SyntheticReplay",
    "synther_buffers.TransitionSpec",
    "synther_buffers.transitions.Field",
}
#: Names of other libraries, whose modules differ between versions.
OTHERS = {
    "collections": {"OrderedDict"},
    "gymnasium": {"Box", "Dict"},
    "numpy": {
        "dtype", "ndarray", "scalar", "_frombuffer", "_reconstruct",
        "MT19937", "__bit_generator_ctor", "__randomstate_ctor",
    },
    "stable_baselines3": {"ConstantSchedule", "FloatSchedule", "SACPolicy", "TrainFreq", "TrainFrequencyUnit"},
    "tianshou": {"Batch", "PrioritizedReplayBuffer", "ReplayBuffer", "SegmentTree"},
    "torch": {
        "BoolStorage", "ByteStorage", "DoubleStorage", "FloatStorage", "LongStorage",
        "Size", "device", "_load_from_bytes", "_rebuild_tensor_v2",
    },
}  # fmt: skip


def pickles_in(data: bytes) -> Iterator[bytes]:
    """A pickle, and the pickles that lie in it as bytes."""
    yield data
    for inner in strings_in(data):
        if inner.startswith(b"\x80") and inner.endswith(b"."):
            yield from pickles_in(inner)
        elif inner.startswith(b"PK\x03\x04"):
            yield from pickles_in_zip(inner)


def pickles_in_zip(data: bytes) -> Iterator[bytes]:
    """The pickles in a file of ``torch.save``, or in a model that Stable-Baselines3 saved."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".pth"):
                yield from pickles_in_zip(content)
            elif name.endswith("data.pkl"):
                yield from pickles_in(content)
            elif name == "data":
                for value in json.loads(content).values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        yield from pickles_in(base64.b64decode(value[":serialized:"]))


def names(pickles: Iterator[bytes]) -> set[tuple[str, str]]:
    return {name for pickled in pickles for name in names_in(pickled)}


def sb3_buffers(folder: Path) -> Iterator[bytes]:
    from stable_baselines3.common.save_util import save_to_pkl
    from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer

    for cls in (SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer):
        space = spaces.Dict({"a": BOX}) if cls is SynthERDictBuffer else BOX
        buffer = cls(300, space, BOX, "cpu", **SMALL)
        for step in range(120):
            row = np.full((1, 1), np.sin(step), np.float32)
            observation = {"a": row} if cls is SynthERDictBuffer else row
            buffer.add(observation, observation, row, np.ones(1), np.array([step % 20 == 19]), [{}])
        buffer.sample(4)
        assert buffer.synthetic.num_refreshes == 1
        save_to_pkl(folder / "buffer.pkl", buffer)
        yield from pickles_in((folder / "buffer.pkl").read_bytes())


def sb3_model(folder: Path) -> Iterator[bytes]:
    from stable_baselines3 import SAC
    from synther_buffers.sb3 import SynthERBuffer

    model = SAC(
        "MlpPolicy", "Pendulum-v1", replay_buffer_class=SynthERBuffer, replay_buffer_kwargs=SMALL, buffer_size=300
    )
    model.save(folder / "model.zip")
    yield from pickles_in_zip((folder / "model.zip").read_bytes())


def tianshou_buffers(folder: Path) -> Iterator[bytes]:
    from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
    from tianshou.data import Batch

    for cls, more in ((SynthERReplayBuffer, {}), (SynthERPrioritizedReplayBuffer, {"alpha": 0.6, "beta": 0.4})):
        buffer = cls(300, 1, **more, **SMALL)
        for step in range(120):
            row = np.full((1, 1), np.sin(step), np.float32)
            end = np.array([step % 20 == 19])
            buffer.add(
                Batch(
                    obs=row, act=row, rew=np.ones(1), terminated=end, truncated=np.array([False]), obs_next=row,
                    info=Batch(),
                )
            )  # fmt: skip
        buffer.sample(4)
        assert buffer.synthetic.num_refreshes == 1
        yield from pickles_in(pickle.dumps(buffer))
        buffer.save_hdf5(str(folder / "buffer.hdf5"))
        found = datasets_in(folder / "buffer.hdf5")
        assert any(data.startswith(b"\x80") for data in found)
        for data in found:
            if data.startswith(b"\x80") and data.endswith(b"."):
                yield from pickles_in(data)


def datasets_in(path: Path) -> list[bytes]:
    """The bytes of every dataset of an HDF5 file."""
    import h5py

    found: list[bytes] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: found.append(item[()].tobytes()) if hasattr(item, "dtype") else None)
    return found


def torchrl_buffers(folder: Path) -> Iterator[bytes]:
    from synther_buffers.torchrl import SynthERStorage
    from tensordict import TensorDict
    from torchrl.data import TensorDictReplayBuffer

    buffer = TensorDictReplayBuffer(storage=SynthERStorage(300, **SMALL), batch_size=4)
    value = torch.arange(120.0)[:, None].sin()
    end = torch.arange(120)[:, None] % 20 == 19
    following = {"observation": value, "reward": torch.ones(120, 1), "terminated": end, "done": end}
    buffer.extend(TensorDict({"observation": value, "action": value, "next": following}, [120]))
    buffer.sample()
    assert buffer.storage.synthetic.num_refreshes == 1
    yield from pickles_in(pickle.dumps(buffer.storage.synthetic))
    buffer.dumps(folder / "dumped")
    # TorchRL itself pickles a flag beside what is ours.
    assert {path.name for path in folder.rglob("*.p*k*l*")} == {"prefetch.pkl"}
    yield from pickles_in(next(folder.rglob("prefetch.pkl")).read_bytes())
    torch.save(buffer.storage.state_dict(), folder / "state.pt")
    yield from pickles_in_zip((folder / "state.pt").read_bytes())


def upsamplers(folder: Path) -> Iterator[bytes]:
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu", 0)
    upsampler.fit(gaussian(200))
    yield from pickles_in(pickle.dumps(upsampler.state_dict()))
    torch.save(upsampler.state_dict(), folder / "state.pt")
    yield from pickles_in_zip((folder / "state.pt").read_bytes())


def sb3(*names: str) -> set[str]:
    return {f"synther_buffers.sb3.{name}" for name in names}


@pytest.mark.parametrize(
    ("saving", "ours"),
    [
        (sb3_buffers, CONFIGURATION | REPLAY | sb3("SynthERBuffer", "SynthERDictBuffer", "SynthERNStepBuffer")),
        (sb3_model, CONFIGURATION | sb3("SynthERBuffer")),
        (
            tianshou_buffers,
            CONFIGURATION
            | REPLAY
            | {f"synther_buffers.tianshou.SynthER{kind}ReplayBuffer" for kind in ("", "Prioritized")},
        ),
        (torchrl_buffers, CONFIGURATION | REPLAY),
        (upsamplers, set()),
    ],
)
def test_a_pickle_looks_up_names_of_the_allow_list_alone(saving, ours, tmp_path):
    found = names(saving(tmp_path))
    assert {f"{module}.{name}" for module, name in found if module.startswith("synther_buffers")} == ours
    others = {(module.split(".")[0], name) for module, name in found if not module.startswith("synther_buffers")}
    assert others <= {(library, name) for library, allowed in OTHERS.items() for name in allowed}
