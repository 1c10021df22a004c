"""What SB3's users put around an algorithm: evaluations, checkpoints, resuming, environments in other processes."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="needs synther-buffers[clients]")

from clients_helpers import TINY, recorded
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback


def agent(env, **options):
    return SAC(
        "MlpPolicy",
        env,
        buffer_size=1_000,
        learning_starts=50,
        batch_size=32,
        policy_kwargs={"net_arch": [16]},
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={"upsampler": TINY, "retrain_every": 100, "progress_bar": False, **options},
        seed=1,
        device="cpu",
    )


@pytest.mark.parametrize(("vec_env", "n_envs"), [(DummyVecEnv, 1), (SubprocVecEnv, 2)])
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_evaluate_save_and_resume(tmp_path, vec_env, n_envs):
    envs = make_vec_env("Pendulum-v1", n_envs, seed=1, vec_env_cls=vec_env)
    try:
        every = 120 // n_envs
        evaluate = EvalCallback(
            make_vec_env("Pendulum-v1"), n_eval_episodes=1, eval_freq=every, log_path=str(tmp_path), verbose=0
        )
        save = CheckpointCallback(every, str(tmp_path), "agent", save_replay_buffer=True)
        model = agent(envs).learn(240, callback=[evaluate, save, SynthERCallback()])
        with np.load(tmp_path / "evaluations.npz") as evaluations:
            assert evaluations["timesteps"].tolist() == [120, 240]
        assert [report.num_observed for report in model.replay_buffer.synthetic.reports] == [100, 200]

        resumed = SAC.load(tmp_path / "agent_120_steps", env=envs)
        resumed.load_replay_buffer(tmp_path / "agent_replay_buffer_120_steps")
        replay = resumed.replay_buffer.synthetic
        # SB3 calls the callbacks before it stores the rows of the step.
        assert (replay.num_observed, replay.num_refreshes) == (120 - n_envs, 1)
        batches = recorded(resumed)
        resumed.learn(120, callback=SynthERCallback(), reset_num_timesteps=False)
        assert resumed.num_timesteps == 240
        # Synthetic rows from the first batch on, and the second refresh where it would have been.
        assert {int(synthetic.sum()) for _, synthetic in batches} == {16}
        assert [report.num_observed for report in replay.reports] == [100, 200]
    finally:
        envs.close()


def test_environments_and_refreshes_in_other_processes():
    envs = make_vec_env("Pendulum-v1", 2, seed=1, vec_env_cls=SubprocVecEnv)
    try:
        replay = agent(envs, refresh_on="process").learn(300).replay_buffer.synthetic
        assert [report.num_observed for report in replay.reports] == [100, 200]
        assert len(replay.rows) > 0
    finally:
        envs.close()
