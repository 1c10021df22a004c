"""A classifier of a rare label that one of eight columns determines."""

import pytest
import torch

from synther_buffers.upsampling.rare_classifier import RareClassifier


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def fitted(seed: int = 0) -> RareClassifier:
    learned = rows(20_000, seed)
    draws = torch.Generator().manual_seed(seed)
    return RareClassifier.fit(learned, learned[:, 0] > 2.748, torch.full((8,), 3e-3), 500, draws)


@pytest.mark.parametrize("seed", [0, 1])
def test_from_sixty_examples_it_finds_the_rows_with_the_label(seed: int) -> None:
    """0.3 % of a normal distribution; the right rows are the 0.3 % with the largest log-odds."""
    others = rows(50_000, seed + 100)
    wanted = others[:, 0] > 2.748
    found = fitted(seed).logits(others).topk(int(wanted.sum())).indices
    assert float(wanted[found].double().mean()) > 0.95


def test_columns_that_do_not_matter_are_not_used() -> None:
    weights = fitted().state_dict()["0.weight"].norm(dim=0)
    assert int(weights.argmax()) == 0
    assert float(weights[1:].max()) < 0.2 * float(weights[0])


def test_the_same_seed_gives_the_same_classifier_and_the_global_stream_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    others = rows(100, 5)
    assert torch.equal(fitted(3).logits(others), fitted(3).logits(others))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loaded_one_answers_the_same() -> None:
    classifier, others = fitted(), rows(100, 5)
    loaded = RareClassifier.from_state(classifier.state_dict(), 8, torch.device("cpu"))
    assert torch.equal(loaded.logits(others), classifier.logits(others))
    with pytest.raises(RuntimeError, match="size mismatch"):
        RareClassifier.from_state(classifier.state_dict(), 7, torch.device("cpu"))
