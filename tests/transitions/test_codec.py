import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synther_buffers.transitions import Transitions, TransitionSpec
from synther_buffers.transitions.codec import Codec
from synther_buffers.transitions.special_columns import FEW_VALUES, HEAVY_TAIL
from synther_buffers.transitions.values import Thresholds

BOX = spaces.Box(-np.inf, np.inf, (1,))


def make_spec(
    observation: spaces.Space = BOX, action: spaces.Space = BOX, discounts: tuple[float, ...] = ()
) -> TransitionSpec:
    return TransitionSpec.from_spaces(observation, action, discounts=discounts)


def make_rows(spec: TransitionSpec, num_rows: int, seed: int = 0, **columns: object) -> Transitions:
    """Random legal rows of a spec; `columns` (``next_observation`` and so on) replaces what it names."""
    rng = np.random.default_rng(seed)
    rows = spec.empty(num_rows)
    for field in spec.fields:
        shape = (num_rows, field.size)
        if field.kind == "binary":
            value = rng.integers(0, 2, shape)
        elif field.kind == "categorical":
            value = rng.integers(field.start, np.add(field.start, field.num_categories), shape)
            if field.values:
                value = np.array(field.values)[value]
        else:
            value = np.clip(rng.normal(size=shape), field.low, field.high)
            if not field.torch_dtype.is_floating_point:
                value = rng.integers(np.maximum(field.low, -50), np.minimum(field.high, 50) + 1, shape)
        tensor = rows.flat()[field.name]
        tensor.copy_(torch.as_tensor(value).reshape(tensor.shape))
    for name, value in columns.items():
        tensor = rows.flat()[name]
        tensor.copy_(torch.as_tensor(value).reshape(tensor.shape))
    return rows


def fitted(rows: Transitions, spec: TransitionSpec, **options: bool) -> Codec:
    return Codec.fit(spec, rows, **options)


def decode(codec: Codec, matrix: Tensor, deciding: Tensor | None = None) -> Transitions:
    out = codec.spec.empty(len(matrix))
    codec.decode(matrix, out, codec.thresholds(matrix if deciding is None else deciding))
    return out


def there_and_back(rows: Transitions, spec: TransitionSpec, **options: bool) -> Transitions:
    codec = fitted(rows, spec, **options)
    return decode(codec, codec.encode(rows))


def shrunk(matrix: Tensor, factor: float, noise: float, seed: int = 0) -> Tensor:
    """What an unsure model answers: pulled to the mean of each column, and noisy."""
    mean = matrix.mean(0)
    generator = torch.Generator().manual_seed(seed)
    return mean + factor * (matrix - mean) + noise * torch.randn(matrix.shape, generator=generator)


class TestWidth:
    def test_by_hand(self) -> None:
        space = spaces.Dict(
            {
                "a": spaces.Box(0, 1, (2, 3)),
                "b": spaces.Discrete(4),
                "c": spaces.MultiBinary(5),
                "d": spaces.Box(0, 1, ()),
            }
        )
        spec = make_spec(space, spaces.MultiDiscrete([2, 3]), discounts=(0.9, 0.81, 0.729))
        # Twice 6 + 4 + 5 + 1 for the observations, 2 + 3 for the action, reward, terminated, three discounts.
        rows = make_rows(spec, 10)
        assert fitted(rows, spec).dim == 2 * 16 + 5 + 1 + 1 + 3
        assert fitted(rows, spec, model_terminals=False).dim == 2 * 16 + 5 + 1 + 3

    def test_depends_on_the_spec_alone_without_point_masses(self) -> None:
        spec = make_spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(3))
        one_valued = make_rows(
            spec, 50, observation=np.zeros((50, 3)), action=np.full(50, 2), next_observation=np.zeros((50, 3))
        )
        for rows in (make_rows(spec, 1), make_rows(spec, 50), one_valued):
            assert fitted(rows, spec).encode(rows).shape == (len(rows), 3 + 3 + 1 + 3 + 1)


