"""Rows under conditions, from trained models: closed forms, every kind of field, files, and bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, equal, gaussian

from synther_buffers import (
    Condition,
    ConditioningConfig,
    DiffusionUpsampler,
    DPMSolver,
    NetworkConfig,
    SamplerConfig,
    Transitions,
    TransitionSpec,
    UpsamplerConfig,
)
from synther_buffers.upsampling.presets import merge_config
from synther_buffers.upsampling.relevance import RelevanceScale

CONDITIONAL = replace(TINY, conditioning=ConditioningConfig())
#: Enough for a few columns, with a solver that does not widen a Gaussian.
TRAINED = replace(
    CONDITIONAL,
    network=NetworkConfig(width=64, depth=2, embedding_dim=64, activation="swiglu"),
    training=replace(TINY.training, batch_size=512, learning_rate=4e-3, dropout=0.0, weight_decay=0.0),
    sampler=SamplerConfig(DPMSolver(num_steps=32, sigma_min=0.02, sigma_max=20.0, rho=100.0)),
    train_steps=3_000,
    model_terminals=False,
)
COUNT = 20_000


def draw(upsampler: DiffusionUpsampler, count: int, **condition: object) -> Transitions:
    return upsampler.sample(count, condition=Condition(**condition))


def rows_of(observation: torch.Tensor, action: torch.Tensor, reward: torch.Tensor, following: torch.Tensor):
    terminated = torch.zeros(len(reward), dtype=torch.bool)
    return Transitions(observation[:, None], action[:, None], reward, following[:, None], terminated)


@pytest.fixture(scope="module")
def linear() -> DiffusionUpsampler:
    """s ~ N(1, 2), a = 0.25 (s - 1) + 0.866 n, r = a - s + 0.5 n, s' = s + 0.3 a + 0.2 n; the relevance is 10 r."""
    n = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    s = 1 + 2 * n[:, 0]
    a = 0.25 * (s - 1) + 0.75**0.5 * n[:, 1]
    r = a - s + 0.5 * n[:, 2]
    rows = rows_of(s, a, r, s + 0.3 * a + 0.2 * n[:, 3])
    upsampler = DiffusionUpsampler(TransitionSpec.infer(rows), TRAINED, "cpu", seed=0)
    upsampler.fit(rows, relevance=10 * r)
    return upsampler


