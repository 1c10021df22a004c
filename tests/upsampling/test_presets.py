import json
import math
import pickle
import pickletools
from dataclasses import FrozenInstanceError, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import synther_buffers
from synther_buffers import (
    ConditioningConfig,
    DPMSolver,
    HeunSolver,
    NetworkConfig,
    RowBudget,
    SamplerConfig,
    TrainingConfig,
)
from synther_buffers.upsampling.presets import PRESETS, UpsamplerConfig, resolve_config, resolve_device

CONFIG = UpsamplerConfig(
    network=NetworkConfig(width=8, depth=1, embedding_dim=4),
    training=TrainingConfig(batch_size=16, learning_rate=1e-3),
    sampler=SamplerConfig(HeunSolver(num_steps=4)),
    train_steps=10,
    warm_steps=5,
    warm_start=True,
    num_synthetic=100,
)
#: By the name that they have in messages.
PARTS = {
    None: CONFIG,
    "training": CONFIG.training,
    "sampler": CONFIG.sampler,
    "sampler.solver": CONFIG.sampler.solver,
    "budget": RowBudget(),
    "conditioning": ConditioningConfig(),
}


class TestValidation:
    @pytest.mark.parametrize(
        ("part", "name", "minimum"),
        [
            (None, "train_steps", 1),
            (None, "warm_steps", 1),
            (None, "num_synthetic", 1),
            (None, "terminal_steps", 1),
            ("network", "width", 1),
            ("network", "depth", 1),
            ("network", "embedding_dim", 1),
            ("network", "fourier_dim", 2),
            ("training", "batch_size", 1),
            ("sampler", "block_rows", 1),
        ],
    )
    def test_counts_are_named_when_they_are_too_small_or_not_whole(
        self, part: str | None, name: str, minimum: int
    ) -> None:
        def changed(value: object) -> UpsamplerConfig:
            if part is None:
                return replace(CONFIG, **{name: value})
            return replace(CONFIG, **{part: replace(getattr(CONFIG, part), **{name: value})})

        full = name if part is None else f"{part}.{name}"
        assert changed(minimum)
        with pytest.raises(ValueError, match=rf"^{full} is {minimum - 1}; it must be at least {minimum}\."):
            changed(minimum - 1)
        for value in (10.0, "10", True, *(() if name == "block_rows" else (None,))):
            with pytest.raises(TypeError, match=rf"^{full} is {value!r} \({type(value).__name__}\); wanted a whole"):
                changed(value)

    @pytest.mark.parametrize("rate", [0.0, -1e-3, math.nan])
    def test_learning_rate(self, rate: float) -> None:
        with pytest.raises(ValueError, match=r"training\.learning_rate is .*; it must be positive"):
            replace(CONFIG, training=replace(CONFIG.training, learning_rate=rate))

    @pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
    def test_sigma_data(self, sigma_data: float) -> None:
        with pytest.raises(ValueError, match=r"sigma_data is .*; it must be positive"):
            replace(CONFIG, sigma_data=sigma_data)

    @pytest.mark.parametrize("solver", ["stochastic-heun", None, DPMSolver])
    def test_what_is_no_solver(self, solver: object) -> None:
        with pytest.raises(TypeError, match=r"^sampler\.solver is .*; wanted a solver, such as DPMSolver"):
            SamplerConfig(solver)

    @pytest.mark.parametrize(
        ("part", "name", "value"),
        [
            ("training", "learning_rate", math.inf),
            ("training", "weight_decay", math.inf),
            ("training", "p_std", math.inf),
            ("training", "p_mean", math.nan),
            ("training", "p_mean", -math.inf),
            ("sampler.solver", "sigma_max", math.inf),
            ("sampler.solver", "sigma_max", math.nan),
            ("sampler.solver", "rho", math.inf),
            ("sampler.solver", "s_noise", math.nan),
            (None, "sigma_data", math.inf),
            ("budget", "power", math.inf),
            ("conditioning", "guidance", math.inf),
        ],
    )
    def test_what_is_not_finite(self, part: str | None, name: str, value: float) -> None:
        full = name if part is None else f"{part}.{name}"
        with pytest.raises(ValueError, match=rf"^{full} is {value}; wanted a finite number\."):
            replace(PARTS[part], **{name: value})

    def test_infinity_where_it_means_without_a_limit(self) -> None:
        assert replace(CONFIG.training, max_grad_norm=math.inf).max_grad_norm == math.inf
        solver = HeunSolver(4, s_churn=math.inf, s_tmin=0.0, s_tmax=math.inf)
        assert (solver.s_churn, solver.s_tmin, solver.s_tmax) == (math.inf, 0.0, math.inf)

    @pytest.mark.parametrize(
        ("betas", "error", "message"),
        [
            ((1.5, 0.9), ValueError, r"^training\.betas\[0\] is 1\.5; it must be at least 0 and below 1\."),
            ((0.9, math.nan), ValueError, r"^training\.betas\[1\] is nan; it must be at least 0 and below 1\."),
            ((0.9, "0.99"), TypeError, r"^training\.betas\[1\] is '0\.99' \(str\); wanted a number"),
            ((0.9,), TypeError, r"^training\.betas is \(0\.9,\); wanted two numbers"),
            (0.9, TypeError, r"^training\.betas is 0\.9; wanted two numbers"),
        ],
    )
    def test_betas(self, betas: object, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            replace(CONFIG.training, betas=betas)

    def test_betas_of_a_list_are_a_tuple(self) -> None:
        assert replace(CONFIG.training, betas=[0.8, 0]).betas == (0.8, 0.0)

    @pytest.mark.parametrize("value", ["false", "no", None, 2, 0.0])
    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("training", "bfloat16"),
            ("sampler", "bfloat16"),
            (None, "warm_start"),
            (None, "next_observation_change"),
            (None, "normalize_reward"),
            (None, "model_terminals"),
        ],
    )
    def test_flags(self, part: str | None, name: str, value: object) -> None:
        full = name if part is None else f"{part}.{name}"
        with pytest.raises(TypeError, match=rf"^{full} is {value!r} \({type(value).__name__}\); wanted True or False"):
            replace(PARTS[part], **{name: value})
        assert getattr(replace(PARTS[part], **{name: np.True_}), name) is True
        assert getattr(replace(PARTS[part], **{name: 0}), name) is False

    @pytest.mark.parametrize("value", ["a", None])
    @pytest.mark.parametrize("name", ["ema_decay", "dropout", "p_mean"])
    def test_rates_that_are_no_numbers(self, name: str, value: object) -> None:
        with pytest.raises(TypeError, match=rf"^training\.{name} is {value!r} .*; wanted a "):
            replace(CONFIG.training, **{name: value})

    def test_is_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            CONFIG.train_steps = 5


