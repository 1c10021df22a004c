import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synther_buffers import RowOrder
from synther_buffers.replay.holdout import HoldOut


class Rings:
    """Streams that write into ring buffers of their own, as a vectorised environment does."""

    def __init__(self, num_streams: int, capacity: int, episode_end_probability: float = 0.0, seed: int = 0) -> None:
        self.capacity = capacity
        self.probability = episode_end_probability
        self.rng = np.random.default_rng(seed)
        self.ends: list[list[bool]] = [[] for _ in range(num_streams)]

    def write(self, *num_rows: int) -> None:
        for ends, count in zip(self.ends, num_rows, strict=True):
            ends.extend(self.rng.random(count) < self.probability)

    def order(self) -> RowOrder:
        """The rows as they lie in memory: stream after stream, each ring from its first slot."""
        writes, streams, ends = [], [], []
        for stream, flags in enumerate(self.ends):
            slots = np.arange(max(len(flags) - self.capacity, 0), len(flags))
            slots = slots[np.argsort(slots % self.capacity)]
            writes.append(slots)
            streams.append(np.full(len(slots), stream))
            ends.append(np.array(flags, np.bool_)[slots])
        return RowOrder(np.concatenate(writes), np.concatenate(streams), np.concatenate(ends))


def held_rows(hold_out: HoldOut, order: RowOrder) -> list[int]:
    """Write indices of the held-out rows of one stream."""
    mask = hold_out.mask(order)
    assert mask.shape == order.write_index.shape
    assert mask.dtype == np.bool_
    return sorted(order.write_index[mask].tolist())


def one_stream(start: int, stop: int) -> RowOrder:
    return RowOrder(np.arange(start, stop), np.zeros(stop - start, np.int64), np.zeros(stop - start, np.bool_))