CONTINUOUS = st.builds(
    lambda shape, dtype: spaces.Box(-1000, 1000, shape, dtype=np.dtype(dtype).type),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.sampled_from(["float32", "float64", "int16", "int64"]),
)
DISCRETE = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 4), st.integers(-3, 3)),
    st.just(spaces.MultiDiscrete([2, 1, 3], start=[0, 5, -1])),
    st.just(spaces.MultiDiscrete([[2, 2], [3, 4]])),
    st.just(spaces.MultiBinary(3)),
    st.just(spaces.MultiBinary((2, 2))),
)
SHAPES = {
    "normal": lambda rng, shape: rng.normal(3.0, 2.0, shape),
    "constant": lambda rng, shape: np.full(shape, rng.normal(scale=100.0)),
    "few values": lambda rng, shape: rng.choice([-1.0, 0.0, 0.1, 7.0], shape),
    "heavy tail": lambda rng, shape: rng.standard_cauchy(shape),
    "far from zero": lambda rng, shape: 900.0 + rng.normal(size=shape),
    "mostly zero": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.1),
}


@st.composite
def spec_and_rows(draw: st.DrawFn) -> tuple[TransitionSpec, Transitions]:
    leaf = st.one_of(CONTINUOUS, DISCRETE)
    observation = draw(
        st.one_of(
            leaf, st.builds(lambda a, b, c: spaces.Dict({"x": a, "y": spaces.Dict({"z": b, "w": c})}), leaf, leaf, leaf)
        )
    )
    discounts = draw(st.sampled_from([(), (0.99,), (0.99, 0.99**2, 0.99**3)]))
    spec = make_spec(observation, draw(leaf), discounts)
    seed = draw(st.integers(0, 2**32 - 1))
    rows = make_rows(spec, draw(st.integers(1, 60)), seed)
    rng = np.random.default_rng(seed)
    for field in spec.fields:
        if field.kind == "continuous":
            tensor = rows.flat()[field.name]
            value = SHAPES[draw(st.sampled_from(sorted(SHAPES)))](rng, tuple(tensor.shape))
            tensor.copy_(torch.as_tensor(np.clip(value, -1000, 1000)).to(tensor.dtype))
    return spec, rows


