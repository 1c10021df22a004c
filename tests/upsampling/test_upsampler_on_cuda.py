"""The upsampler on a GPU: graphs change nothing, the same seed gives the same rows, models move to the CPU."""

from dataclasses import replace

import pytest
import torch
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import Condition, ConditioningConfig, DiffusionUpsampler
from synther_buffers.diffusion.cuda_graph import eager

pytestmark = pytest.mark.cuda
LONGER = replace(TINY, train_steps=200)


def drawn(num_rows=3_000):
    upsampler = DiffusionUpsampler(SPEC, LONGER, "cuda", seed=3)
    report = upsampler.fit(gaussian(1_000))
    return report.loss, upsampler.sample(num_rows)


def test_the_same_seed_gives_the_same_rows():
    assert equal(drawn()[1], drawn()[1])


def test_graphs_change_nothing_but_rounding():
    loss, rows = drawn()
    with eager():
        eager_loss, eager_rows = drawn()
    assert loss == pytest.approx(eager_loss, rel=1e-3)
    torch.testing.assert_close(rows.observation, eager_rows.observation, atol=2e-2, rtol=2e-2)


def test_conditions():
    config = replace(LONGER, conditioning=ConditioningConfig())
    upsampler = DiffusionUpsampler(SPEC, config, "cuda", seed=3)
    rows = gaussian(1_000)
    upsampler.fit(rows, relevance=rows.reward)
    condition = Condition(observation=rows.observation[:500], action=rows.action[:500], relevance=0.0)
    found = upsampler.sample(500, condition=condition)
    assert found.reward.device.type == "cuda"
    assert torch.equal(found.observation.cpu(), rows.observation[:500])
    assert torch.equal(found.action.cpu(), rows.action[:500])
    SPEC.check(found.to("cpu"))


def test_a_model_saved_on_the_gpu_draws_on_the_cpu(tmp_path):
    upsampler = DiffusionUpsampler(SPEC, LONGER, "cuda", seed=3)
    upsampler.fit(gaussian(1_000))
    upsampler.save(tmp_path / "model.safetensors")
    loaded = DiffusionUpsampler.load(tmp_path / "model.safetensors", device="cpu")
    rows = loaded.sample(3_000)
    assert rows.observation.device.type == "cpu"
    reference = gaussian(3_000, seed=1)
    assert rows.observation.std(0).tolist() == pytest.approx(reference.observation.std(0).tolist(), rel=0.25)
