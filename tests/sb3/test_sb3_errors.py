"""What is refused, in what words; and what goes on when a refresh fails."""

import importlib
import logging
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_helpers import (
    TINY,
    Bootstrap,
    CounterEnv,
    Marked,
    RandomEnv,
    assert_same_rows,
    box,
    count_into,
    kwargs_for,
    make_buffer,
    num_marked,
    parameters,
    record_batches,
    small,
    vec,
)
from stable_baselines3 import DQN, SAC, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from synther_buffers.sb3 import SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer
from synther_buffers.sb3.mixing import SynthERMixin
from toys import fails_at

DICT = spaces.Dict({"position": box(2), "mode": spaces.Discrete(3)})
IMAGE = box(36, 36, 3, low=0, high=255, dtype=np.uint8)


# -- the wrong buffer for the job ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "policy", "space", "message"),
    [
        (SynthERBuffer, "MultiInputPolicy", DICT, "SynthERBuffer does not take Dict observations.*SynthERDictBuffer"),
        (SynthERNStepBuffer, "MultiInputPolicy", DICT, "SynthERNStepBuffer does not take Dict observations.*no n-step"),
        (SynthERDictBuffer, "MlpPolicy", box(2), "SynthERDictBuffer wants Dict observations.*SynthERBuffer"),
    ],
)
def test_the_class_must_fit_the_observations(cls, policy, space, message):
    with pytest.raises(TypeError, match=message):
        SAC(policy, vec(RandomEnv, space, box(1)), **kwargs_for(cls))


def test_n_steps_need_the_n_step_class():
    with pytest.raises(TypeError, match=r"stores one-step transitions; for n_steps use .*SynthERNStepBuffer"):
        SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, n_steps=3, gamma=0.9))


@pytest.mark.parametrize("space", [IMAGE, spaces.Dict({"camera": IMAGE, "position": box(2)})], ids=["image", "dict"])
def test_images_are_refused(space):
    cls = SynthERDictBuffer if isinstance(space, spaces.Dict) else SynthERBuffer
    with pytest.raises(ValueError, match=r"is an image .* Encode images first"):
        make_buffer(cls, observation_space=space)


def test_a_key_with_a_dot_is_refused():
    with pytest.raises(ValueError, match=r"the key 'arm\.left' contains '\.'"):
        make_buffer(SynthERDictBuffer, observation_space=spaces.Dict({"arm.left": box(2)}))


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer])
def test_memory_optimisation_is_refused(cls, handle_timeout_termination):
    space = DICT if cls is SynthERDictBuffer else None
    with pytest.raises(ValueError, match=r"optimize_memory_usage=True is not supported.*Leave it False"):
        make_buffer(
            cls,
            observation_space=space,
            optimize_memory_usage=True,
            handle_timeout_termination=handle_timeout_termination,
        )


def test_memory_optimisation_is_refused_through_an_algorithm_and_by_position():
    with pytest.raises(ValueError, match="optimize_memory_usage=True is not supported"):
        SAC("MlpPolicy", "Pendulum-v1", optimize_memory_usage=True, **kwargs_for(SynthERBuffer))
    with pytest.raises(ValueError, match="optimize_memory_usage=True is not supported"):
        SynthERBuffer(400, box(1), box(1), "cpu", 1, True, False, retrain_every=120)


class HindsightBuffer(SynthERMixin, HerReplayBuffer):
    """What a user might try."""


def test_hindsight_replay_is_refused():
    env = BitFlippingEnv(n_bits=4, continuous=True)
    hindsight = {"n_sampled_goal": 4, "goal_selection_strategy": "future"}
    with pytest.raises(TypeError, match="HindsightBuffer does not support hindsight experience replay"):
        SAC("MultiInputPolicy", env, **kwargs_for(HindsightBuffer))
    with pytest.raises(TypeError, match="SynthERDictBuffer does not support hindsight experience replay"):
        SAC("MultiInputPolicy", env, **kwargs_for(SynthERDictBuffer, **hindsight))


