import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from synther_buffers.sb3 import SynthERBuffer
from toys import SPEC, equal, gaussian, global_state, walk

from synther_buffers import SyntheticReplay, Transitions, TransitionSpec, Upsampler
from synther_buffers.upsampling.augmentation import (
    AUGMENTATIONS,
    AmplitudeScaling,
    Bootstrap,
    DynamicsNoise,
    GaussianNoise,
)

ALL = pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def rows(num_rows: int = 1_000) -> Transitions:
    """Row i has reward i, so that a drawn row tells where it is from."""
    out = gaussian(num_rows)
    out.reward = torch.arange(num_rows).float()
    return out


def fitted(augmentation, real: Transitions, spec: TransitionSpec = SPEC, **kwargs) -> Bootstrap:
    upsampler = augmentation(spec, device="cpu", **kwargs)
    upsampler.fit(real)
    return upsampler


def source(real: Transitions, drawn: Transitions) -> Transitions:
    return real[drawn.reward.long()]


class TestBootstrap:
    def test_draws_real_rows_bit_for_bit(self) -> None:
        real = rows()
        drawn = fitted(Bootstrap, real).sample(5_000)
        assert equal(drawn, source(real, drawn))

    def test_draws_uniformly_with_replacement(self) -> None:
        drawn = fitted(Bootstrap, rows(10)).sample(10_000)
        counts = torch.bincount(drawn.reward.long(), minlength=10)
        # 1,000 each, with a standard deviation of sqrt(10,000 * 0.1 * 0.9) = 30.
        assert (counts - 1_000).abs().max() < 5 * 30

    def test_keeps_its_rows_when_the_buffer_overwrites_them(self) -> None:
        real = rows(50)
        kept = real[torch.arange(50)]
        upsampler = fitted(Bootstrap, real)
        for tensor in real.flat().values():
            tensor.zero_()
        drawn = upsampler.sample(200)
        assert equal(drawn, source(kept, drawn))

    def test_what_is_done_to_a_sample_reaches_no_other(self) -> None:
        real = rows(50)
        upsampler = fitted(Bootstrap, real)
        upsampler.sample(200).observation.fill_(7.0)
        drawn = upsampler.sample(200)
        assert equal(drawn, source(real, drawn))


class TestGaussianNoise:
    def test_adds_noise_of_the_given_share_of_each_standard_deviation(self) -> None:
        real = rows()
        real.observation = real.observation * torch.tensor([1.0, 100.0], dtype=torch.float64)
        drawn = fitted(GaussianNoise, real, scale=0.2).sample(20_000)
        noise = drawn.observation - source(real, drawn).observation
        std = real.observation.std(0, correction=0)
        assert (noise.std(0) / std).tolist() == pytest.approx([0.2, 0.2], rel=0.03)
        assert (noise.mean(0) / std).tolist() == pytest.approx([0.0, 0.0], abs=0.01)

    def test_the_next_observation_gets_noise_of_its_own_in_the_same_units(self) -> None:
        real = rows()
        real.next_observation = real.next_observation * 1_000  # its own deviation must not matter
        drawn = fitted(GaussianNoise, real, scale=0.2).sample(20_000)
        before = (drawn.observation - source(real, drawn).observation)[:, 0]
        after = (drawn.next_observation - source(real, drawn).next_observation)[:, 0]
        assert float(after.std()) == pytest.approx(float(before.std()), rel=0.03)
        assert abs(float(torch.corrcoef(torch.stack((before, after)))[0, 1])) < 0.03

    def test_everything_else_is_the_real_row_s(self) -> None:
        real = rows()
        drawn = fitted(GaussianNoise, real).sample(500)
        for name in ("action", "reward", "terminated"):
            assert torch.equal(getattr(drawn, name), getattr(source(real, drawn), name))

    def test_without_noise_it_is_the_bootstrap(self) -> None:
        real = rows()
        assert equal(fitted(GaussianNoise, real, scale=0).sample(100), fitted(Bootstrap, real).sample(100))


class TestDynamicsNoise:
    def test_moves_the_next_observation_only(self) -> None:
        real = rows()
        drawn = fitted(DynamicsNoise, real, scale=0.3).sample(20_000)
        noise = drawn.next_observation - source(real, drawn).next_observation
        assert (noise.std(0) / real.observation.std(0)).tolist() == pytest.approx([0.3, 0.3], rel=0.03)
        drawn.next_observation = source(real, drawn).next_observation
        assert equal(drawn, source(real, drawn))