class TestPresets:
    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_round_trips(self, name: str) -> None:
        config = PRESETS[name]
        assert UpsamplerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert pickle.loads(pickle.dumps(config)) == config

    def test_paper_numbers(self) -> None:
        paper = PRESETS["paper-online"]
        assert (paper.network.width, paper.network.depth) == (1024, 6)
        assert (paper.train_steps, paper.training.batch_size, paper.training.learning_rate) == (100_000, 256, 3e-4)
        assert paper.sampler.solver == HeunSolver(128, 0.002, 80.0, 7.0, s_churn=80.0, s_tmin=0.05, s_tmax=50.0)
        assert not paper.warm_start
        offline = PRESETS["paper-offline"]
        assert (offline.network.width, offline.num_synthetic) == (2048, 5_000_000)

    def test_dmc_leaves_rewards_alone_and_has_no_terminals(self) -> None:
        dmc = PRESETS["paper-online-dmc"]
        assert replace(dmc, normalize_reward=True, model_terminals=True) == PRESETS["paper-online"]
        assert not dmc.normalize_reward
        assert not dmc.model_terminals


class TestFiles:
    """What configurations look like in saved models and saved agents."""

    #: As state version 3 wrote it: the settings of both solvers side by side.
    VERSION_3: ClassVar = {
        "network": {"width": 8, "depth": 1, "embedding_dim": 4, "fourier_dim": 16, "activation": "relu"},
        "training": {
            "batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 0, "betas": [0.9, 0.99], "weight_decay": 0.0,
            "max_grad_norm": 1.0, "p_mean": -1.2, "p_std": 1.2, "ema_decay": 0.995, "ema_every": 10, "bfloat16": False,
        },
        "sampler": {
            "solver": "stochastic-heun", "num_steps": 4, "sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0,
            "s_churn": 40.0, "s_tmin": 0.1, "s_tmax": 30.0, "s_noise": 1.01, "bfloat16": True,
        },
        "train_steps": 10, "warm_steps": 5, "warm_start": True, "num_synthetic": 100, "sigma_data": 1.0,
        "next_observation_change": True, "normalize_reward": True, "model_terminals": True, "terminal_steps": 1500,
    }  # fmt: skip

    def test_version_3_with_heuns_solver(self) -> None:
        solver = HeunSolver(4, 0.01, 50.0, 5.0, s_churn=40.0, s_tmin=0.1, s_tmax=30.0, s_noise=1.01)
        wanted = replace(CONFIG, sampler=SamplerConfig(solver, bfloat16=True))
        assert UpsamplerConfig.from_dict(self.VERSION_3) == wanted

    def test_version_3_with_the_other_solver(self) -> None:
        sampler = {**self.VERSION_3["sampler"], "solver": "sde-dpm-solver-2m"}
        wanted = replace(CONFIG, sampler=SamplerConfig(DPMSolver(4, 0.01, 50.0, 5.0), bfloat16=True))
        assert UpsamplerConfig.from_dict({**self.VERSION_3, "sampler": sampler}) == wanted

    def test_a_solver_that_this_library_does_not_have(self) -> None:
        written = CONFIG.to_dict()
        written["sampler"]["solver"]["name"] = "euler"
        old = {**self.VERSION_3, "sampler": {**self.VERSION_3["sampler"], "solver": "euler"}}
        for data in (written, old):
            with pytest.raises(
                ValueError, match=r"solver\.name is 'euler'; known solvers: stochastic-heun, sde-dpm-solver-2m"
            ):
                UpsamplerConfig.from_dict(data)

    def test_reading_leaves_what_is_read_alone(self) -> None:
        written = CONFIG.to_dict()
        UpsamplerConfig.from_dict(written)
        assert written == CONFIG.to_dict()

    def test_pickles_name_public_paths_alone(self) -> None:
        for solver in (DPMSolver(3), HeunSolver(3)):
            found = set()
            for opcode, argument, _ in pickletools.genops(
                pickle.dumps(replace(CONFIG, sampler=SamplerConfig(solver)), 2)
            ):
                if opcode.name == "GLOBAL":
                    found.add(argument)
            names = ("UpsamplerConfig", "NetworkConfig", "TrainingConfig", "SamplerConfig", type(solver).__name__)
            assert {name for name in found if "synther" in name} == {f"synther_buffers {name}" for name in names}
            assert all(hasattr(synther_buffers, name) for name in names)