class TestRoundTrip:
    @settings(max_examples=120, deadline=None)
    @given(spec_and_rows(), st.booleans(), st.booleans(), st.booleans())
    def test_is_the_identity(
        self, both: tuple[TransitionSpec, Transitions], change: bool, normalize_reward: bool, model_terminals: bool
    ) -> None:
        spec, rows = both
        codec = fitted(
            rows,
            spec,
            next_observation_change=change,
            normalize_reward=normalize_reward,
            model_terminals=model_terminals,
        )
        matrix = codec.encode(rows)
        assert torch.isfinite(matrix).all()
        out = decode(codec, matrix)
        spec.check(out)
        wanted, found = rows.flat(), out.flat()
        for field in spec.fields:
            left, right = wanted[field.name], found[field.name]
            if field.name == "terminated":
                assert not right.any()
            elif field.kind != "continuous" or not field.torch_dtype.is_floating_point:
                assert torch.equal(left, right), field.name
            else:
                # The matrix is float32: relative to the spread of the column, not to the value. The next observation
                # is the decoded observation plus a change, so that it is rounded as that one is.
                related = [wanted[name] for name in {field.name, field.name.removeprefix("next_")}]
                spread = sum(float(value.max() - value.min()) for value in related)
                largest = max(float(value.abs().max()) for value in related)
                tolerance = 3e-6 * spread + 2 * torch.finfo(field.torch_dtype).eps * largest
                assert float((left - right).abs().max()) <= tolerance, field.name

    @pytest.mark.parametrize("change", [True, False])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_constant_columns_come_back_exactly(self, dtype: type, change: bool) -> None:
        spec = make_spec(spaces.Box(-np.inf, np.inf, (3,), dtype), spaces.Box(-1, 1, (1,)))
        constants = np.array([0.1, 1e7 / 3, -1e-12], dtype)
        nexts = np.array([0.1, 1e7 / 7, 1e-12], dtype)
        rows = make_rows(
            spec,
            40,
            observation=np.tile(constants, (40, 1)),
            next_observation=np.tile(nexts, (40, 1)),
            action=[0.3] * 40,
        )
        codec = fitted(rows, spec, next_observation_change=change)
        out = decode(codec, 3.0 * torch.randn(500, codec.dim, generator=torch.Generator().manual_seed(0)))
        assert (out.observation == torch.as_tensor(constants)).all()
        assert (out.next_observation == torch.as_tensor(nexts)).all()
        assert (out.action == torch.tensor(0.3)).all()

    def test_constant_observation_whose_successor_varies(self) -> None:
        rows = make_rows(make_spec(), 40, observation=[0.7] * 40)
        out = there_and_back(rows, make_spec())
        assert (out.observation == rows.observation).all()
        torch.testing.assert_close(out.next_observation, rows.next_observation)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_reward_that_is_always_zero(self, normalize: bool) -> None:
        rows = make_rows(make_spec(), 40, reward=[0.0] * 40)
        codec = fitted(rows, make_spec(), normalize_reward=normalize)
        assert (decode(codec, torch.randn(100, codec.dim)).reward == 0.0).all()

    @pytest.mark.parametrize("space", [spaces.Discrete(1), spaces.Discrete(5, start=3)])
    def test_one_valued_discrete_column(self, space: spaces.Discrete) -> None:
        spec = make_spec(action=space)
        rows = make_rows(spec, 40, action=[int(space.start)] * 40)
        assert (there_and_back(rows, spec).action == int(space.start)).all()

    def test_one_row(self) -> None:
        spec = make_spec(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(2))
        rows = make_rows(spec, 1)
        out = there_and_back(rows, spec)
        assert torch.equal(out.observation, rows.observation)
        assert torch.equal(out.next_observation, rows.next_observation)
        assert torch.equal(out.action, rows.action)

    def test_more_rows_than_a_chunk_of_statistics(self) -> None:
        num_rows = 70_000
        values = np.linspace(-1.0, 1.0, num_rows)
        rows = make_rows(make_spec(), num_rows, observation=values)
        codec = fitted(rows, make_spec())
        assert float(codec.normalizer.mean[0]) == pytest.approx(0.0, abs=1e-9)
        # A uniform distribution on [-1, 1] has variance 1 / 3.
        assert float(codec.normalizer.scale[0]) == pytest.approx(math.sqrt(1 / 3), rel=1e-4)
        torch.testing.assert_close(decode(codec, codec.encode(rows)).observation, rows.observation)

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "bool"])
    def test_every_dtype_of_a_box(self, dtype: str) -> None:
        spec = make_spec(spaces.Box(0, 1 if dtype == "bool" else 100, (2,), dtype=np.dtype(dtype).type))
        rows = make_rows(
            spec, 100, observation=np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 90, (100, 2))
        )
        out = there_and_back(rows, spec)
        assert out.observation.dtype == getattr(torch, dtype)
        assert torch.equal(out.observation, rows.observation)


