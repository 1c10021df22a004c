"""The mask of a batch's synthetic rows, which are those with an index from `maxsize` on."""

import numpy as np
import pytest
from synther_buffers.tianshou import SynthERPrioritizedReplayBuffer, SynthERReplayBuffer
from tianshou_helpers import OPTIONS, CounterEnv, count_into, make_buffer, refreshed, sac, train

CLASSES = list(OPTIONS)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("way", ["sample", "sample_indices"])
def test_it_agrees_with_the_indices(cls, way):
    buffer = refreshed(cls)
    for size in (1, 2, 31, 64):
        drawn = buffer.sample(size)[1] if way == "sample" else buffer.sample_indices(size)
        np.testing.assert_array_equal(buffer.synthetic.last_mask.numpy(), drawn >= buffer.maxsize)


@pytest.mark.parametrize("cls", CLASSES)
def test_asking_for_every_row_draws_no_batch(cls):
    buffer = refreshed(cls)
    _, indices = buffer.sample(33)
    for size in (0, None):
        buffer.sample_indices(size)
    buffer.sample(0)
    buffer.hasnull()
    np.testing.assert_array_equal(buffer.synthetic.last_mask.numpy(), indices >= buffer.maxsize)


def test_new_priorities_change_the_draw_and_not_the_arrangement():
    buffer = make_buffer(SynthERPrioritizedReplayBuffer)
    count_into(buffer, 0, 150)
    for _ in range(3):
        _, indices = buffer.sample(33)
        buffer.update_weight(indices, np.arange(33.0) + 1.0)
        np.testing.assert_array_equal(buffer.synthetic.last_mask.numpy(), indices >= buffer.maxsize)


def test_it_is_that_of_the_batch_an_algorithm_learns_from():
    buffer, masks = make_buffer(SynthERReplayBuffer), []

    def watched(env, n_step):
        algorithm = sac(env, n_step)
        postprocess = algorithm._postprocess_batch

        def recording(batch, buffer, indices):
            masks.append((buffer.synthetic.last_mask.numpy(), indices >= buffer.maxsize))
            postprocess(batch, buffer, indices)

        algorithm._postprocess_batch = recording
        return algorithm

    train(watched, buffer, CounterEnv)
    assert {int(mask.sum()) for mask, _ in masks} == {0, 16}
    for mask, told_by_index in masks:
        np.testing.assert_array_equal(mask, told_by_index)