def runs(rows: list[int]) -> list[tuple[int, int]]:
    """First row and length of each run of sorted rows."""
    pieces = np.split(np.array(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
    return [(int(piece[0]), len(piece)) for piece in pieces]


class TestByHand:
    """The first runs have 4 rows, later ones a quarter of those held out before, up to 50; 4 % of the rows in all."""

    def test_four_percent_in_runs(self) -> None:
        first = [(85, 4), (156, 4), (236, 4), (348, 4), (437, 4), (614, 5), (682, 6), (778, 7)]
        assert runs(held_rows(HoldOut(), RowOrder.appended(1_000))) == first

    def test_where_a_run_begins(self) -> None:
        """The 12 rows of three runs and a random part of the fourth are 4 % of the rows before it."""
        at_random = (12 + 4 * random.Random(12).random()) / 0.04
        assert 347 < at_random <= 348
        # The second would begin earlier, where the 8 rows of two runs were more than 5 % of those up to its end.
        assert (4 + 4 * random.Random(4).random()) / 0.04 < 156 == 8 / 0.05 - 4

    def test_runs_grow_up_to_50_rows(self) -> None:
        found = runs(held_rows(HoldOut(), RowOrder.appended(100_000)))
        lengths = [length for _, length in found]
        assert lengths == sorted(lengths)
        assert lengths[17:20] == [50, 50, 50]
        assert max(lengths) == 50
        assert sum(lengths) == pytest.approx(4_000, abs=50)

    def test_runs_grow_though_few_rows_were_seen_first(self) -> None:
        hold_out = HoldOut()
        assert held_rows(hold_out, RowOrder.appended(100)) == [85, 86, 87, 88]
        assert runs(held_rows(hold_out, RowOrder.appended(10_000)))[-1][1] == 50

    @given(st.lists(st.integers(1, 6_000), max_size=8))
    def test_the_choice_does_not_depend_on_when_it_is_asked_for(self, sizes: list[int]) -> None:
        hold_out = HoldOut()
        for size in sorted(sizes):
            hold_out.mask(RowOrder.appended(size))
        assert held_rows(hold_out, RowOrder.appended(6_000)) == held_rows(HoldOut(), RowOrder.appended(6_000))

    @pytest.mark.parametrize(("first", "every", "total"), [(1_000, 500, 10_000), (10_000, 10_000, 50_000)])
    @pytest.mark.parametrize("length", [10, 25, 50, 51, 75, 100, 125, 250, 500, 625, 1_000, 1_250])
    def test_ends_of_episodes_of_any_length_are_learned(self, first: int, every: int, total: int, length: int) -> None:
        hold_out = HoldOut()
        for num_rows in range(first, total + 1, every):
            mask = hold_out.mask(one_stream(0, num_rows))
        ends = (np.arange(total) + 1) % length == 0
        assert ends[~mask].mean() > 0.95 * ends.mean()
        assert 0.035 < mask.mean() <= 0.045

    def test_a_run_goes_on_with_the_next_rows(self) -> None:
        hold_out = HoldOut()
        assert held_rows(hold_out, one_stream(0, 350))[-2:] == [348, 349]
        # Though the rows before its own are overwritten.
        assert held_rows(hold_out, one_stream(347, 800))[:4] == [348, 349, 350, 351]

    def test_a_run_does_not_go_on_after_rows_that_nobody_saw(self) -> None:
        hold_out = HoldOut()
        hold_out.mask(one_stream(0, 350))
        assert 351 not in held_rows(hold_out, one_stream(351, 900))

    def test_the_state_of_an_earlier_version_loads(self) -> None:
        """It had the start of the last run, whether it was held out and whether its episode ended, and one length."""
        state = {
            "streams": [[0, 498, 496, True, False, [[96, 100], [196, 200], [296, 300], [396, 400], [496, 498]]]],
            "run_length": 4,
            "num_seen": 498,
            "num_held": 18,
        }
        held = held_rows(HoldOut.from_state_dict(state), one_stream(0, 600))
        assert runs(held)[:5] == [(96, 4), (196, 4), (296, 4), (396, 4), (496, 4)]
        assert all(row > 500 for row in held[20:])

    def test_a_saved_one_goes_on_as_before(self) -> None:
        hold_out = HoldOut()
        hold_out.mask(RowOrder.appended(780))  # in a run
        again = HoldOut.from_state_dict(json.loads(json.dumps(hold_out.state_dict())))
        assert held_rows(again, RowOrder.appended(2_000)) == held_rows(HoldOut(), RowOrder.appended(2_000))

    def test_rows_overwritten_unseen_leave_the_earlier_choice_alone(self) -> None:
        hold_out = HoldOut()
        before = held_rows(hold_out, one_stream(0, 1_000))
        hold_out.mask(one_stream(5_000, 6_000))
        assert all(row >= 5_000 for row in held_rows(hold_out, one_stream(5_500, 6_500)))
        assert before[-1] == 784

    def test_no_rows(self) -> None:
        assert HoldOut().mask(RowOrder.appended(0)).tolist() == []

    def test_asking_twice_changes_nothing(self) -> None:
        hold_out, order = HoldOut(), RowOrder.appended(1_000)
        assert (hold_out.mask(order) == hold_out.mask(order)).all()

    def test_pickled_it_goes_on_as_before(self) -> None:
        hold_out = HoldOut()
        hold_out.mask(RowOrder.appended(700))
        again = pickle.loads(pickle.dumps(hold_out))
        assert (hold_out.mask(RowOrder.appended(2_000)) == again.mask(RowOrder.appended(2_000))).all()

    def test_order_of_the_rows_in_memory_does_not_matter(self) -> None:
        order = RowOrder.appended(1_000)
        shuffle = np.random.default_rng(0).permutation(1_000)
        mixed = RowOrder(order.write_index[shuffle], order.stream[shuffle], order.episode_end[shuffle])
        assert (HoldOut().mask(mixed) == HoldOut().mask(order)[shuffle]).all()


class TestRings:
    @settings(max_examples=150, deadline=None)
    @given(
        num_streams=st.integers(1, 8),
        capacity=st.integers(5, 700),
        episode_end_probability=st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0]),
        seed=st.integers(0, 2**32 - 1),
        data=st.data(),
    )
    def test_rows_never_change_sides_and_few_are_held(
        self, num_streams: int, capacity: int, episode_end_probability: float, seed: int, data: st.DataObject
    ) -> None:
        rings = Rings(num_streams, capacity, episode_end_probability, seed)
        hold_out = HoldOut()
        undecided = -1
        sides = np.full((num_streams, 24 * capacity + 12), undecided)
        uneven = data.draw(st.booleans())
        for _ in range(data.draw(st.integers(1, 12))):
            counts = [data.draw(st.integers(1, 2 * capacity))] * num_streams
            if uneven:
                counts = [int(count) for count in rings.rng.integers(0, 2 * capacity, num_streams)]
                counts[0] += 1
            rings.write(*counts)
            order = rings.order()
            mask = hold_out.mask(order)
            before = sides[order.stream, order.write_index]
            assert ((before == undecided) | (before == mask)).all()
            sides[order.stream, order.write_index] = mask
            assert mask.mean() <= 0.05

    @pytest.mark.parametrize("num_streams", [4, 25])
    def test_streams_in_step_with_the_runs_hold_out_no_more(self, num_streams: int) -> None:
        """Each refresh brings the streams to the same phase: the ring's ragged edges then hold runs of all of them."""
        first = 10_000 // num_streams
        rings = Rings(num_streams, capacity=first + 50)
        hold_out = HoldOut()
        for _ in range(10):
            rings.write(*[first] * num_streams)
            mask = hold_out.mask(rings.order())
            assert 0.02 <= mask.mean() <= 0.05

    @pytest.mark.parametrize("num_streams", [1, 3])
    def test_share_stays_near_4_percent(self, num_streams: int) -> None:
        rings = Rings(num_streams, capacity=5_000, episode_end_probability=0.01)
        hold_out = HoldOut()
        for _ in range(20):
            rings.write(*[1_000] * num_streams)
            mask = hold_out.mask(rings.order())
            assert 0.03 <= mask.mean() <= 0.05

    def test_every_stream_gets_held_out_rows_in_the_long_run(self) -> None:
        rings = Rings(4, capacity=5_000)
        hold_out = HoldOut()
        for _ in range(5):
            rings.write(*[1_000] * 4)
            order = rings.order()
            mask = hold_out.mask(order)
        assert set(order.stream[mask].tolist()) == {0, 1, 2, 3}

    def test_small_rings_have_held_out_rows_too(self) -> None:
        """However many rows were written: not only the long runs that belong to so many."""
        rings, hold_out = Rings(1, capacity=1_000), HoldOut()
        for _ in range(60):
            rings.write(500)
            assert 0.02 <= hold_out.mask(rings.order()).mean() <= 0.05

    @pytest.mark.parametrize("num_streams", [2, 60])
    def test_a_run_is_made_of_rows_that_follow_each_other(self, num_streams: int) -> None:
        rings, hold_out = Rings(num_streams, capacity=20_000), HoldOut()
        for _ in range(5):
            rings.write(*[4_000 // num_streams] * num_streams)
            order = rings.order()
            mask = hold_out.mask(order)
        lengths = []
        for stream in range(num_streams):
            held = order.write_index[mask & (order.stream == stream)]
            lengths += [length for _, length in runs(held.tolist())] if len(held) else []
        assert max(lengths) <= 50
        assert np.mean(lengths) > 10


def mixed(start: int, stop: int, length: int = 10**6) -> RowOrder:
    """Steps `start` to `stop` of 50 environments, a step of each in turn, in trajectories of `length` (TorchRL)."""
    writes = np.arange(start * 50, stop * 50)
    step, environment = np.divmod(writes, 50)
    return RowOrder(
        writes,
        np.zeros(len(writes), np.int64),
        (step + 1) % length == 0,
        trajectory=environment + 50 * (step // length),
    )


class TestTrajectories:
    @pytest.mark.parametrize("steps", [[200], [20, 40, 60, 80, 100, 120, 140, 160, 180, 200]])
    def test_held_out_rows_are_neighbours_in_their_trajectory(self, steps: list[int]) -> None:
        hold_out = HoldOut()
        for stop in steps:
            mask = hold_out.mask(mixed(0, stop))
        assert 0.035 < mask.mean() <= 0.05
        held = mask.reshape(200, 50)
        between_learned = ~held[:-2] & held[1:-1] & ~held[2:]
        assert between_learned.sum() < 0.2 * held[1:-1].sum()

    def test_ends_of_trajectories_are_learned(self) -> None:
        order = mixed(0, 1_000, length=40)
        ends = order.episode_end
        mask = HoldOut().mask(order)
        assert ends[~mask].mean() > 0.95 * ends.mean()

    def test_rows_do_not_change_sides_in_a_ring(self) -> None:
        hold_out, sides = HoldOut(), {}
        for stop in range(30, 600, 30):
            order = mixed(max(stop - 100, 0), stop, length=70)
            mask = hold_out.mask(order)
            assert mask.mean() <= 0.05
            for write, held in zip(order.write_index.tolist(), mask.tolist(), strict=True):
                assert sides.setdefault(write, held) == held
            hold_out = HoldOut.from_state_dict(json.loads(json.dumps(hold_out.state_dict())))
        assert np.mean(list(sides.values())) == pytest.approx(0.04, abs=0.005)