class TestEncoding:
    def test_columns_by_hand(self) -> None:
        spec = make_spec(BOX, spaces.Discrete(3, start=1), discounts=(0.9, 0.81))
        rows = make_rows(
            spec,
            4,
            observation=[1.0, 3.0, 1.0, 3.0],
            action=[1, 2, 3, 1],
            reward=[5.0, 5.0, 9.0, 9.0],
            next_observation=[2.0, 6.0, 2.0, 6.0],
            terminated=[False, False, False, True],
            discount=[0.9, 0.9, 0.81, 0.9],
        )
        # Observation: mean 2, deviation 1; its change is 1 or 3; one-hot and flags in {-1, 1}.
        wanted = [
            # s   a           r   s' t   discount
            [-1, 1, -1, -1, -1, -1, -1, 1, -1],
            [1, -1, 1, -1, -1, 1, -1, 1, -1],
            [-1, -1, -1, 1, 1, -1, -1, -1, 1],
            [1, 1, -1, -1, 1, 1, 1, 1, -1],
        ]
        codec = fitted(rows, spec)
        torch.testing.assert_close(codec.encode(rows), torch.tensor(wanted, dtype=torch.float32))
        absolute = fitted(rows, spec, next_observation_change=False)
        # The next observation itself: mean 4, deviation 2.
        torch.testing.assert_close(absolute.encode(rows)[:, 5], torch.tensor([-1.0, 1.0, -1.0, 1.0]))

    def test_reward_is_left_alone_on_request(self) -> None:
        reward = np.random.default_rng(0).uniform(50.0, 60.0, 30).astype(np.float32)
        rows = make_rows(make_spec(), 30, reward=reward)
        codec = fitted(rows, make_spec(), normalize_reward=False)
        assert torch.equal(codec.encode(rows)[:, 2], torch.as_tensor(reward))
        assert fitted(rows, make_spec()).encode(rows)[:, 2].mean().abs() < 1e-5

    def test_statistics_are_float64(self) -> None:
        noise = np.random.default_rng(0).normal(size=50_000)
        spec = make_spec(spaces.Box(-np.inf, np.inf, (1,), np.float64))
        rows = make_rows(spec, 50_000, observation=1e6 + 1e-3 * noise)
        codec = fitted(rows, spec)
        assert float(codec.normalizer.mean[0]) - 1e6 == pytest.approx(1e-3 * noise.mean(), abs=1e-8)
        assert float(codec.normalizer.scale[0]) == pytest.approx(1e-3 * noise.std(), rel=1e-5)
        out = decode(codec, codec.encode(rows))
        assert float((out.observation - rows.observation).abs().max()) < 1e-8

    def test_one_terminal_in_50_000_rows_stays_bounded(self) -> None:
        rows = make_rows(make_spec(), 50_000, terminated=np.arange(50_000) == 777)
        column = fitted(rows, make_spec()).encode(rows)[:, -1]
        assert column.unique().tolist() == [-1.0, 1.0]

    @pytest.mark.parametrize(
        "draw",
        [
            lambda rng: rng.standard_cauchy(50_000),
            lambda rng: rng.standard_t(2, 50_000),
            lambda rng: np.exp(2.0 * rng.normal(size=50_000)),
            lambda rng: rng.normal(size=50_000) + 100.0 * (rng.random(50_000) < 1e-3),
            lambda rng: np.arange(50_000) == 777,
        ],
        ids=["cauchy", "student", "lognormal", "crash penalty", "one flag"],
    )
    def test_heavy_tails_stay_bounded_and_come_back(self, draw: object) -> None:
        values = draw(np.random.default_rng(0)).astype(np.float32)
        rows = make_rows(make_spec(), 50_000, observation=values)
        codec = fitted(rows, make_spec())
        column = codec.encode(rows)[:, 0]
        assert float((values - values.mean()).max() / values.std()) > HEAVY_TAIL
        assert float(column.abs().max()) <= HEAVY_TAIL * (1 + 1e-6)
        assert float(column.square().mean()) <= 1.0 + 1e-5
        out = decode(codec, codec.encode(rows)).observation[:, 0]
        scale = float(codec.normalizer.scale[0])
        error = (out - torch.as_tensor(values)).abs()
        assert (error <= 1e-5 * (scale + torch.as_tensor(values).abs())).all()

    def test_light_tails_are_not_compressed(self) -> None:
        rows = make_rows(make_spec(), 5_000)
        codec = fitted(rows, make_spec())
        assert not codec.normalizer.heavy.any()
        assert float(codec.encode(rows)[:, 0].std(correction=0)) == pytest.approx(1.0, abs=1e-5)

    def test_overshooting_heavy_column_stays_finite(self) -> None:
        rows = make_rows(make_spec(), 5_000, observation=np.random.default_rng(0).standard_cauchy(5_000))
        codec = fitted(rows, make_spec())
        out = decode(codec, torch.full((20, codec.dim), 1e6))
        assert float(out.observation.max()) == float(rows.observation.max())

    def test_without_terminals_there_is_no_column(self) -> None:
        rows = make_rows(make_spec(), 30)
        with_column, without = fitted(rows, make_spec()), fitted(rows, make_spec(), model_terminals=False)
        assert torch.equal(without.encode(rows), with_column.encode(rows)[:, :-1])
        assert not decode(without, without.encode(rows)).terminated.any()

    def test_category_outside_its_range_is_an_error(self) -> None:
        spec = make_spec(action=spaces.MultiDiscrete([3, 2]))
        rows = make_rows(spec, 10)
        codec = fitted(rows, spec)
        rows.action[4, 1] = 7
        with pytest.raises(ValueError, match=r"action\[1\] holds values outside its categories \(0 to 1\).* to 7\."):
            codec.encode(rows)
        rows.action[4, 1] = -1
        with pytest.raises(ValueError, match=r"action\[1\] .*found -1 to "):
            fitted(rows, spec)

    def test_discount_outside_its_values_is_an_error(self) -> None:
        spec = make_spec(discounts=(0.99, 0.9801))
        rows = make_rows(spec, 10)
        rows.discount[0] = 0.985
        with pytest.raises(
            ValueError, match=r"discount\[0\] holds values outside its categories \(\(0\.99, 0\.9801\)\)"
        ):
            fitted(rows, spec)


