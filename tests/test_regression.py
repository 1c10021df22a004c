"""The ensemble learns functions, and says what it could not learn."""

import pytest
import torch

from synther_buffers.regression import Ensemble


def columns(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two inputs; targets: the sum of their squares, chance, and a constant."""
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 2, generator=draws) * 2 - 1
    squares = inputs.square().sum(1)
    return inputs, torch.stack((squares, torch.randn(count, generator=draws), torch.zeros(count)), 1)


def fitted(seed: int = 0) -> Ensemble:
    return Ensemble.fit(*columns(1_000, 0), torch.Generator().manual_seed(seed), 200)


def test_it_learns_a_sum_of_squares_and_explains_no_chance() -> None:
    ensemble = fitted()
    inputs, targets = columns(500, 1)
    # Squares of uniform numbers have a variance of 4/45 each.
    assert (ensemble.predict(inputs)[:, 0] - targets[:, 0]).square().mean() < 0.05 * 8 / 45
    squares, chance, constant = ensemble.explained.tolist()
    assert squares > 0.95
    assert chance < 0.1
    assert constant == 0.0
    assert ensemble.error[0] == pytest.approx((1 - squares) * float(columns(1_000, 0)[1][:, 0].var(correction=0)))
    assert ensemble.error[2] == 0.0
    assert torch.equal(ensemble.predict(inputs)[:, 2], targets[:, 2])


def test_the_same_seed_gives_the_same_ensemble_and_no_global_stream_moves() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    inputs, _ = columns(50, 1)
    few = columns(100, 0)
    first, again, other = (Ensemble.fit(*few, torch.Generator().manual_seed(seed), 10) for seed in (0, 0, 1))
    assert torch.equal(first.predict(inputs), again.predict(inputs))
    assert not torch.equal(first.predict(inputs), other.predict(inputs))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_ensemble_predicts_the_same() -> None:
    ensemble, (inputs, _) = fitted(), columns(50, 1)
    loaded = Ensemble.from_state(ensemble.state_dict(), 2, 3, torch.device("cpu"))
    assert torch.equal(loaded.predict(inputs), ensemble.predict(inputs))
    assert torch.equal(loaded.explained, ensemble.explained)
    assert torch.equal(loaded.error, ensemble.error)


@pytest.mark.parametrize("count", [10, 50])
def test_few_rows_explain_no_chance(count: int) -> None:
    """Each network is judged on rows that it did not learn, however few there are."""
    inputs, targets = columns(count, 0)
    ensemble = Ensemble.fit(inputs, targets, torch.Generator().manual_seed(0), 300)
    assert float(ensemble.explained[1]) < 0.3
    assert float(ensemble.error[1]) > 0.7 * float(targets[:, 1].var(correction=0))


@pytest.mark.parametrize("count", [1, 4, 5, 7, 60])
def test_few_rows_are_enough_to_run(count: int) -> None:
    inputs, targets = columns(count, 0)
    ensemble = Ensemble.fit(inputs, targets, torch.Generator().manual_seed(0), 5)
    assert ensemble.predict(inputs).isfinite().all()
    assert ensemble.explained.isfinite().all()


def test_a_state_of_other_columns_is_refused() -> None:
    state = fitted().state_dict()
    with pytest.raises(ValueError, match="shapes"):
        Ensemble.from_state(state, 2, 4, torch.device("cpu"))
    state["explained"] = state["explained"][:2]
    with pytest.raises(ValueError, match="shapes"):
        Ensemble.from_state(state, 2, 3, torch.device("cpu"))


def test_constant_targets_alone_are_told_back() -> None:
    inputs, _ = columns(60, 0)
    ensemble = Ensemble.fit(inputs, torch.full((60, 2), 7.0), torch.Generator().manual_seed(0), 5)
    assert torch.equal(ensemble.predict(inputs), torch.full((60, 2), 7.0))
    assert ensemble.explained.tolist() == [0.0, 0.0]