class TestRanges:
    @pytest.mark.parametrize(
        ("part", "name", "value", "wanted"),
        [
            ("training", "ema_every", 0, "at least 1"),
            ("training", "ema_decay", 1.0, "at least 0 and below 1"),
            ("training", "max_grad_norm", -1.0, "positive"),
            ("training", "p_std", 0.0, "positive"),
        ],
    )
    def test_values_out_of_range_are_named(self, part: str, name: str, value: float, wanted: str) -> None:
        with pytest.raises(ValueError, match=rf"{part}\.{name} is {value}; it must be {wanted}"):
            replace(CONFIG, **{part: replace(getattr(CONFIG, part), **{name: value})})

    def test_numpy_numbers_become_plain_ones(self) -> None:
        training = replace(CONFIG.training, batch_size=np.int64(64), learning_rate=np.float32(0.5))
        config = replace(CONFIG, train_steps=np.int32(10), training=training)
        assert (type(config.train_steps), type(training.batch_size), type(training.learning_rate)) == (int, int, float)
        assert UpsamplerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize("value", ["0.1", None, True])
    def test_a_rate_that_is_no_number(self, value: object) -> None:
        with pytest.raises(TypeError, match=rf"training\.learning_rate is {value!r} .*; wanted a number above 0"):
            replace(CONFIG.training, learning_rate=value)


class TestResolve:
    @pytest.mark.parametrize(("device", "preset"), [("cpu", "cpu"), ("cuda", "gpu"), ("cuda:1", "gpu"), ("mps", "cpu")])
    def test_auto_depends_on_the_device(self, device: str, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
        assert resolve_config("auto", torch.device(device)) == PRESETS[preset]

    def test_no_bfloat16_where_the_cpu_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
        preset, resolved = PRESETS["cpu"], resolve_config("auto", torch.device("cpu"))
        assert not resolved.training.bfloat16
        assert not resolved.sampler.bfloat16
        assert replace(resolved, training=preset.training, sampler=preset.sampler) == preset

    def test_a_name_does_not_depend_on_it(self) -> None:
        assert resolve_config("paper-online", torch.device("cpu")) == PRESETS["paper-online"]

    def test_a_configuration_is_taken_as_it_is(self) -> None:
        assert resolve_config(CONFIG, torch.device("cuda")) is CONFIG

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="unknown preset 'papr'; known presets: auto, cpu, gpu, paper-online"):
            resolve_config("papr", torch.device("cpu"))

    @pytest.mark.parametrize("config", [None, 5, {"train_steps": 10}])
    def test_neither_name_nor_configuration(self, config: object) -> None:
        with pytest.raises(TypeError, match="wanted the name of a preset, an UpsamplerConfig or a factory"):
            resolve_config(config, torch.device("cpu"))

    def test_device(self) -> None:
        assert resolve_device("cpu") == torch.device("cpu")
        assert resolve_device(torch.device("cpu")) == torch.device("cpu")
        assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "xla", ""])
    def test_unusable_device(self, device: str) -> None:
        with pytest.raises(ValueError, match=rf"the device '{device}' cannot be used here \(.+\); try 'auto' or 'cpu'"):
            resolve_device(device)