class TestAmplitudeScaling:
    def test_one_factor_a_row_for_the_observation_and_the_next(self) -> None:
        real = rows()
        drawn = fitted(AmplitudeScaling, real, low=0.5, high=2.0).sample(2_000)
        origin = source(real, drawn)
        factors = torch.cat(
            (drawn.observation / origin.observation, drawn.next_observation / origin.next_observation), dim=1
        )
        assert torch.allclose(factors, factors[:, :1].expand(-1, 4))
        # Uniform on [0.5, 2]: mean 1.25, standard deviation 1.5 / sqrt(12).
        factor = factors[:, 0]
        assert 0.5 <= float(factor.min()) < 0.51
        assert 1.99 < float(factor.max()) <= 2.0
        assert float(factor.mean()) == pytest.approx(1.25, abs=0.03)
        assert float(factor.std()) == pytest.approx(1.5 / math.sqrt(12), rel=0.05)

    def test_everything_else_is_the_real_row_s(self) -> None:
        real = rows()
        drawn = fitted(AmplitudeScaling, real).sample(500)
        origin = source(real, drawn)
        drawn.observation, drawn.next_observation = origin.observation, origin.next_observation
        assert equal(drawn, origin)


MIXED = TransitionSpec.from_spaces(
    spaces.Dict(
        {
            "vector": spaces.Box(np.array([0.0, -9, -9], np.float32), np.array([1.0, 9, 9], np.float32)),
            "pixels": spaces.Box(0, 255, (2,), np.uint8),
            "mode": spaces.Discrete(3, start=1),
            "lamps": spaces.MultiBinary(2),
        }
    ),
    spaces.Discrete(4),
    discounts=(0.99, 0.9801),
)


def mixed(num_rows: int) -> Transitions:
    """A bounded column, a contact flag as a float, a constant; bytes up to both ends; discrete values."""
    rng = np.random.default_rng(0)
    discount = torch.tensor([0.99, 0.9801])[torch.as_tensor(rng.integers(0, 2, num_rows))]

    def observation() -> dict[str, torch.Tensor]:
        vector = np.stack((rng.random(num_rows), rng.integers(0, 2, num_rows), np.full(num_rows, 3.7)), axis=1)
        return {
            "vector": torch.as_tensor(vector, dtype=torch.float32),
            "pixels": torch.as_tensor(rng.integers(0, 256, (num_rows, 2)), dtype=torch.uint8),
            "mode": torch.as_tensor(rng.integers(1, 4, num_rows)),
            "lamps": torch.as_tensor(rng.integers(0, 2, (num_rows, 2)), dtype=torch.int8),
        }

    return Transitions(
        observation(),
        torch.as_tensor(rng.integers(0, 4, num_rows)),
        torch.arange(num_rows).float(),
        observation(),
        torch.as_tensor(rng.random(num_rows) < 0.1),
        discount,
    )


@ALL
class TestLegalRows:
    def test_bounds_dtypes_and_everything_discrete(self, augmentation) -> None:
        real = mixed(400)
        kwargs = {"scale": 2.0} if issubclass(augmentation, GaussianNoise) else {}
        drawn = fitted(augmentation, real, MIXED, **kwargs).sample(2_000)
        MIXED.check(drawn)
        origin = source(real, drawn).flat()
        for name, tensor in drawn.flat().items():
            if not name.endswith(("vector", "pixels")):
                assert torch.equal(tensor, origin[name]), name
        for name in ("observation.vector", "next_observation.vector"):
            vector = drawn.flat()[name]
            assert 0.0 <= float(vector[:, 0].min()) <= float(vector[:, 0].max()) <= 1.0
            assert torch.equal(vector[:, 1:], origin[name][:, 1:])  # the flag and the constant

    def test_bytes_saturate_instead_of_wrapping_around(self, augmentation) -> None:
        real = mixed(400)
        kwargs = {"scale": 0.2} if issubclass(augmentation, GaussianNoise) else {}
        # The fields that rows alone tell have no bounds.
        spec = TransitionSpec.infer(real)
        drawn = fitted(augmentation, real, spec, **kwargs).sample(2_000)
        before, after = source(real, drawn).flat(), drawn.flat()
        for name in ("observation.pixels", "next_observation.pixels"):
            # 0.2 standard deviations are 15: five of them; a factor adds at most a fifth of 255.
            assert (after[name].int() - before[name].int()).abs().max() < 80

    def test_extra_fields_are_the_real_row_s(self, augmentation) -> None:
        real = walk(100)
        real.reward = torch.arange(100).float()
        real.extra = {"weight": torch.arange(100.0)[:, None]}
        drawn = fitted(augmentation, real, TransitionSpec.infer(real)).sample(300)
        assert torch.equal(drawn.extra["weight"], source(real, drawn).extra["weight"])