class TestDiscreteValues:
    """A model that is unsure answers with the mean: halfway thresholds would starve the rare value."""

    @pytest.mark.parametrize("change", [True, False])
    def test_reward_of_0_and_minus_1_comes_back_at_its_rate_on_its_rows(self, change: bool) -> None:
        reward = np.where(np.arange(2_000) % 40 == 0, 0.0, -1.0)  # 2.5 % zeros
        rows = make_rows(make_spec(), 2_000, reward=reward)
        codec = fitted(rows, make_spec(), next_observation_change=change)
        matrix = shrunk(codec.encode(rows), factor=0.2, noise=0.05)
        naive = matrix[:, 2].double() * codec.normalizer.scale[2] + codec.normalizer.mean[2]
        assert (naive > -0.5).sum() == 0
        out = decode(codec, matrix)
        assert out.reward.unique().tolist() == [-1.0, 0.0]
        assert torch.equal(out.reward, rows.reward)

    @pytest.mark.parametrize("change", [True, False])
    def test_contact_flags_in_a_float_observation(self, change: bool) -> None:
        rng = np.random.default_rng(0)
        spec = make_spec(spaces.Box(-np.inf, np.inf, (2,)))
        before = np.stack([rng.normal(size=4_000), rng.random(4_000) < 0.02], axis=1)
        after = np.stack([before[:, 0] + 0.1 * rng.normal(size=4_000), rng.random(4_000) < 0.02], axis=1)
        rows = make_rows(spec, 4_000, observation=before, next_observation=after)
        codec = fitted(rows, spec, next_observation_change=change)
        out = decode(codec, shrunk(codec.encode(rows), factor=0.3, noise=0.05))
        for found, wanted in ((out.observation[:, 1], before[:, 1]), (out.next_observation[:, 1], after[:, 1])):
            assert found.unique().tolist() == [0.0, 1.0]
            assert abs(int(found.sum()) - int(wanted.sum())) <= 1
        assert len(out.observation[:, 0].unique()) > 3_000

    def test_three_values_keep_their_shares_and_order(self) -> None:
        reward = np.repeat([0.1, -5.0, 20.0], [900, 80, 20])
        rows = make_rows(make_spec(), 1_000, reward=reward)
        codec = fitted(rows, make_spec())
        out = decode(codec, shrunk(codec.encode(rows), factor=0.25, noise=0.01))
        assert torch.equal(out.reward, rows.reward)

    def test_shares_hold_on_rows_that_did_not_decide(self) -> None:
        rows = make_rows(make_spec(), 8_000, reward=np.where(np.arange(8_000) % 20 == 0, 1.0, 0.0))
        codec = fitted(rows, make_spec())
        deciding = shrunk(codec.encode(rows), 0.3, 0.3, seed=1)
        out = decode(codec, shrunk(codec.encode(rows), 0.3, 0.3, seed=2), deciding)
        # 400 expected; the count varies like a binomial's, deviation 20, on both sides.
        assert abs(int(out.reward.sum()) - 400) < 4 * math.sqrt(2) * 20

    def test_more_values_than_few_stay_continuous(self) -> None:
        few = np.arange(1_000) % FEW_VALUES
        many = np.arange(1_000) % (FEW_VALUES + 1)
        for values, is_few in ((few, True), (many, False)):
            codec = fitted(make_rows(make_spec(), 1_000, reward=values), make_spec())
            assert (0 in codec.statistics["reward"].values) is is_few

    def test_values_that_only_show_late_are_found(self) -> None:
        reward = np.zeros(5_000)
        reward[4_000:] = 1.0
        codec = fitted(make_rows(make_spec(), 5_000, reward=reward), make_spec())
        distinct, shares = codec.statistics["reward"].values[0]
        assert distinct.tolist() == [0.0, 1.0]
        assert shares.tolist() == pytest.approx([0.8])

    def test_binary_columns_come_back_at_their_rates(self) -> None:
        spec = make_spec(spaces.MultiBinary(3))
        flags = np.stack([np.arange(2_000) % period == 0 for period in (2, 25, 500)], axis=1)
        rows = make_rows(spec, 2_000, observation=flags)
        codec = fitted(rows, spec)
        matrix = shrunk(codec.encode(rows), factor=0.2, noise=0.01)
        assert (matrix[:, 1:3] > 0.0).sum() == 0
        assert torch.equal(decode(codec, matrix).observation, rows.observation)

    def test_binary_columns_that_never_varied_are_reproduced_on_other_rows_too(self) -> None:
        spec = make_spec(spaces.MultiBinary(2))
        rows = make_rows(spec, 100, observation=np.tile([0, 1], (100, 1)))
        codec = fitted(rows, spec)
        generator = torch.Generator().manual_seed(0)
        deciding, others = (3.0 * torch.randn(size, codec.dim, generator=generator) for size in (50, 5_000))
        out = decode(codec, others, deciding)
        assert (out.observation == torch.tensor([0, 1], dtype=torch.int8)).all()

    def test_largest_category_wins(self) -> None:
        spec = make_spec(action=spaces.Discrete(3, start=10))
        codec = fitted(make_rows(spec, 20), spec)
        matrix = torch.zeros(3, codec.dim)
        matrix[:, 1:4] = torch.tensor([[-0.2, -0.1, -0.3], [0.4, 0.2, 0.3], [-1.0, -1.0, -0.9]])
        assert decode(codec, matrix).action.tolist() == [11, 10, 12]

    def test_discounts_come_back_as_powers_of_gamma(self) -> None:
        powers = tuple(0.99**k for k in (1, 2, 3))
        spec = make_spec(discounts=powers)
        rows = make_rows(spec, 300)
        codec = fitted(rows, spec)
        out = decode(codec, shrunk(codec.encode(rows), factor=0.3, noise=0.02))
        assert torch.equal(out.discount, rows.discount)
        assert out.discount.dtype == torch.float32
        assert set(out.discount.tolist()) == set(torch.tensor(powers, dtype=torch.float32).tolist())


