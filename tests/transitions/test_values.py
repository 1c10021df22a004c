"""Constant norms, and how much work and memory thresholds and decoding take."""

import numpy as np
import pytest
import torch
from codec_helpers import box, decode, noisy, rows_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from synther_buffers.transitions import Transitions, layout
from synther_buffers.transitions.codec import Codec

SPEC = box(2)


def unit(rng: np.random.Generator, num_rows: int, width: int) -> np.ndarray:
    """Vectors uniform on the sphere."""
    value = rng.normal(size=(num_rows, width))
    return value / np.linalg.norm(value, axis=1, keepdims=True)


class TestNorms:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_unit_quaternion_between_others_comes_back_with_norm_1(self, dtype: type) -> None:
        rng = np.random.default_rng(0)
        spec = box(6, dtype)
        state, after = (
            np.concatenate([rng.normal(size=(2_000, 1)), unit(rng, 2_000, 4), rng.normal(size=(2_000, 1))], axis=1)
            for _ in range(2)
        )
        rows = rows_of(spec, 2_000, observation=state, next_observation=after)
        codec = Codec.fit(spec, rows)
        for name in ("observation", "next_observation"):
            ((start, stop, norm),) = codec.statistics[name].norms
            assert (start, stop) == (1, 5)
            assert norm == pytest.approx(1.0, abs=1e-6)
        out = decode(codec, noisy(codec.encode(rows), 0.5))
        for found in (out.observation, out.next_observation):
            off = (found[:, 1:5].norm(dim=1) - 1.0).abs()
            assert float(off.median()) < 1e-6
            assert float(off.quantile(0.99)) < 0.01
            assert (found[:, 1:5].amin(0) >= torch.as_tensor(state[:, 1:5].min()) - 1e-3).all()

    def test_sine_and_cosine_of_two_angles_times_a_radius(self) -> None:
        angle = np.random.default_rng(0).uniform(0, 2 * np.pi, (1_000, 2))
        value = np.stack(
            [
                3e-9 * np.sin(angle[:, 0]),
                3e-9 * np.cos(angle[:, 0]),
                5e9 * np.sin(angle[:, 1]),
                5e9 * np.cos(angle[:, 1]),
            ],
            axis=1,
        )
        rows = rows_of(box(4), 1_000, observation=value, next_observation=value)
        groups = Codec.fit(box(4), rows).statistics["observation"].norms
        assert [group[:2] for group in groups] == [(0, 2), (2, 4)]
        assert [group[2] for group in groups] == pytest.approx([3e-9, 5e9], rel=1e-5)

    def test_many_rows_at_the_largest_value_that_the_norm_allows(self) -> None:
        """A pendulum that is held upright: in float32 its cosine is 1 in every tenth row, its sine hardly ever 0."""
        angle = np.random.default_rng(0).uniform(-np.pi, np.pi, 1_000)
        angle[::10] *= 1e-5
        value = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        spec = box(2, np.float32)
        rows = rows_of(spec, 1_000, observation=value, next_observation=value)
        codec = Codec.fit(spec, rows)
        out = decode(codec, noisy(codec.encode(rows), 0.5))
        for found in (out.observation, out.next_observation):
            assert torch.isfinite(found).all()
            torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)), atol=0.02, rtol=0.0)
            assert float(found[:, 0].max()) <= 1.0

    @pytest.mark.parametrize(
        "draw",
        [
            lambda rng: rng.normal(size=(1_000, 4)),
            lambda rng: rng.choice([-1.0, 1.0], (1_000, 4)),
            lambda rng: np.tile([0.6, 0.8, 0.0, 1.0], (1_000, 1)),
            lambda rng: unit(rng, 1_000, 4) * (1.0 + 1e-3 * rng.normal(size=(1_000, 1))),
            lambda rng: np.eye(4)[rng.integers(0, 4, 1_000)],
        ],
        ids=["normal", "signs", "constant", "a thousandth off", "one-hot"],
    )
    def test_what_has_none(self, draw: object) -> None:
        value = draw(np.random.default_rng(0))
        rows = rows_of(box(4), 1_000, observation=value, next_observation=value)
        assert Codec.fit(box(4), rows).statistics["observation"].norms == ()


class TestRowsThatAllHaveThePointMass:
    """A model that has not learned an indicator may set it in every row; then no row shows the other values."""

    @staticmethod
    def codec(others: np.ndarray) -> tuple[Codec, Transitions]:
        value = np.zeros(8_000)
        value[: len(others)] = others
        rows = rows_of(SPEC, 8_000, reward=value)
        codec = Codec.fit(SPEC, rows)
        assert [mass.value for mass in codec.normalizer.structure.masses] == [0.0]
        return codec, rows

    @staticmethod
    def decoded(codec: Codec, rows: Transitions) -> Transitions:
        matrix = codec.encode(rows)
        surely = matrix.clone()
        surely[:, -1] = 0.95
        out = codec.spec.empty(len(matrix))
        codec.decode(matrix, out, codec.thresholds(surely))
        return out

    def test_few_values_are_cut_half_way(self) -> None:
        codec, rows = self.codec(np.tile([*range(-8, 0), *range(1, 9)], 15))
        assert len(codec.statistics["reward"].values[0][0]) == 16
        assert torch.equal(self.decoded(codec, rows).reward, rows.reward)

    def test_limits_are_not_restored(self) -> None:
        codec, rows = self.codec(np.clip(np.random.default_rng(0).normal(size=240), -1.0, 1.0))
        assert bool((codec.statistics["reward"].limits > 0).all())
        torch.testing.assert_close(self.decoded(codec, rows).reward, rows.reward, atol=1e-5, rtol=0.0)


class CountSorts(TorchFunctionMode):
    """Counts the values that are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("sort", "quantile", "kthvalue", "topk", "msort", "argsort"):
            self.values += args[0].numel()
        return func(*args, **(kwargs or {}))


class LargestFloat64(TorchDispatchMode):
    """Remembers the size of the largest tensor in float64 that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.values = max(self.values, out.numel())
        return out


class TestCost:
    def test_only_columns_with_limits_are_sorted_and_these_once(self) -> None:
        spec = box(20)
        value = np.random.default_rng(0).normal(size=(1_000, 20))
        rows = rows_of(spec, 1_000, observation=value, reward=np.clip(value[:, 0], -1.0, 1.0))
        codec = Codec.fit(spec, rows)
        matrix = codec.encode(rows)
        with CountSorts() as counts:
            codec.thresholds(matrix)
        assert counts.values == 1_000

    def test_memory_of_decoding_does_not_grow_with_the_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "CHUNK_ELEMENTS", 10_000)
        rows = rows_of(box(20), 5_000)
        codec = Codec.fit(box(20), rows)
        matrix = codec.encode(rows)
        thresholds, out = codec.thresholds(matrix), codec.spec.empty(5_000)
        with LargestFloat64() as largest:
            codec.decode(matrix, out, thresholds)
        assert 0 < largest.values <= 10_000
        torch.testing.assert_close(out.observation, rows.observation, atol=1e-5, rtol=0)