@pytest.mark.slow
class TestClosedForms:
    """Means within 0.05, standard deviations within 5 %, of 20,000 rows each."""

    @pytest.mark.parametrize("s", [1.0, 3.0, -1.0])
    def test_given_the_observation(self, linear: DiffusionUpsampler, s: float) -> None:
        found = draw(linear, COUNT, observation=torch.full((COUNT, 1), s))
        a = 0.25 * (s - 1)
        expect(found.action, a, 0.75**0.5)
        expect(found.reward, a - s, (0.75 + 0.25) ** 0.5)
        expect(found.next_observation, s + 0.3 * a, (0.3**2 * 0.75 + 0.2**2) ** 0.5)

    @pytest.mark.parametrize(("s", "a"), [(1.0, 0.0), (2.0, 1.0), (-1.0, -1.0)])
    def test_given_observation_and_action(self, linear: DiffusionUpsampler, s: float, a: float) -> None:
        found = draw(linear, COUNT, observation=torch.full((COUNT, 1), s), action=torch.full((COUNT, 1), a))
        expect(found.reward, a - s, 0.5)
        expect(found.next_observation, s + 0.3 * a, 0.2)

    @pytest.mark.parametrize("r", [-3.0, -1.0, 1.0])
    def test_given_the_relevance(self, linear: DiffusionUpsampler, r: float) -> None:
        model = linear.model
        config = replace(linear.settings, conditioning=ConditioningConfig(guidance=1.0))
        unguided = replace(model, denoising=replace(model.denoising, config=config))
        found = unguided.sample(COUNT, 1, condition=Condition(relevance=10 * r))
        # r = 0.25 (s - 1) - s + ...: covariance with s of 0.25 * 4 - 4 = -3; variance 1 + 4 - 2 + 0.25 = 3.25.
        expect(found.observation, 1 - 3 / 3.25 * (r + 1), (4 - 9 / 3.25) ** 0.5)
        expect(found.action, 0.0, 1.0)  # independent of r: 1 - 1
        assert float(found.reward.mean()) == pytest.approx(r, abs=0.05)

    def test_guidance_moves_rows_further(self, linear: DiffusionUpsampler) -> None:
        guided = draw(linear, COUNT, relevance=10.0)  # r = 1: s of -0.85
        assert float(guided.observation.mean()) < -0.88
        assert float(guided.reward.mean()) == pytest.approx(1.0, abs=0.05)

    def test_without_a_condition(self, linear: DiffusionUpsampler) -> None:
        found = linear.sample(COUNT)
        expect(found.observation, 1.0, 2.0)
        expect(found.action, 0.0, 1.0)
        expect(found.reward, -1.0, 3.25**0.5)

    def test_a_mixture(self) -> None:
        """s = +-1 with probability 1/2 each, a = +-2 with that sign for s = 1 and both signs for s = -1, spread 0.1."""
        generator = torch.Generator().manual_seed(1)
        sign = torch.where(torch.rand(COUNT, generator=generator) < 0.5, 1.0, -1.0)
        both = torch.where(torch.rand(COUNT, generator=generator) < 0.25, 1.0, -1.0)
        noise = torch.randn(COUNT, 4, generator=generator)
        s, a = sign + 0.1 * noise[:, 0], 2 * torch.where(sign > 0, 1.0, both) + 0.1 * noise[:, 1]
        rows = rows_of(s, a, a + 0.1 * noise[:, 2], s + 0.1 * noise[:, 3])
        upsampler = DiffusionUpsampler(TransitionSpec.infer(rows), TRAINED, "cpu", seed=0)
        upsampler.fit(rows)
        expect(draw(upsampler, COUNT, observation=torch.ones(COUNT, 1)).action, 2.0, 0.1, relative=0.1)
        found = draw(upsampler, COUNT, observation=-torch.ones(COUNT, 1)).action
        positive = found > 0
        assert float(positive.double().mean()) == pytest.approx(0.25, abs=0.03)
        expect(found[positive], 2.0, 0.1, relative=0.1)
        expect(found[~positive], -2.0, 0.1, relative=0.1)
        both_given = draw(upsampler, COUNT, observation=-torch.ones(COUNT, 1), action=torch.full((COUNT, 1), 2.0))
        expect(both_given.reward, 2.0, 0.1, relative=0.1)


def expect(value: torch.Tensor, mean: float, deviation: float, relative: float = 0.05) -> None:
    assert float(value.double().mean()) == pytest.approx(mean, abs=0.05)
    assert float(value.double().std()) == pytest.approx(deviation, rel=relative)


# -- every kind of field ----------------------------------------------------------------------------------------------

MIXED = TransitionSpec.from_spaces(
    spaces.Dict(
        {
            "place": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "pixels": spaces.Box(0, 255, (3,), np.uint8),
            "room": spaces.Discrete(3, start=1),
            "doors": spaces.MultiBinary(2),
        }
    ),
    spaces.MultiDiscrete([2, 3]),
)