class TestLimits:
    """A clipped column has many rows at exactly the limit; a model smears them around it."""

    @staticmethod
    def clipped(count: int = 1_000) -> tuple[Transitions, Codec]:
        """One row in five at 10, one in twenty at -10, the others spread evenly in between."""
        rows = make_rows(make_spec(), count, reward=np.clip(np.linspace(-11.0, 14.0, count) * 16 / 15, -10.0, 10.0))
        return rows, fitted(rows, make_spec())

    def test_smeared_rows_come_back_at_the_limits_as_often_as_in_the_data(self) -> None:
        rows, codec = self.clipped()
        at = [int((rows.reward == limit).sum()) for limit in (-10.0, 10.0)]
        assert min(at) > 50
        matrix = codec.encode(rows)
        matrix += 0.02 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
        out = decode(codec, matrix)
        assert [int((out.reward == limit).sum()) for limit in (-10.0, 10.0)] == at
        # And on the rows that were there: the smear is a fiftieth of the deviation, far less than the rest spreads.
        assert int(((out.reward == 10.0) & (rows.reward == 10.0)).sum()) > 0.85 * at[1]

    def test_shares_hold_on_rows_that_did_not_decide(self) -> None:
        rows, codec = self.clipped()
        deciding, others = (
            codec.encode(rows) + 0.1 * torch.randn((1_000, codec.dim), generator=torch.Generator().manual_seed(seed))
            for seed in (0, 1)
        )
        found = float((decode(codec, others, deciding).reward == 10.0).double().mean())
        wanted = float((rows.reward == 10.0).double().mean())
        assert found == pytest.approx(wanted, abs=4 * math.sqrt(2 * wanted * (1 - wanted) / 1_000))

    def test_values_inside_stay_as_they_are(self) -> None:
        rows, codec = self.clipped()
        out, inside = decode(codec, codec.encode(rows)), rows.reward.abs() < 10.0
        torch.testing.assert_close(out.reward[inside], rows.reward[inside], atol=1e-5, rtol=0)

    def test_a_largest_value_of_its_own_is_no_limit(self) -> None:
        rows = make_rows(make_spec(), 1_000, reward=np.linspace(-1.0, 1.0, 1_000))
        assert not fitted(rows, make_spec()).statistics["reward"].limits.any()


