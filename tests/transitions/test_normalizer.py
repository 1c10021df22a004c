"""Normalisation has no units of its own, and drift counts all that a fresh fit would do otherwise."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from codec_helpers import box, decode, noisy, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from synther_buffers.transitions import layout
from synther_buffers.transitions.codec import Codec
from synther_buffers.transitions.special_columns import HEAVY_TAIL

SPEC = box(1, np.float64)


def reward_rows(value: np.ndarray):
    return rows_of(SPEC, len(value), reward=value)


@settings(max_examples=40, deadline=None)
@given(
    power=st.integers(-40, 40),
    shape=st.sampled_from(["normal", "clipped", "cauchy", "sentinel", "few values", "constant"]),
    change=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_a_column_in_other_units_is_decoded_in_other_units(power: int, shape: str, change: bool, seed: int) -> None:
    """Units of a power of two change nothing but the exponents: 2 ** -40 is about 1e-12."""
    rng = np.random.default_rng(seed)
    value = {
        "normal": lambda: rng.normal(3.0, 2.0, (400, 2)),
        "clipped": lambda: np.clip(rng.normal(size=(400, 2)), -1.0, 1.0),
        "cauchy": lambda: rng.standard_cauchy((400, 2)),
        "sentinel": lambda: np.where(rng.random((400, 2)) < 0.1, 999.0, rng.random((400, 2))),
        "few values": lambda: rng.choice([-1.0, 0.0, 0.25], (400, 2)),
        "constant": lambda: np.full((400, 2), 0.3),
    }[shape]()
    found = []
    for factor in (1.0, 2.0**power):
        scaled = factor * value
        rows = rows_of(SPEC, 400, seed, observation=scaled[:, 0], next_observation=scaled[:, 1])
        codec = Codec.fit(SPEC, rows, next_observation_change=change)
        assert codec.drift(rows) == 0.0
        out = decode(codec, noisy(codec.encode(rows), 0.3, seed))
        found.append(torch.cat([out.observation, out.next_observation], dim=1) / factor)
    assert torch.equal(found[0], found[1])


class TestRounding:
    @pytest.mark.parametrize("start", [0.0, 7.3, 1_000.0])
    @pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
    def test_the_step_of_a_float32_clock_is_constant(self, start: float, unit: float) -> None:
        clock = (unit * (start + 0.02 * np.arange(2_001))).astype(np.float32)
        rows = rows_of(box(1), 2_000, observation=clock[:-1], next_observation=clock[1:])
        assert len((rows.next_observation - rows.observation).unique()) > 1
        codec = Codec.fit(box(1), rows)
        assert float(codec.normalizer.scale[3]) == 0.0
        assert codec.drift(rows) == 0.0
        assert float(codec.normalizer.mean[3]) == pytest.approx(0.02 * unit, rel=0.05)

    def test_a_small_change_that_is_no_rounding_stays(self) -> None:
        state = np.random.default_rng(0).normal(size=2_000)
        change = 1e-5 * np.random.default_rng(1).normal(size=2_000)  # eighty times the rounding at 1
        rows = rows_of(box(1), 2_000, observation=state, next_observation=state + change)
        assert float(Codec.fit(box(1), rows).normalizer.scale[3]) > 0.0


class TestExtremes:
    @pytest.mark.parametrize("extreme", [[-1e5], [1e6], [1e25], [-1e3] * 7, [-1e4, 2e6]], ids=str)
    def test_single_ones_leave_the_other_rows_their_scale(self, extreme: list[float]) -> None:
        value = np.random.default_rng(0).normal(3.0, 0.5, 1_000)
        value[: len(extreme)] = extreme
        rows = reward_rows(value)
        codec = Codec.fit(SPEC, rows)
        assert codec.clusters == []
        assert bool(codec.normalizer.heavy[2])
        column = codec.encode(rows)[:, 2]
        assert float(column.abs().max()) <= HEAVY_TAIL * (1 + 1e-6)
        ordinary = column[len(extreme) :]
        assert 0.1 < float(ordinary.std()) < 1.0  # at 1e25, otherwise above 0.4
        assert float(ordinary.mean()) == pytest.approx(0.0, abs=0.1)
        assert codec.drift(rows) == 0.0
        out = decode(codec, codec.encode(rows))
        torch.testing.assert_close(out.reward, rows.reward, rtol=1e-5, atol=1e-5)

    def test_of_many_rows_they_are_found_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        value = np.random.default_rng(0).normal(3.0, 0.5, 50_000)
        value[777] = 1e6
        codec = Codec.fit(SPEC, reward_rows(value))
        column = codec.encode(reward_rows(value))[:, 2]
        assert float(np.delete(column.numpy(), 777).std()) > 0.4
        monkeypatch.setattr(layout, "CHUNK_ELEMENTS", 10_000)
        by_parts = Codec.fit(SPEC, reward_rows(value)).normalizer
        assert by_parts.scale[2] == codec.normalizer.scale[2]

    def test_beside_a_point_mass(self) -> None:
        """The value that stands for the point mass lies among the ordinary ones."""
        value = np.random.default_rng(0).normal(3.0, 0.5, 2_000)
        value[:600], value[600] = -77.0, 1e6
        codec = Codec.fit(SPEC, reward_rows(value))
        (mass,) = codec.normalizer.structure.masses
        assert mass.value == -77.0
        assert mass.fill == pytest.approx(3.0, abs=0.1)
        assert float(codec.encode(reward_rows(value))[601:, 2].std()) > 0.4

    @pytest.mark.parametrize("share", [0.0095, 0.0105, 0.0148, 0.016])
    def test_as_many_of_them_are_no_drift(self, share: float) -> None:
        """A percent is where they begin to count for the scale, at 1.5 % the column is no longer heavy-tailed."""
        rng = np.random.default_rng(0)

        def rows():
            far = rng.random(20_000) < share
            return reward_rows(np.where(far, rng.uniform(300.0, 600.0, 20_000), rng.normal(size=20_000)))

        codec = Codec.fit(SPEC, rows())
        assert max(codec.drift(rows()) for _ in range(4)) < 0.2

    def test_a_scale_of_all_rows_is_no_drift(self) -> None:
        """As older versions measured it."""
        value = np.random.default_rng(0).normal(3.0, 0.5, 1_000)
        value[0] = 1e4
        codec = Codec.fit(SPEC, reward_rows(value))
        now = codec.normalizer
        mean, scale, spread = now.mean.clone(), now.scale.clone(), now.spread.clone()
        mean[2], scale[2] = value.mean(), value.std()
        compressed = np.arcsinh((value - value.mean()) / value.std())
        spread[2] = max(np.sqrt(np.square(compressed).mean()), np.abs(compressed).max() / HEAVY_TAIL)
        older = dataclasses.replace(codec, normalizer=dataclasses.replace(now, mean=mean, scale=scale, spread=spread))
        assert older.drift(reward_rows(value)) == pytest.approx(0.0, abs=1e-9)

    def test_moderate_tails_keep_about_unit_scale(self) -> None:
        value = np.random.default_rng(0).standard_t(3, 10_000)
        codec = Codec.fit(SPEC, reward_rows(value))
        assert bool(codec.normalizer.heavy[2])
        column = codec.encode(reward_rows(value))[:, 2]
        assert float(column.std()) == pytest.approx(1.0, abs=0.02)
        low, high = np.quantile(column.numpy(), [0.16, 0.84])
        assert (high - low) / 2 == pytest.approx(1.0, abs=0.2)

    @pytest.mark.parametrize("share", [0.03, 0.005])
    @pytest.mark.parametrize("one_sided", [False, True])
    def test_rare_values_beside_a_constant_are_no_extremes(self, share: float, one_sided: bool) -> None:
        """A contact force that is nearly always 0: the scale is that of all rows, not of the zeros."""
        rng = np.random.default_rng(0)
        value = np.where(rng.random(10_000) < share, rng.normal(size=10_000), 0.0)
        value = np.abs(value) if one_sided else value
        codec = Codec.fit(SPEC, reward_rows(value))
        assert bool(codec.normalizer.heavy[2])
        assert float(codec.normalizer.scale[2]) == pytest.approx(value.std(), rel=0.1)

    def test_what_varies_by_rounding_only_keeps_the_scale_of_all_rows(self) -> None:
        """The step of a clock that starts again now and then."""
        clock = (0.02 * (np.arange(2_001) % 400)).astype(np.float32)
        rows = rows_of(box(1), 2_000, observation=clock[:-1], next_observation=clock[1:])
        codec = Codec.fit(box(1), rows)
        assert bool(codec.normalizer.heavy[3])
        assert float(codec.normalizer.scale[3]) > 0.1


class TestDrift:
    def test_counts_a_single_extreme_that_a_fresh_fit_would_compress(self) -> None:
        value = np.random.default_rng(0).normal(size=50_000)
        codec = Codec.fit(SPEC, reward_rows(value))
        value[777] = 300.0
        rows = reward_rows(value)
        assert bool(Codec.fit(SPEC, rows).normalizer.heavy[2])
        assert codec.drift(rows) > 1.0

    def test_allows_a_little_beyond_what_was_seen(self) -> None:
        value = np.random.default_rng(0).normal(size=50_000)
        codec = Codec.fit(SPEC, reward_rows(value))
        value[777] = 10.0
        assert codec.drift(reward_rows(value)) == pytest.approx(math.log(10.0 / 8.0, 3.0), abs=0.01)

    def test_a_compressed_column_may_grow_further(self) -> None:
        value = np.random.default_rng(0).standard_cauchy(50_000)
        codec = Codec.fit(SPEC, reward_rows(value))
        more = np.append(value[1:], 1.2 * np.abs(value).max())
        assert codec.drift(reward_rows(more)) < 1.0


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1e200, r"values from .* to 1e\+200"),
        (-1e300, r"values from -1e\+300 to"),
        (math.inf, "values from .* to inf"),
        (math.nan, "NaN among its values"),
    ],
)
def test_values_that_cannot_be_squared_are_named(value: float, found: str) -> None:
    rows = rows_of(box(3, np.float64), 100)
    rows.next_observation[7, 1] = value
    with pytest.raises(ValueError, match=rf"next_observation\[1\] has {found}.*Rescale it"):
        Codec.fit(box(3, np.float64), rows)


def test_values_just_within_are_fine() -> None:
    rows = rows_of(SPEC, 100)
    rows.observation *= 1e148
    codec = Codec.fit(SPEC, rows)
    torch.testing.assert_close(decode(codec, codec.encode(rows)).observation, rows.observation, atol=1e143, rtol=0)
