"""DiffusionUpsampler: learning, drawing, warm starts, saving."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, equal, gaussian, global_state, walk

from synther_buffers import (
    DiffusionUpsampler,
    DPMSolver,
    HeunSolver,
    NetworkConfig,
    SamplerConfig,
    Transitions,
    TransitionSpec,
    Upsampler,
)
from synther_buffers.evaluation.fidelity import measure_fidelity
from synther_buffers.upsampling import checkpoint
from synther_buffers.upsampling.factory import make_upsampler, resolve_factory
from synther_buffers.upsampling.presets import resolve_config

LEARNING = replace(
    TINY,
    network=NetworkConfig(width=64, depth=2, embedding_dim=32),
    training=replace(TINY.training, batch_size=256, weight_decay=0.0, dropout=0.0),
    sampler=replace(TINY.sampler, solver=replace(TINY.sampler.solver, num_steps=20)),
    train_steps=800,
    warm_steps=200,
    terminal_steps=800,
)


def fitted(config=TINY, rows=None, seed=0) -> DiffusionUpsampler:
    upsampler = DiffusionUpsampler(SPEC, config, "cpu", seed)
    upsampler.fit(gaussian(500) if rows is None else rows)
    return upsampler


def test_is_an_upsampler():
    assert isinstance(DiffusionUpsampler(SPEC, TINY, "cpu"), Upsampler)


def test_learns_marginals_correlations_dynamics_and_terminals():
    real = gaussian(4_000)
    synthetic = fitted(LEARNING, real).sample(4_000)
    fidelity = measure_fidelity(gaussian(4_000, seed=1), synthetic, SPEC)
    assert fidelity.marginal > 0.95
    assert fidelity.correlation > 0.95
    # s' = 0.9 s + 0.1 a + N(0, 0.1^2): what is left unexplained is about the noise of the data.
    unexplained = synthetic.next_observation - 0.9 * synthetic.observation - 0.1 * synthetic.action
    assert unexplained.std() < 0.2
    rule = synthetic.next_observation[:, 0] < -1.2
    assert (synthetic.terminated & rule).sum() / synthetic.terminated.sum() > 0.85
    rate, data_rate = synthetic.terminated.double().mean(), real.terminated.double().mean()
    assert abs(rate - data_rate) < 3 * (data_rate * (1 - data_rate) / 4_000) ** 0.5


@pytest.mark.parametrize("solver", [HeunSolver, DPMSolver])
def test_both_solvers_reproduce_the_moments(solver):
    config = replace(LEARNING, sampler=SamplerConfig(solver(20, 0.05, 20.0, 100.0)))
    real, synthetic = gaussian(4_000), fitted(config, gaussian(4_000)).sample(4_000)
    torch.testing.assert_close(synthetic.observation.mean(0), real.observation.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(synthetic.observation.std(0), real.observation.std(0), atol=0.1, rtol=0)


def test_bfloat16_is_as_faithful_as_float32():
    real, fidelity = gaussian(4_000), []
    for bfloat16 in (False, True):
        config = replace(
            LEARNING,
            training=replace(LEARNING.training, bfloat16=bfloat16),
            sampler=replace(LEARNING.sampler, bfloat16=bfloat16),
        )
        fidelity.append(measure_fidelity(gaussian(4_000, 1), fitted(config, real).sample(4_000), SPEC))
    assert fidelity[1].marginal > fidelity[0].marginal - 0.015
    assert fidelity[1].correlation > fidelity[0].correlation - 0.015


@pytest.mark.parametrize("count", [0, 1, 7, 20_000])
def test_samples_any_number_of_rows(count):
    rows = fitted().sample(count)
    SPEC.check(rows)
    assert len(rows) == count


def test_rows_do_not_depend_on_the_size_of_the_blocks():
    upsampler = fitted()
    rows = []
    for block_rows in (None, 5_000, 20_000):
        other = DiffusionUpsampler(
            SPEC, replace(TINY, sampler=replace(TINY.sampler, block_rows=block_rows)), "cpu", seed=0
        )
        other.load_state_dict(upsampler.state_dict())
        rows.append(other.sample(20_000))
    for other in rows[1:]:
        torch.testing.assert_close(other.observation, rows[0].observation, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(other.reward, rows[0].reward, atol=1e-3, rtol=1e-3)
        assert (other.terminated != rows[0].terminated).sum() <= 2


def test_rows_are_legal():
    synthetic = fitted(replace(TINY, train_steps=1)).sample(2_000)  # hardly trained: the rows have to be legal anyway
    assert all(torch.isfinite(tensor).all() for tensor in synthetic.flat().values())
    assert synthetic.action.abs().max() <= 1
    assert synthetic.observation.dtype == torch.float64
    assert synthetic.terminated.dtype == torch.bool


@pytest.mark.parametrize("solver", [HeunSolver, DPMSolver])
def test_answers_that_run_away_do_not_take_rows_along(solver):
    """A net may answer anything where it has seen nothing; a sampler that follows goes there again, to infinity."""
    upsampler = fitted(replace(TINY, sampler=SamplerConfig(solver(8, 0.05, 20.0, 100.0))))
    upsampler.model.denoising.denoiser.network.out.weight.data.mul_(1e30)
    SPEC.check(upsampler.sample(2_000))


def test_constant_columns_and_rewards_come_back_exactly():
    rows = walk(1_000)
    rows.observation[:, 1] = rows.next_observation[:, 1] = 1 / 3
    synthetic = fitted(rows=rows).sample(500)
    assert (synthetic.observation[:, 1] == 1 / 3).all()
    assert (synthetic.next_observation[:, 1] == 1 / 3).all()
    assert (synthetic.reward == 1).all()


def test_rewards_of_few_values_are_not_smeared():
    rows = gaussian(2_000)
    rows.reward = -(rows.next_observation[:, 0] < 1.5).float()  # sparse: 0 in about one row of twenty, else -1
    synthetic = fitted(LEARNING, rows).sample(4_000)
    assert set(synthetic.reward.unique().tolist()) == {-1.0, 0.0}
    assert synthetic.reward.mean() == pytest.approx(rows.reward.mean().item(), abs=0.02)
    # And far more often on the right rows than a coin flip of the same rate would be.
    near = synthetic.next_observation[:, 0] > 1.2
    assert near[synthetic.reward == 0].double().mean() > 4 * near.double().mean()


def test_one_terminal_in_fifty_thousand_rows():
    rows = gaussian(50_000)
    rows.terminated = torch.zeros(50_000, dtype=torch.bool)
    rows.terminated[123] = True
    upsampler = fitted(TINY, rows)
    assert upsampler.model.codec.encode(rows).abs().max() < 10
    # Systematic sampling: as many flags as the probabilities sum up to, which is the data's rate.
    assert int(upsampler.sample(50_000).terminated.sum()) == 1


@pytest.mark.parametrize("terminated", [False, True])
def test_terminals_that_never_vary(terminated):
    rows = gaussian(500)
    rows.terminated = torch.full((500,), terminated)
    assert (fitted(rows=rows).sample(100).terminated == terminated).all()


def test_terminals_that_are_not_modelled():
    config = replace(TINY, model_terminals=False)
    assert not fitted(config).sample(100).terminated.any()


def test_heavy_tails_stay_in_range():
    rows = gaussian(2_000)
    rows.observation[:, 0] = torch.from_numpy(np.random.default_rng(0).standard_cauchy(2_000))
    synthetic = fitted(rows=rows).sample(1_000)
    assert synthetic.observation[:, 0].max() <= rows.observation[:, 0].max()
    assert torch.isfinite(synthetic.observation).all()


def test_discrete_and_dict_spaces():
    spec = TransitionSpec.from_spaces(
        spaces.Dict(
            {"grid": spaces.MultiDiscrete([3, 1]), "lamps": spaces.MultiBinary(2), "cell": spaces.Discrete(4, start=2)}
        ),
        spaces.Discrete(3),
        discounts=(0.9, 0.81),
    )
    rng = np.random.default_rng(0)

    def observation():
        return {
            "grid": torch.from_numpy(np.stack([rng.integers(3, size=400), np.zeros(400, np.int64)], 1)),
            "lamps": torch.from_numpy((rng.random((400, 2)) < [0.5, 0.02]).astype(np.int8)),
            "cell": torch.from_numpy(rng.integers(2, 6, size=400)),
        }

    rows = Transitions(
        observation(), torch.from_numpy(rng.integers(3, size=400)), torch.zeros(400), observation(),
        torch.zeros(400, dtype=torch.bool), torch.tensor([0.9, 0.81])[torch.from_numpy(rng.integers(2, size=400))],
    )  # fmt: skip
    upsampler = DiffusionUpsampler(spec, TINY, "cpu")
    upsampler.fit(rows)
    synthetic = upsampler.sample(5_000)
    spec.check(synthetic)
    assert set(synthetic.observation["cell"].tolist()) <= {2, 3, 4, 5}
    assert (synthetic.observation["grid"][:, 1] == 0).all()
    assert synthetic.observation["lamps"].double().mean(0)[1] == pytest.approx(
        rows.observation["lamps"].double().mean(0)[1].item(), abs=0.02
    )
    assert set(synthetic.discount.tolist()) <= set(torch.tensor([0.9, 0.81]).tolist())


# -- randomness ------------------------------------------------------------------------------------------------------


def test_same_seed_same_rows_another_seed_others():
    first, again, other = (fitted(seed=seed).sample(50) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_leaves_the_process_as_it_found_it():
    before = global_state()
    upsampler = fitted()
    upsampler.sample(50)
    upsampler.fit(gaussian(500))
    assert global_state() == before


@pytest.mark.parametrize("outcome_steps", [0, 10])
def test_ignores_default_dtype_and_the_callers_grad_mode(outcome_steps):
    config = replace(TINY, outcome_steps=outcome_steps)
    reference = fitted(config).sample(20)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert equal(fitted(config).sample(20), reference)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("outcome_steps", [0, 10])
def test_ignores_the_default_device(outcome_steps):
    """Whatever has no device of its own would be made on this one, whose tensors hold nothing."""
    config = replace(TINY, outcome_steps=outcome_steps)

    def drawn() -> Transitions:
        upsampler = fitted(config, rows)
        upsampler.fit(rows, held_out=held_out)
        loaded = DiffusionUpsampler(SPEC, config, "cpu")
        loaded.load_state_dict(upsampler.state_dict())
        return loaded.sample(5_000)

    rows, held_out = gaussian(500), gaussian(50, seed=1)
    rows.reward[::2] = 1.0  # few values, heavy tails, and limits have tensors of their own
    rows.observation[::100, 0] *= 1e4
    rows.action.clamp_(-0.5, 0.5)
    reference = drawn()
    with torch.device("meta"):
        assert equal(drawn(), reference)


# -- warm starts -----------------------------------------------------------------------------------------------------


def test_goes_on_from_the_last_model():
    upsampler = fitted()
    frame = upsampler.model.codec.normalizer
    report = upsampler.fit(gaussian(600), held_out=gaussian(100, seed=1))
    assert report.warm
    assert report.steps == TINY.warm_steps
    assert upsampler.model.codec.normalizer is frame


def test_starts_afresh_where_told_to():
    paper = replace(TINY, warm_start=False)
    upsampler = fitted(paper)
    assert upsampler.fit(gaussian(500)).reason == "no warm start"
    assert upsampler.fit(gaussian(500), warm_start=True).warm


def test_starts_afresh_when_the_data_leave_the_frame():
    upsampler = fitted()
    moved = gaussian(500)
    moved.observation += 5.0
    moved.next_observation += 5.0
    report = upsampler.fit(moved)
    assert not report.warm
    assert "left the model's normalisation" in report.reason
    assert upsampler.sample(500).observation.mean() == pytest.approx(5.0, abs=1.0)


def test_starts_afresh_when_a_warm_start_loses():
    # A learning rate that wrecks the model: going on makes it worse on the held-out rows.
    upsampler = fitted(LEARNING)
    upsampler.settings = replace(LEARNING, training=replace(LEARNING.training, learning_rate=0.5), warm_steps=20)
    report = upsampler.fit(gaussian(500), held_out=gaussian(200, seed=1))
    assert not report.warm
    assert "held-out" in report.reason
    assert report.steps == LEARNING.train_steps + 20


def test_starts_afresh_when_a_warm_start_diverges():
    """Else every later refresh would go on from the same model, and fail like this one."""
    upsampler = fitted(LEARNING)
    upsampler.model.denoising.denoiser.network.out.weight.data.mul_(1e30)  # the loss is the square of that
    report = upsampler.fit(gaussian(500))
    assert not report.warm
    assert report.reason.startswith("a warm start diverged: the training loss became ")
    assert report.loss < 0.9


def test_a_failed_fit_leaves_the_last_model():
    upsampler = fitted()
    reference = pickle.loads(pickle.dumps(upsampler.state_dict()))
    broken = gaussian(500)
    broken.reward[7] = float("nan")
    with pytest.raises(ValueError, match="reward has NaN among its values"):
        upsampler.fit(broken)
    twin = DiffusionUpsampler(SPEC, TINY, "cpu")
    twin.load_state_dict(reference)
    assert equal(upsampler.sample(30), twin.sample(30))


# -- saving ----------------------------------------------------------------------------------------------------------


def test_saves_and_loads(tmp_path):
    upsampler = fitted()
    upsampler.sample(10)
    upsampler.save(tmp_path / "model.safetensors")
    loaded = DiffusionUpsampler.load(tmp_path / "model.safetensors", spec=SPEC, device="cpu")
    assert loaded.settings == TINY
    # It goes on where the saved one stopped: the next draw, and a warm fit.
    assert equal(loaded.sample(100), upsampler.sample(100))
    assert equal_fits(loaded, upsampler)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def equal_fits(left: DiffusionUpsampler, right: DiffusionUpsampler) -> bool:
    return left.fit(gaussian(600)).loss == right.fit(gaussian(600)).loss


def test_refuses_a_file_of_another_spec(tmp_path):
    fitted().save(tmp_path / "model.safetensors")
    other = TransitionSpec.from_spaces(spaces.Discrete(3), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"made for other transitions: .*categorical"):
        DiffusionUpsampler.load(tmp_path / "model.safetensors", spec=other)


def test_refuses_a_file_of_another_version(tmp_path):
    path = tmp_path / "model.safetensors"
    fitted().save(path)
    content = checkpoint.unpack(path.read_bytes())
    path.write_bytes(checkpoint.pack({**content, "state": {**content["state"], "version": 99}}))
    with pytest.raises(ValueError, match="the state has version 99; this library reads versions 3 and 4"):
        DiffusionUpsampler.load(path)


def test_refuses_what_is_no_upsampler(tmp_path):
    (tmp_path / "junk").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not an upsampler that this library saved"):
        DiffusionUpsampler.load(tmp_path / "junk")


def test_refuses_a_state_of_another_version():
    upsampler = fitted()
    with pytest.raises(ValueError, match="the state has version 0"):
        upsampler.load_state_dict({**upsampler.state_dict(), "version": 0})


# -- bad input -------------------------------------------------------------------------------------------------------


def test_errors():
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    with pytest.raises(RuntimeError, match="not been fitted yet"):
        upsampler.sample(1)
    with pytest.raises(ValueError, match="transitions has no rows"):
        upsampler.fit(gaussian(0))
    with pytest.raises(ValueError, match=r"reward has dtype torch.float64, but the spec wants torch.float32"):
        upsampler.fit(replace(gaussian(10), reward=torch.zeros(10, dtype=torch.float64)))
    upsampler.fit(gaussian(200))
    with pytest.raises(ValueError, match="num_samples is -1"):
        upsampler.sample(-1)
    with pytest.raises(ValueError, match="unknown preset 'fast'; known presets: auto, cpu, gpu, paper-online"):
        DiffusionUpsampler(SPEC, "fast")
    with pytest.raises(ValueError, match="the device 'cuda:77' cannot be used here"):
        DiffusionUpsampler(SPEC, TINY, "cuda:77")
    with pytest.raises(TypeError, match="wanted the name of a preset, an UpsamplerConfig or a factory"):
        DiffusionUpsampler(SPEC, 3)


def test_a_device_without_float64_is_refused():
    if not torch.backends.mps.is_available():
        pytest.skip("needs Apple's GPU")
    with pytest.raises(ValueError, match="device is 'mps', which has no float64"):
        DiffusionUpsampler(SPEC, TINY, "mps")


def test_make_upsampler_errors():
    arguments = {"device": "cpu", "seed": 0, "progress_bar": False}
    cpu = torch.device("cpu")
    with pytest.raises(TypeError, match="upsampler is a live DiffusionUpsampler; pass its configuration"):
        resolve_factory(DiffusionUpsampler(SPEC, TINY, "cpu"), cpu)
    with pytest.raises(TypeError, match="which has no config, fit, sample, state_dict, load_state_dict"):
        make_upsampler(lambda spec, **_: 3, SPEC, **arguments)
    with pytest.raises(TypeError, match="wanted the name of a preset"):
        resolve_factory(None, cpu)


# -- a real environment ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5"])
def test_terminals_agree_with_the_environments_rule(env_id):
    env = gym.make(env_id)
    env.action_space.seed(0)
    rows, (observation, _) = [], env.reset(seed=0)
    for _ in range(5_000):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, np.float32(reward), following, terminated))
        observation = env.reset()[0] if terminated or truncated else following
    real = Transitions(*(torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)))
    preset = resolve_config("cpu", torch.device("cpu"))
    config = replace(preset, network=NetworkConfig(width=128, depth=3, embedding_dim=64), train_steps=1_000)
    upsampler = DiffusionUpsampler(TransitionSpec.from_spaces(env.observation_space, env.action_space), config, "cpu")
    upsampler.fit(real)
    synthetic = upsampler.sample(10_000)

    height, angle = synthetic.next_observation[:, 0], synthetic.next_observation[:, 1]
    rule = ~((height > 0.7) & (angle.abs() < 0.2)) if env_id == "Hopper-v5" else ~((height > 0.8) & (angle.abs() < 1.0))
    flag, rate = synthetic.terminated, real.terminated.double().mean().item()
    assert flag.double().mean().item() == pytest.approx(rate, abs=3 * (rate * (1 - rate) / len(real)) ** 0.5)
    coin = torch.rand(len(flag), generator=torch.Generator().manual_seed(0)) < rate
    precision, recall = (((kind & rule).sum() / base.sum()).item() for kind, base in ((flag, flag), (flag, rule)))
    coin_precision, coin_recall = (((coin & rule).sum() / base.sum()).item() for base in (coin, rule))
    assert precision > 0.5
    assert recall > 0.5
    assert precision > 5 * coin_precision
    assert recall > 5 * coin_recall