def test_a_ring_smaller_than_the_refresh_interval_is_refused():
    with pytest.raises(ValueError, match=r"retrain_every=120 is more than buffer_size=100: .* Lower retrain_every"):
        count_into(make_buffer(SynthERBuffer, 100), 0, 1)
    # 130 // 4 = 32 slots of 4 rows: 128.
    assert make_buffer(SynthERBuffer, 130, n_envs=4).buffer_size == 32
    with pytest.raises(ValueError, match="retrain_every=129 is more than the 128 rows that buffer_size=130 holds"):
        count_into(make_buffer(SynthERBuffer, 130, n_envs=4, retrain_every=129), 0, 1)
    # Neither is 10,000 a multiple of three, nor does anybody know of the other 9,999.
    with pytest.raises(ValueError, match="is more than the 9999 rows that buffer_size=10000 holds"):
        count_into(make_buffer(SynthERBuffer, 10_000, n_envs=3, retrain_every=10_000), 0, 1)


@pytest.mark.parametrize(
    ("cls", "policy", "space"),
    [
        (SynthERBuffer, "MlpPolicy", box(2)),
        (SynthERDictBuffer, "MultiInputPolicy", DICT),
        (SynthERNStepBuffer, "MlpPolicy", box(2)),
    ],
)
def test_an_agent_that_is_loaded_to_act_needs_no_room_for_rows(tmp_path, cls, policy, space):
    """As rl-zoo3's enjoy loads it."""
    env = vec(RandomEnv, space, box(1))
    SAC(policy, env, **kwargs_for(cls)).save(tmp_path / "agent")
    loaded = SAC.load(tmp_path / "agent", buffer_size=1)
    action, _ = loaded.predict(env.reset())
    assert action.shape == (1, 1)
    loaded.set_env(env)
    with pytest.raises(ValueError, match="retrain_every=120 is more than buffer_size=1: "):
        loaded.learn(10)