class TestLegalValues:
    def test_integer_box_is_rounded_not_truncated(self) -> None:
        spec = make_spec(spaces.Box(-100, 100, (1,), np.int64))
        values = np.arange(-50, 50)
        codec = fitted(make_rows(spec, 100, observation=values, next_observation=values), spec)
        matrix = torch.zeros(4, codec.dim)
        wanted = torch.tensor([2.4, 2.6, -2.4, -2.6], dtype=torch.float64)
        matrix[:, 0] = ((wanted - codec.normalizer.mean[0]) / codec.normalizer.scale[0]).float()
        out = decode(codec, matrix)
        assert out.observation[:, 0].tolist() == [2, 3, -2, -3]
        # The change is always 0, so that the next observation is the one that was rounded.
        assert out.next_observation[:, 0].tolist() == [2, 3, -2, -3]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32])
    def test_integer_box_is_clipped_to_the_observed_range(self, dtype: type) -> None:
        spec = make_spec(spaces.Box(0, 100, (1,), dtype))
        codec = fitted(make_rows(spec, 200, observation=5 + np.arange(200) % 90), spec)
        matrix = torch.zeros(2, codec.dim)
        matrix[:, 0] = torch.tensor([-50.0, 50.0])
        assert decode(codec, matrix).observation[:, 0].tolist() == [5, 94]

    def test_actions_stay_in_their_bounds_even_where_the_data_do_not(self) -> None:
        low, high = np.array([-0.4, -2.0], np.float32), np.array([0.4, 1.0], np.float32)
        spec = make_spec(action=spaces.Box(low, high))
        actions = np.random.default_rng(0).normal(scale=2.0, size=(500, 2))
        codec = fitted(make_rows(spec, 500, action=actions), spec)
        out = decode(codec, 5.0 * torch.randn(2_000, codec.dim, generator=torch.Generator().manual_seed(0)))
        assert out.action.amin(0).tolist() == low.tolist()
        assert out.action.amax(0).tolist() == high.tolist()

    def test_few_valued_actions_stay_in_their_bounds_too(self) -> None:
        spec = make_spec(action=spaces.Box(-1.0, 1.0, (1,)))
        rows = make_rows(spec, 100, action=np.where(np.arange(100) % 2, 1.0001, -1.0))
        out = there_and_back(rows, spec)
        assert out.action.unique().tolist() == [-1.0, 1.0]

    def test_values_are_clipped_to_the_observed_range(self) -> None:
        rows = make_rows(make_spec(), 500)
        codec = fitted(rows, make_spec())
        out = decode(codec, torch.full((2, codec.dim), 100.0) * torch.tensor([[-1.0], [1.0]]))
        assert out.reward.tolist() == [rows.reward.min().item(), rows.reward.max().item()]
        assert out.next_observation[:, 0].tolist() == [
            rows.next_observation.min().item(),
            rows.next_observation.max().item(),
        ]

    def test_next_observation_builds_on_the_decoded_observation(self) -> None:
        rows = make_rows(make_spec(), 500, observation=np.linspace(0.0, 1.0, 500))
        rows.next_observation.copy_(rows.observation + torch.linspace(-0.1, 0.1, 500).roll(100)[:, None])
        codec = fitted(rows, make_spec())
        matrix = torch.zeros(1, codec.dim)
        matrix[0, 0] = 50.0  # far out of range: clipped to 1.0
        out = decode(codec, matrix)
        assert out.observation.item() == 1.0
        assert out.next_observation.item() == pytest.approx(1.0, abs=1e-6)


