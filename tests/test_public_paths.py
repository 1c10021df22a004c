"""What a saved buffer names: classes by the path that users import them by, so that moving a file breaks no save."""

from __future__ import annotations

import pickle

import pytest
from gymnasium import spaces
from opcodes import names_in

ADAPTERS = {
    "synther_buffers.sb3": {"SynthERBuffer", "SynthERDictBuffer", "SynthERNStepBuffer"},
    "synther_buffers.tianshou": {"SynthERReplayBuffer", "SynthERPrioritizedReplayBuffer"},
    "synther_buffers.torchrl": {"SynthERStorage", "SynthERMemmapStorage", "SynthERPrioritizedSampler"},
}
BOX = spaces.Box(-1.0, 1.0, (1,))


def ours(pickled: bytes) -> set[tuple[str, str]]:
    return {(module, name) for module, name in names_in(pickled) if module.startswith("synther_buffers.")}


def of_adapters(pickled: bytes) -> set[tuple[str, str]]:
    adapters = tuple(ADAPTERS)
    return {(module, name) for module, name in ours(pickled) if module.startswith(adapters)}


def sb3_buffers():
    from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer

    for cls in (SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer):
        yield cls(
            20_000, spaces.Dict({"a": BOX}) if cls is SynthERDictBuffer else BOX, BOX, "cpu", upsampler_device="cpu"
        )


def tianshou_buffers():
    from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer

    yield SynthERReplayBuffer(20_000, 2, upsampler_device="cpu")
    yield SynthERPrioritizedReplayBuffer(20_000, 2, alpha=0.6, beta=0.4, upsampler_device="cpu")


def torchrl_buffers():
    from synther_buffers.torchrl import SynthERMemmapStorage, SynthERPrioritizedSampler, SynthERStorage
    from torchrl.data import TensorDictReplayBuffer

    for cls in (SynthERStorage, SynthERMemmapStorage):
        yield TensorDictReplayBuffer(storage=cls(20_000, upsampler_device="cpu"))
    yield SynthERPrioritizedSampler  # the class alone: without TorchRL's compiled part there can be no object of it


@pytest.mark.parametrize(
    ("framework", "buffers"),
    [("stable_baselines3", sb3_buffers), ("tianshou", tianshou_buffers), ("torchrl", torchrl_buffers)],
)
def test_a_pickled_buffer_names_the_classes_as_users_import_them(framework, buffers):
    pytest.importorskip(framework)
    found = set()
    for buffer in buffers():
        pickled = pickle.dumps(buffer)
        if not isinstance(buffer, type):
            assert type(pickle.loads(pickled)) is type(buffer)
        found |= of_adapters(pickled)
    module = next(module for module in ADAPTERS if framework.replace("stable_baselines3", "sb3") in module)
    assert found == {(module, name) for name in ADAPTERS[module]}


def test_a_class_says_where_it_is_exported():
    sb3 = pytest.importorskip("synther_buffers.sb3")
    assert repr(sb3.SynthERBuffer) == "<class 'synther_buffers.sb3.SynthERBuffer'>"
    assert sb3.SynthERCallback.__module__ == "synther_buffers.sb3"


def test_names_are_found_in_old_and_new_pickles():
    value = (spaces.Box, spaces.Discrete, spaces.Box)
    for protocol in (2, 4, 5):
        assert {name for _, name in names_in(pickle.dumps(value, protocol))} == {"Box", "Discrete"}