# -- arguments out of range, as the user gives them ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"upsampler": "fast"}, ValueError, "unknown preset 'fast'; known presets: auto, cpu, gpu"),
        ({"upsampler": 3}, TypeError, "upsampler is 3; wanted the name of a preset, an UpsamplerConfig or a factory"),
        ({"upsampler_device": "gpu0"}, ValueError, "the device 'gpu0' cannot be used here.*try 'auto' or 'cpu'"),
        ({"synthetic_fraction": 1.5}, ValueError, r"synthetic_fraction is 1\.5; it must lie between 0"),
        ({"synthetic_fraction": -0.1}, ValueError, r"synthetic_fraction is -0\.1; it must lie between 0"),
        ({"synthetic_fraction": "half"}, TypeError, "synthetic_fraction is 'half' .*wanted a number from 0 to 1"),
        ({"retrain_every": 0}, ValueError, "retrain_every is 0; it must be at least 1"),
        ({"retrain_every": 1e3}, TypeError, r"retrain_every is 1000\.0 \(float\); wanted a whole number"),
        ({"start_after": -5}, ValueError, "start_after is -5; it must be at least 1"),
        ({"num_synthetic": 0}, ValueError, "num_synthetic is 0; it must be at least 1"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0"),
        ({"retrain_evry": 100}, TypeError, "'retrain_evry'. Did you mean 'retrain_every'"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        SAC("MlpPolicy", "Pendulum-v1", **kwargs_for(SynthERBuffer, **kwargs))


def test_a_live_upsampler_is_refused():
    live = Marked(None, device="cpu", seed=0, progress_bar=False)
    with pytest.raises(TypeError, match="upsampler is a live Marked; pass its configuration, or a factory"):
        make_buffer(SynthERBuffer, upsampler=live)


def test_without_stable_baselines3_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "synther_buffers.sb3")
    with pytest.raises(ImportError, match=r'pip install "synther-buffers\[sb3\]"'):
        importlib.import_module("synther_buffers.sb3")


@pytest.mark.parametrize(("made_for", "given"), [(4, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("cls", [SynthERBuffer, SynthERDictBuffer, SynthERNStepBuffer])
def test_rows_of_another_number_of_environments(tmp_path, cls, made_for, given):
    """A buffer that was loaded into a model with other environments than it was saved with."""
    space, policy = (DICT, "MultiInputPolicy") if cls is SynthERDictBuffer else (box(2), "MlpPolicy")
    first = SAC(policy, vec(RandomEnv, space, box(1), n_envs=made_for), **kwargs_for(cls))
    first.learn(12)
    first.save_replay_buffer(tmp_path / "buffer")
    second = SAC(policy, vec(RandomEnv, space, box(1), n_envs=given), **kwargs_for(cls))
    second.load_replay_buffer(tmp_path / "buffer")
    message = rf"{given} row\(s\) came in, but this buffer was made for n_envs={made_for}: .*n_envs={made_for}\)"
    with pytest.raises(ValueError, match=message):
        second.learn(12)
    assert second.replay_buffer.size() == 12 // made_for


# -- a refresh that fails ------------------------------------------------------------------------------------------


def test_after_a_failed_refresh_the_last_synthetic_rows_stay_and_learning_goes_on(log):
    model = SAC(
        "MlpPolicy", CounterEnv(), **kwargs_for(SynthERBuffer, upsampler=fails_at(2, Marked, FloatingPointError))
    )
    batches = record_batches(model)
    synthetic = model.replay_buffer.synthetic
    model.learn(200)
    first, before = synthetic.rows, parameters(model)
    with log.at_level(logging.WARNING):
        model.learn(100, reset_num_timesteps=False)
    errors = [record for record in log.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == [
        "Synthetic refresh at 240 real transitions failed; the last synthetic set stays in service. "
        "Learning goes on, next attempt at 360. (FloatingPointError('planted failure'))"
    ]
    assert "planted failure" in str(errors[0].exc_info[1])
    assert synthetic.rows is first
    assert num_marked(batches[-1]) == 16
    assert not torch.equal(parameters(model), before)

    model.learn(100, reset_num_timesteps=False)
    assert [report.num_observed for report in synthetic.reports] == [120, 360]
    assert synthetic.rows is not first


class NeverFits(Bootstrap):
    """An upsampler that never works."""

    def fit(self, transitions, *, held_out=None):
        raise MemoryError("no memory")


def test_if_the_first_refresh_fails_batches_stay_real(log):
    model = DQN("MlpPolicy", "CartPole-v1", **kwargs_for(SynthERBuffer, upsampler=NeverFits))
    batches = record_batches(model)
    model.learn(300)
    messages = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    assert len(messages) == 2
    assert "batches stay all real" in messages[0]
    assert all((batch.rewards == 1).all() for batch in batches)
    assert torch.isfinite(parameters(model)).all()


def test_rows_that_are_not_finite_are_left_out(log):
    buffer = make_buffer(SynthERBuffer, upsampler=Bootstrap, retrain_every=200)
    count_into(buffer, 0, 200)
    buffer.rewards[50] = np.nan
    buffer.sample(8)
    assert buffer.synthetic.reports[0].num_dropped == 1
    assert torch.isfinite(buffer.synthetic.rows.reward).all()
    assert "1 real rows have NaN or infinity in reward; such rows are not learned." in log.text


def test_the_diffusion_model_fails_as_gracefully_as_any(log):
    buffer = make_buffer(SynthERBuffer, upsampler=TINY)
    count_into(buffer, 0, 130)
    buffer.sample(8)
    rows = buffer.synthetic.rows
    saved = {name: tensor.clone() for name, tensor in rows.flat().items()}
    # An action that no upsampler can have been given: of a dtype that the spec does not know.
    buffer.actions = buffer.actions.astype(np.float64)
    count_into(buffer, 130, 250)
    with log.at_level(logging.ERROR):
        buffer.synthetic.refresh(buffer.real_transitions(), buffer.row_order())
    assert "action has dtype torch.float64, but the spec wants torch.float32" in log.text
    assert buffer.synthetic.rows is rows
    assert_same_rows(rows, type(rows).from_flat(saved))


def test_a_plain_buffer_says_nothing(log):
    SAC("MlpPolicy", "Pendulum-v1", **small(buffer_size=500)).learn(60)
    assert "synthetic" not in log.text