class TestDrift:
    def rows(self, values: np.ndarray) -> Transitions:
        return make_rows(make_spec(), len(values), observation=values, next_observation=values)

    def test_is_0_for_the_same_data(self) -> None:
        rows = make_rows(make_spec(spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})), 100)
        spec = make_spec(spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}))
        assert fitted(rows, spec).drift(rows) == 0.0

    def test_is_the_shift_of_the_mean_in_deviations(self) -> None:
        values = np.tile([1.0, 3.0], 50)  # mean 2, deviation 1
        codec = fitted(self.rows(values), make_spec())
        assert codec.drift(self.rows(values + 0.5)) == pytest.approx(0.5)
        assert codec.drift(self.rows(values - 1.5)) == pytest.approx(1.5)

    def test_is_1_where_the_spread_tripled_or_fell_to_a_third(self) -> None:
        values = np.tile([-3.0, 3.0], 50)
        codec = fitted(self.rows(values), make_spec())
        assert codec.drift(self.rows(3.0 * values)) == pytest.approx(1.0)
        assert codec.drift(self.rows(values / 3.0)) == pytest.approx(1.0)

    def test_is_infinite_where_a_constant_column_varies_or_moves(self) -> None:
        codec = fitted(self.rows(np.full(100, 2.0)), make_spec())
        assert codec.drift(self.rows(np.full(100, 2.0))) < 1.0
        assert codec.drift(self.rows(np.tile([2.0, 2.001], 50))) == math.inf
        assert codec.drift(self.rows(np.full(100, 2.5))) == math.inf

    def test_ignores_columns_of_fixed_scale(self) -> None:
        rows = make_rows(make_spec(), 1_000, terminated=[False] * 1_000)
        codec = fitted(rows, make_spec(), normalize_reward=False)
        rows.terminated[:500] = True
        rows.reward += 100.0
        assert codec.drift(rows) == 0.0

    def test_ignores_what_only_varies_by_rounding(self) -> None:
        """A clock: s' - s is always one step, up to the rounding of the subtraction."""
        spec = make_spec(spaces.Box(0.0, np.inf, (1,), np.float64))
        clock = 7.3 + 0.02 * np.arange(2_001)
        rows = make_rows(spec, 2_000, observation=clock[:-1], next_observation=clock[1:])
        assert len((rows.next_observation - rows.observation).unique()) > 1
        for size in (1_500, 1_700, 1_900):
            codec = fitted(rows[:size], spec)
            assert codec.normalizer.scale[3] == 0.0
            assert codec.drift(rows) < 1.0


class TestState:
    def test_round_trip_decodes_the_same_rows(self) -> None:
        spec = make_spec(
            spaces.Dict({"x": spaces.Box(-9, 9, (2,)), "flags": spaces.MultiBinary(2)}), spaces.Discrete(3), (0.9, 0.81)
        )
        rows = make_rows(spec, 400, reward=np.tile([0.0, -1.0], 200))
        codec = fitted(rows, spec)
        again = Codec.from_state_dict(spec, codec.state_dict())
        matrix = torch.randn(100, codec.dim, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again.encode(rows), codec.encode(rows))
        left, right = decode(codec, matrix).flat(), decode(again, matrix).flat()
        assert all(torch.equal(left[name], right[name]) for name in left)

    def test_a_codec_of_version_3_decodes_in_its_range(self) -> None:
        path = Path(__file__).parents[1] / "data" / "version3"
        upsampler = torch.load(path / "upsampler_state.pt", weights_only=True)
        with safetensors.safe_open(path / "model.safetensors", framework="pt") as file:
            header = json.loads(file.metadata()["synther_buffers"])
        spec = TransitionSpec.from_dict(header["spec"])
        codec = Codec.from_state_dict(spec, upsampler["codec"])
        thresholds = Thresholds.from_state(upsampler["decisions"])
        out = spec.empty(200)
        codec.decode(torch.randn((200, codec.dim), generator=torch.Generator().manual_seed(0)), out, thresholds)
        support = upsampler["codec"]["support"]["reward"]
        assert float(out.reward.min()) >= float(support["low"])
        assert float(out.reward.max()) <= float(support["high"])
        again = Codec.from_state_dict(spec, codec.state_dict())
        assert torch.equal(again.normalizer.scale, upsampler["codec"]["frame"]["scale"])
