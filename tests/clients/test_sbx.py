"""sbx, SB3's algorithms in JAX: they draw one large batch for all updates of a step, and cut it."""

import numpy as np
import pytest
from clients_helpers import TINY, recorded
from synther_buffers.sb3 import SynthERBuffer, SynthERCallback

sbx = pytest.importorskip("sbx", reason="needs synther-buffers[clients]")

#: Algorithm, environment, gradient steps at each environment step, further arguments.
ALGORITHMS = {
    "SAC": ("Pendulum-v1", 10, {"policy_delay": 10}),
    "TQC": ("Pendulum-v1", 10, {}),
    "CrossQ": ("Pendulum-v1", 10, {}),
    "DQN": ("CartPole-v1", 10, {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "CrossQ" else ()) for name in ALGORITHMS]
)
def test_every_update_gets_a_fair_mix(name):
    env, updates, more = ALGORITHMS[name]
    model = getattr(sbx, name)(
        "MlpPolicy",
        env,
        buffer_size=500,
        learning_starts=90,
        batch_size=32,
        train_freq=1,
        gradient_steps=updates,
        policy_kwargs={"net_arch": [16]},
        replay_buffer_class=SynthERBuffer,
        replay_buffer_kwargs={"upsampler": TINY, "retrain_every": 100, "progress_bar": False},
        seed=1,
        **more,
    )
    batches = recorded(model)
    model.learn(125, callback=SynthERCallback())
    assert model.replay_buffer.synthetic.num_refreshes == 1
    mixed = [synthetic for _, synthetic in batches if synthetic is not None]
    assert len(mixed) > 20
    for synthetic in mixed:
        of_updates = synthetic.reshape(-1, 32).sum(1)
        assert len(of_updates) == updates
        assert ((of_updates >= 0.3 * 32) & (of_updates <= 0.7 * 32)).all()
    action, _ = model.predict(model.get_env().reset(), deterministic=True)
    assert np.isfinite(action).all()
    assert model._n_updates == updates * 35