def mixed(count: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    whole = lambda high, *shape: torch.randint(high, (count, *shape), generator=generator)  # noqa: E731
    observation = {
        # The second element has a point mass in half of the rows.
        "place": torch.randn(count, 2, generator=generator, dtype=torch.float64)
        * torch.stack((torch.ones(count), whole(2)), 1),
        "pixels": whole(256, 3).to(torch.uint8),
        "room": whole(3) + 1,
        "doors": whole(2, 2).to(torch.int8),
    }
    following = {**observation, "place": observation["place"] + 1.0}
    action = torch.stack((whole(2), whole(3)), 1)
    return Transitions(observation, action, observation["place"][:, 0].float(), following, whole(10) == 0)


@pytest.fixture(scope="module")
def of_every_kind() -> DiffusionUpsampler:
    upsampler = DiffusionUpsampler(MIXED, CONDITIONAL, "cpu", seed=0)
    upsampler.fit(mixed(500), relevance=torch.arange(500))
    return upsampler


class TestEveryKindOfField:
    @pytest.mark.parametrize("with_action", [False, True])
    def test_given_values_come_back_bit_for_bit(self, of_every_kind: DiffusionUpsampler, with_action: bool) -> None:
        wanted = mixed(300, seed=0)
        wanted.observation["place"] = wanted.observation["place"] * (1 + 1e-14)  # more digits than float32 has
        given = {"action": wanted.action} if with_action else {}
        found = draw(of_every_kind, 300, observation=wanted.observation, **given, relevance=400.0)
        for name, value in wanted.observation.items():
            assert torch.equal(found.observation[name], value)
            assert found.observation[name].dtype == value.dtype
        assert torch.equal(found.action, wanted.action) == with_action
        MIXED.check(found)

    def test_changes_are_added_to_the_given_observation(self) -> None:
        rows = gaussian(500)
        step = torch.tensor([1.0, -2.0], dtype=torch.float64)
        rows = replace(rows, next_observation=rows.observation + step)  # a constant change
        upsampler = DiffusionUpsampler(SPEC, CONDITIONAL, "cpu", seed=0)
        upsampler.fit(rows)
        observation = rows.observation[:50] * 0.5
        found = draw(upsampler, 50, observation=observation)
        inside = (found.next_observation - observation - step).abs().amax(1) < 1e-6
        assert inside.double().mean() > 0.9  # the others end at the range of the next observations

    def test_each_row_is_its_own(self, of_every_kind: DiffusionUpsampler) -> None:
        observation = mixed(300, seed=5).observation
        alone = {name: value[:10] for name, value in observation.items()}
        assert equal(
            copy_of(of_every_kind).sample(300, condition=Condition(observation=observation))[:10],
            copy_of(of_every_kind).sample(10, condition=Condition(observation=alone)),
        )


def copy_of(upsampler: DiffusionUpsampler) -> DiffusionUpsampler:
    copy = DiffusionUpsampler(upsampler.spec, upsampler.settings, "cpu", seed=upsampler.seed)
    copy.load_state_dict(upsampler.state_dict())
    return copy


# -- what stays, and what follows -------------------------------------------------------------------------------------


def test_a_condition_ignores_the_default_device() -> None:
    """Arrays have no device of their own, and on this one nothing holds a value."""
    condition = Condition(observation=np.ones((3, 2)), action=np.zeros((3, 1), np.float32), relevance=np.ones(3))
    with torch.device("meta"):
        known = condition.known(SPEC, 3)
    assert known["observation"].tolist() == [[1.0, 1.0]] * 3
    assert known["action"].tolist() == [[0.0]] * 3


def test_rates_follow_the_condition() -> None:
    """Terminal iff s'0 < -1.2: almost all rows from s0 = -2.5 on, almost none from s0 = 2 on."""
    config = replace(CONDITIONAL, train_steps=400, terminal_steps=300)
    upsampler = DiffusionUpsampler(SPEC, config, "cpu", seed=0)
    rows = gaussian(3_000)
    upsampler.fit(rows)
    given = torch.zeros(2_000, 2, dtype=torch.float64)
    rates = []
    for start in (-2.5, 2.0):
        given[:, 0] = start
        rates.append(float(draw(upsampler, 2_000, observation=given).terminated.double().mean()))
    assert rates[0] > 0.9
    assert rates[1] < 0.02
    assert float(upsampler.sample(2_000).terminated.double().mean()) == pytest.approx(
        float(rows.terminated.double().mean()), abs=0.005
    )


def test_without_conditioning_nothing_changes() -> None:
    plain = DiffusionUpsampler(SPEC, TINY, "cpu", seed=0)
    plain.fit(gaussian(200))
    names = {name for name, _ in plain.model.denoising.denoiser.named_parameters()}
    assert not [name for name in names if "condition" in name]
    assert plain.config["conditioning"] is None


def test_a_warm_start_keeps_what_it_learned_of_conditions() -> None:
    upsampler = DiffusionUpsampler(SPEC, replace(CONDITIONAL, warm_start=True), "cpu", seed=0)
    upsampler.fit(gaussian(300), relevance=torch.arange(300.0))
    weight = upsampler.model.denoising.denoiser.network.condition_in.weight.clone()
    report = upsampler.fit(gaussian(400), relevance=torch.arange(400.0))
    assert report.warm
    moved = upsampler.model.denoising.denoiser.network.condition_in.weight - weight
    assert 0 < float(moved.norm()) < 0.5 * float(weight.norm())
    assert float(upsampler.model.relevance.quantiles[-1]) == 399.0  # the scale is that of the last rows


def test_a_file_has_it_all(tmp_path) -> None:
    upsampler = DiffusionUpsampler(SPEC, CONDITIONAL, "cpu", seed=0)
    upsampler.fit(gaussian(300), relevance=torch.arange(300.0))
    upsampler.save(tmp_path / "model.safetensors")
    loaded = DiffusionUpsampler.load(tmp_path / "model.safetensors", device="cpu")
    assert loaded.settings == upsampler.settings
    condition = Condition(observation=gaussian(20, seed=3).observation, relevance=torch.linspace(0, 299, 20))
    assert equal(loaded.sample(20, condition=condition), upsampler.sample(20, condition=condition))


def test_configurations_are_plain_data() -> None:
    assert UpsamplerConfig.from_dict(CONDITIONAL.to_dict()) == CONDITIONAL
    changed = merge_config(TINY, {"conditioning": {"guidance": 3.0}}, "here")
    assert changed.conditioning == ConditioningConfig(guidance=3.0)
    assert merge_config(CONDITIONAL, {"conditioning": None}, "here").conditioning is None
    assert merge_config(CONDITIONAL, {"conditioning": {"guidance": 1.5}}, "here").conditioning.guidance == 1.5
    with pytest.raises(TypeError, match="conditioning is True"):
        replace(TINY, conditioning=True)


# -- the scale of a relevance -----------------------------------------------------------------------------------------


class TestRelevanceScale:
    def test_by_hand(self) -> None:
        scale = RelevanceScale.measure(torch.tensor([3.0, 1.0, 2.0]))
        # Ranks 0, 1/2 and 1; half-way between two values, half-way between their ranks. N(0, 1) has 1/4 below -0.6745.
        found = scale.scores(torch.tensor([2.0, 1.5, 2.5])).tolist()
        assert found == pytest.approx([0.0, -0.6745, 0.6745], abs=1e-3)
        low, high = scale.scores(torch.tensor([1.0, 3.0])).tolist()
        assert low == pytest.approx(-high)
        assert 3.2 < high < 3.4  # finite: 0.5 in 1,001 beyond it

    def test_equal_values_have_their_middle_rank(self) -> None:
        scale = RelevanceScale.measure(torch.tensor([0.0] * 60 + [1.0] * 40))
        low, high = scale.scores(torch.tensor([0.0, 1.0])).tolist()
        # 60 % are 0: their middle rank is 0.3, that of the others 0.8.
        assert low == pytest.approx(-0.524, abs=0.02)
        assert high == pytest.approx(0.842, abs=0.02)

    def test_units_and_outliers_do_not_matter(self) -> None:
        value = torch.randn(5_000, generator=torch.Generator().manual_seed(0))
        scores = RelevanceScale.measure(value).scores(value)
        torch.testing.assert_close(
            RelevanceScale.measure(1e9 * value + 5).scores(1e9 * value + 5), scores, atol=0.01, rtol=0.01
        )
        torch.testing.assert_close(
            RelevanceScale.measure(value.exp()).scores(value.exp()), scores, atol=0.02, rtol=0.02
        )
        # Normal values are their own scores.
        inner = value.abs() < 2
        torch.testing.assert_close(scores[inner], value[inner], atol=0.15, rtol=0)

    @pytest.mark.parametrize(
        ("relevance", "message"),
        [
            (torch.ones(300), "1 in all rows"),
            (torch.full((300,), float("nan")), "not finite"),
            (torch.arange(299.0), r"shape \(299,\); wanted one number a row, \(300,\)"),
            (torch.ones(300, 2), r"shape \(300, 2\)"),
        ],
    )
    def test_bad_relevance(self, relevance: torch.Tensor, message: str) -> None:
        upsampler = DiffusionUpsampler(SPEC, CONDITIONAL, "cpu", seed=0)
        upsampler.fit(gaussian(300))
        model = upsampler.model
        with pytest.raises(ValueError, match=message):
            upsampler.fit(gaussian(300), relevance=relevance)
        assert upsampler.model is model

    def test_a_relevance_that_nobody_would_learn(self) -> None:
        with pytest.raises(ValueError, match="has no conditioning"):
            DiffusionUpsampler(SPEC, TINY, "cpu").fit(gaussian(300), relevance=torch.arange(300.0))


# -- bad conditions ---------------------------------------------------------------------------------------------------

ROWS = gaussian(300)


@pytest.fixture(scope="module")
def conditional() -> DiffusionUpsampler:
    upsampler = DiffusionUpsampler(SPEC, CONDITIONAL, "cpu", seed=0)
    upsampler.fit(ROWS, relevance=ROWS.reward)
    return upsampler


class TestBadConditions:
    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            ({}, "condition is empty"),
            ({"action": ROWS.action[:5]}, "an action without an observation"),
            (
                {"observation": ROWS.observation[:4]},
                r"observation of the condition has shape \(4, 2\); wanted \(5, 2\)",
            ),
            ({"observation": {"a": ROWS.observation[:5]}}, r"has \['observation.a'\]; wanted \['observation'\]"),
            ({"observation": ROWS.observation[:5] * 100}, r"observation\[0\] is .* in row 0 of the condition"),
            ({"observation": ROWS.observation[:5] * float("nan")}, r"observation\[0\] is nan"),
            ({"relevance": 1e6}, "relevance is 1e\\+06 in row 0"),
            ({"relevance": float("nan")}, "relevance is nan"),
            ({"relevance": torch.zeros(4)}, r"relevance of the condition has shape \(4,\); wanted \(\) or \(5,\)"),
        ],
    )
    def test_it_is_named(self, conditional: DiffusionUpsampler, condition: dict, message: str) -> None:
        draws = conditional.state_dict()["num_draws"]
        with pytest.raises(ValueError, match=message):
            draw(conditional, 5, **condition)
        assert conditional.state_dict()["num_draws"] == draws

    def test_an_action_close_to_the_data_is_possible(self, conditional: DiffusionUpsampler) -> None:
        observation, action = ROWS.observation[:5], torch.full((5, 1), 1.2)
        assert torch.equal(draw(conditional, 5, observation=observation, action=action).action, action)

    def test_a_model_without_conditions_says_what_to_set(self) -> None:
        upsampler = DiffusionUpsampler(SPEC, TINY, "cpu", seed=0)
        upsampler.fit(ROWS)
        with pytest.raises(ValueError, match=r"conditioning is a ConditioningConfig\(\)"):
            draw(upsampler, 5, observation=ROWS.observation[:5])

    def test_a_relevance_that_was_not_learned(self) -> None:
        upsampler = DiffusionUpsampler(SPEC, CONDITIONAL, "cpu", seed=0)
        upsampler.fit(ROWS)
        with pytest.raises(ValueError, match="fitted without one"):
            draw(upsampler, 5, relevance=0.0)