@ALL
class TestProtocol:
    def test_is_an_upsampler(self, augmentation) -> None:
        assert isinstance(augmentation(SPEC, device="cpu", seed=3, progress_bar=True), Upsampler)

    def test_same_seed_same_rows_and_every_draw_and_fit_its_own(self, augmentation) -> None:
        real = rows()
        one, two, other = (fitted(augmentation, real, seed=seed) for seed in (1, 1, 2))
        first, second = one.sample(100), one.sample(100)
        assert equal(first, two.sample(100))
        assert not equal(first, second)
        assert not equal(first, other.sample(100))
        two.fit(real)
        assert not equal(first, two.sample(100))

    def test_leaves_the_global_streams_alone(self, augmentation) -> None:
        before = global_state()
        fitted(augmentation, rows()).sample(100)
        assert global_state() == before

    def test_a_restored_one_goes_on_where_it_stopped(self, augmentation) -> None:
        upsampler = fitted(augmentation, rows(), seed=5)
        upsampler.sample(10)
        restored = augmentation(SPEC, device="cpu", seed=5)
        restored.load_state_dict(pickle.loads(pickle.dumps(upsampler.state_dict())))
        pickled = pickle.loads(pickle.dumps(upsampler))
        wanted = upsampler.sample(100)
        assert equal(restored.sample(100), wanted)
        assert equal(pickled.sample(100), wanted)

    def test_an_unfitted_one_has_a_state_too(self, augmentation) -> None:
        restored = augmentation(SPEC, device="cpu")
        restored.load_state_dict(augmentation(SPEC, device="cpu").state_dict())
        with pytest.raises(RuntimeError, match="not been fitted"):
            restored.sample(1)

    def test_no_rows(self, augmentation) -> None:
        upsampler = augmentation(SPEC, device="cpu")
        with pytest.raises(ValueError, match="transitions has no rows"):
            upsampler.fit(walk(0))
        upsampler.fit(walk(1))
        assert len(upsampler.sample(0)) == 0
        assert len(upsampler.sample(3)) == 3

    def test_refuses_what_does_not_fit(self, augmentation) -> None:
        upsampler = augmentation(SPEC, device="cpu")
        with pytest.raises(ValueError, match="the spec wants"):
            upsampler.fit(mixed(10))
        with pytest.raises(ValueError, match="the spec wants"):
            upsampler.load_state_dict(fitted(augmentation, mixed(10), MIXED).state_dict())
        upsampler.fit(walk(10))
        with pytest.raises(ValueError, match="num_samples is -1"):
            upsampler.sample(-1)

    def test_serves_a_replay(self, augmentation) -> None:
        real = walk(300)
        replay = SyntheticReplay(
            None,
            upsampler=augmentation,
            upsampler_device="cpu",
            retrain_every=100,
            num_synthetic=500,
            progress_bar=False,
        )
        replay.observe_total(300)
        assert replay.refresh_due
        assert replay.refresh(real) is not None
        assert len(replay.rows) == 500
        again = pickle.loads(pickle.dumps(replay))
        assert equal(again.sample(50), replay.sample(50))


class TestFactories:
    def test_parameters_through_partial_in_a_framework_s_buffer(self) -> None:
        buffer = SynthERBuffer(
            1_000,
            spaces.Box(-1e6, 1e6, (2,)),
            spaces.Box(-1.0, 1.0, (1,)),
            device="cpu",
            upsampler=partial(GaussianNoise, scale=0.0),
            retrain_every=200,
            num_synthetic=300,
            progress_bar=False,
        )
        for index in range(200):
            buffer.add(np.full((1, 2), index), np.full((1, 2), index + 1), np.zeros((1, 1)), [1.0], [False], [{}])
        batch = buffer.sample(64)
        assert buffer.synthetic.num_refreshes == 1
        assert buffer.synthetic.split(64) == (32, 32)
        assert torch.equal(batch.next_observations, batch.observations + 1)

    @pytest.mark.parametrize(
        ("augmentation", "kwargs", "error", "message"),
        [
            (GaussianNoise, {"scale": -0.1}, ValueError, "scale is -0.1"),
            (GaussianNoise, {"scale": math.nan}, ValueError, "scale is nan"),
            (DynamicsNoise, {"scale": "much"}, TypeError, "scale is 'much'"),
            (DynamicsNoise, {"scale": True}, TypeError, "scale is True"),
            (AmplitudeScaling, {"low": 0.0}, ValueError, "low is 0.0 and high is 1.2"),
            (AmplitudeScaling, {"low": 1.2, "high": 0.8}, ValueError, "0 < low <= high"),
            (AmplitudeScaling, {"high": math.inf}, ValueError, "high is inf"),
        ],
    )
    def test_parameters_out_of_range(self, augmentation, kwargs, error, message) -> None:
        with pytest.raises(error, match=message):
            augmentation(SPEC, device="cpu", **kwargs)
