"""The options stand once: keywords, defaults, checks, and what editors and documentation show of them."""

import importlib
import inspect
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from toys import SPEC, Resampler, gaussian
from typer.testing import CliRunner

from synther_buffers import PRESETS, SyntheticOptions, SyntheticReplay, UpsamplerConfig
from synther_buffers.commands.app import app
from synther_buffers.datasets import write_dataset
from synther_buffers.replay import options
from synther_buffers.replay.options import OPTIONS, SyntheticKeywords, split_keywords
from synther_buffers.upsampling.presets import resolve_config

ROOT = Path(__file__).parents[2]
BUFFERS = [
    ("stable_baselines3", "sb3", "SynthERBuffer"),
    ("stable_baselines3", "sb3", "SynthERDictBuffer"),
    ("stable_baselines3", "sb3", "SynthERNStepBuffer"),
    ("tianshou", "tianshou", "SynthERReplayBuffer"),
    ("tianshou", "tianshou", "SynthERPrioritizedReplayBuffer"),
    ("torchrl", "torchrl", "SynthERStorage"),
    ("torchrl", "torchrl", "SynthERMemmapStorage"),
]


@pytest.fixture(params=BUFFERS, ids=lambda buffer: buffer[2])
def cls(request):
    framework, module, name = request.param
    pytest.importorskip(framework)
    return getattr(importlib.import_module(f"synther_buffers.{module}"), name)


# -- one list --------------------------------------------------------------------------------------------------------


def test_what_type_checkers_read_is_what_is_checked():
    assert get_type_hints(SyntheticKeywords) == get_type_hints(SyntheticOptions, vars(options))
    assert list(get_type_hints(SyntheticKeywords)) == list(OPTIONS)


def test_a_signature_lists_names_and_defaults(cls):
    parameters = inspect.signature(cls).parameters
    assert {name: parameters[name].default for name in OPTIONS} == {
        field.name: field.default for field in fields(SyntheticOptions)
    }
    assert {parameters[name].kind for name in OPTIONS} == {inspect.Parameter.KEYWORD_ONLY}
    # The framework's own ones stay in front.
    assert next(iter(parameters)) in ("buffer_size", "total_size", "max_size")


def test_the_replay_lists_them_too():
    assert set(OPTIONS) < set(inspect.signature(SyntheticReplay).parameters)


def test_every_option_is_described_and_on_the_page_of_settings():
    page = (ROOT / "docs" / "settings.md").read_text().split("## How to set")[0]
    table = re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)
    described = re.findall(r"^ {8}(\w+): ", SyntheticOptions.__doc__.split("Raises:")[0], re.MULTILINE)
    assert sorted(table) == sorted(described) == sorted(OPTIONS)


# -- checks ----------------------------------------------------------------------------------------------------------


def test_seeds_are_what_random_generators_take():
    assert SyntheticOptions(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match=r"^seed is 18446744073709551616; it must be below 2\*\*64\."):
        SyntheticOptions(seed=2**64)


def test_defaults_are_resolved():
    options = SyntheticOptions(retrain_every=7, refresh_log="log.jsonl")
    assert options.seed == torch.initial_seed()
    assert options.refresh_log == Path("log.jsonl")
    assert options.num_synthetic is None  # an upsampler of one's own may say


def test_a_misspelt_keyword_gets_a_suggestion():
    with pytest.raises(TypeError, match=r"Buffer does not know .* 'retrain_evry'. Did you mean 'retrain_every'"):
        split_keywords("Buffer", {"retrain_evry": 5})
    with pytest.raises(TypeError, match=r"the keyword 'n_step'. Did you mean 'n_steps'"):
        split_keywords("Buffer", {"n_step": 5}, ["n_steps"])
    with pytest.raises(TypeError, match=r"the keyword 'zzz'. It takes upsampler, upsampler_device, retrain_every"):
        split_keywords("Buffer", {"zzz": 5})
    with pytest.raises(TypeError, match="Did you mean 'synthetic_fraction'"):
        SyntheticReplay(SPEC, upsampler=Resampler, synthetic_fracton=0.3)


def test_a_buffer_names_itself_and_the_misspelt_keyword(cls):
    from gymnasium import spaces

    box = spaces.Box(-1.0, 1.0, (2,))
    arguments = (100, box, box) if "Dict" not in cls.__name__ else (100, spaces.Dict({"a": box}), box)
    if cls.__module__ != "synther_buffers.sb3":
        arguments = (100,)
    with pytest.raises(TypeError, match=rf"{cls.__name__} does not know the keyword 'retrain_evry'. Did you mean"):
        cls(*arguments, retrain_evry=50)


# -- a mapping as configuration --------------------------------------------------------------------------------------


def test_a_mapping_is_merged_into_the_preset_of_the_device():
    preset = resolve_config("auto", torch.device("cpu"))
    given = {"train_steps": 10, "network": {"width": 64}, "training": {"betas": [0.5, 0.9]}}
    options = SyntheticOptions(upsampler=given, upsampler_device="cpu")
    assert options.factory().config == replace(
        preset,
        train_steps=10,
        network=replace(preset.network, width=64),
        training=replace(preset.training, betas=(0.5, 0.9)),
    )
    replay = SyntheticReplay(SPEC, upsampler=given, upsampler_device="cpu")
    assert replay.upsampler.settings == options.factory().config
    assert SyntheticOptions(upsampler={}, upsampler_device="cpu").factory().config == preset
    assert isinstance(PRESETS["cpu"], UpsamplerConfig)


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        (
            {"train_step": 10},
            ValueError,
            r"upsampler: unknown train_step. Did you mean 'train_steps'\? Known: ",
        ),
        ({"network": {"widht": 64}}, ValueError, r"upsampler: unknown network.widht. Did you mean 'width'\?"),
        ({"network": 64}, TypeError, "upsampler: network is 64; wanted names and values"),
        ({"train_steps": 0}, ValueError, "train_steps is 0; it must be at least 1"),
        ({"train_steps": "many"}, TypeError, r"train_steps is 'many' \(str\)"),
        ({3: 4}, ValueError, "upsampler: unknown 3"),
    ],
)
def test_a_mapping_with_mistakes(mapping, error, message):
    with pytest.raises(error, match=message):
        SyntheticOptions(upsampler=mapping, upsampler_device="cpu")


def test_the_command_line_takes_the_same_mapping_as_json(tmp_path, monkeypatch):
    """``--config`` and `upsampler` mean the same: the same rows come out."""
    changes = {"train_steps": 10, "terminal_steps": 10, "network": {"width": 16, "depth": 1}}
    monkeypatch.chdir(tmp_path)
    write_dataset("real.hdf5", gaussian(400))
    Path("changes.json").write_text(json.dumps(changes))
    config = SyntheticOptions(upsampler=changes, upsampler_device="cpu").factory().config
    Path("whole.json").write_text(json.dumps(config.to_dict()))
    for name in ("changes", "whole"):
        arguments = ["upsample", "real.hdf5", "-o", f"{name}.npz", "-n", "100", "--config", f"{name}.json"]
        result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--seed", "3", "--quiet"])
        assert result.exit_code == 0, result.output
    assert Path("changes.npz").read_bytes() == Path("whole.npz").read_bytes()
