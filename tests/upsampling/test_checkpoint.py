"""Models in files: what is damaged or hostile is refused, what is older loads."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import ConditioningConfig, DiffusionUpsampler, TransitionSpec
from synther_buffers.upsampling import checkpoint

VERSION_3 = Path(__file__).parents[1] / "data" / "version3"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu", seed=1)
    upsampler.fit(gaussian(300))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    upsampler.save(path)
    return path.read_bytes()


def test_plain_data_and_tensors_come_back():
    value = {"a": torch.arange(3), "b": [1, None, {"c": float("inf")}], 3: "text", "empty": {}}
    again = checkpoint.unpack(checkpoint.pack(value))
    assert torch.equal(again.pop("a"), value["a"])
    assert again == {"b": (1, None, {"c": float("inf")}), 3: "text", "empty": {}}


def test_what_is_neither_tensor_nor_plain_is_refused():
    with pytest.raises(TypeError, match=r"a state holds <object .*wanted tensors and plain data"):
        checkpoint.pack({"a": object()})


def test_a_model_of_version_3_loads_and_draws():
    upsampler = DiffusionUpsampler.load(VERSION_3 / "model.safetensors", device="cpu")
    rows = upsampler.sample(50)
    upsampler.spec.check(rows)
    assert all(torch.isfinite(tensor.double()).all() for tensor in rows.flat().values())
    # Observations of the training rows were (i, -i) for i below 150.
    assert rows.observation.abs().max() <= 149
    twin = DiffusionUpsampler(upsampler.spec, upsampler.settings, "cpu", upsampler.seed)
    twin.load_state_dict(torch.load(VERSION_3 / "upsampler_state.pt", weights_only=True))
    assert equal(twin.sample(20), DiffusionUpsampler.load(VERSION_3 / "model.safetensors", device="cpu").sample(20))


def refusal(path: Path) -> str | None:
    """The message with which a file is refused; None where it loads and draws."""
    try:
        DiffusionUpsampler.load(path, device="cpu").sample(2)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused(saved, seed, tmp_path):
    """Bytes of the header are changed, or the file is cut."""
    generator = torch.Generator().manual_seed(seed)
    data = bytearray(saved)
    length = struct.unpack("<Q", data[:8])[0]
    for _ in range(3):
        place = int(torch.randint(8 + length, (), generator=generator))
        data[place] = int(torch.randint(256, (), generator=generator))
    if seed % 4 == 0:
        data = data[: int(torch.randint(len(data), (), generator=generator))]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    error = refusal(path)  # a change may hit a number that any value suits
    if error is None:
        assert seed % 4 != 0  # a file that was cut never loads
    else:
        assert str(path) in error


@pytest.mark.parametrize("changes", [{"depth": 1_000_000}, {"width": 1_000_000}, {"embedding_dim": 99}, {"depth": 3}])
def test_a_network_that_the_weights_do_not_fit_is_never_built(saved, changes, tmp_path):
    content = checkpoint.unpack(saved)
    content["config"]["network"].update(changes)
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.pack(content))
    message = r"is damaged: the model's state cannot be read \((the configuration's NetworkConfig|the weights)"
    with pytest.raises(ValueError, match=message):
        DiffusionUpsampler.load(path, device="cpu")


def test_a_state_of_another_configuration_leaves_the_upsampler_as_it_was():
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    upsampler.fit(gaussian(300))
    model = upsampler.model
    other = DiffusionUpsampler(SPEC, replace(TINY, network=replace(TINY.network, width=40)), "cpu")
    other.fit(gaussian(300))
    with pytest.raises(ValueError, match=r"the weights .* have shape"):
        upsampler.load_state_dict(other.state_dict())
    assert upsampler.model is model


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma_data": 0.5}, "sigma_data"),
        ({"next_observation_change": False}, "next_observation_change"),
        ({"normalize_reward": False}, "normalize_reward"),
    ],
)
def test_settings_that_the_shapes_of_the_weights_do_not_show_are_compared(changes, named):
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    upsampler.fit(gaussian(300))
    other = DiffusionUpsampler(SPEC, replace(TINY, **changes), "cpu")
    with pytest.raises(ValueError, match=rf"it was fitted with {named}="):
        other.load_state_dict(upsampler.state_dict())
    assert other.model is None
    # Training and sampling may differ.
    same = DiffusionUpsampler(SPEC, replace(TINY, train_steps=5, warm_start=False), "cpu")
    same.load_state_dict(upsampler.state_dict())
    assert equal(same.sample(10), upsampler.sample(10))


def test_a_state_of_other_transitions_is_refused():
    # As many columns, of which other ones are the action's.
    other = TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Box(-1.0, 1.0, (3,)))
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    upsampler.fit(gaussian(300))
    with pytest.raises(ValueError, match="it was fitted on other transitions"):
        DiffusionUpsampler(other, TINY, "cpu").load_state_dict(upsampler.state_dict())


def test_a_state_that_does_not_say_what_it_was_fitted_with_loads():
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    upsampler.fit(gaussian(300))
    state = upsampler.state_dict()
    del state["model"]["spec"], state["model"]["settings"]
    again = DiffusionUpsampler(SPEC, TINY, "cpu")
    again.load_state_dict(state)
    assert equal(again.sample(10), upsampler.sample(10))


def test_a_file_with_a_share_that_is_refused_now_loads(tmp_path):
    upsampler = DiffusionUpsampler(SPEC, replace(TINY, conditioning=ConditioningConfig()), "cpu")
    upsampler.fit(gaussian(300))
    path = tmp_path / "model.safetensors"
    upsampler.save(path)
    content = checkpoint.unpack(path.read_bytes())
    content["config"]["conditioning"].update(given_share=1.0, drop_relevance=0.0, guidance=3.0)
    path.write_bytes(checkpoint.pack(content))
    loaded = DiffusionUpsampler.load(path, device="cpu")
    assert loaded.settings.conditioning == ConditioningConfig(guidance=3.0)
    assert equal(loaded.sample(10), upsampler.sample(10))


def test_a_file_holds_no_pickle(saved):
    length = struct.unpack("<Q", saved[:8])[0]
    header = json.loads(saved[8 : 8 + length])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "F64", "BOOL", "I64"}
