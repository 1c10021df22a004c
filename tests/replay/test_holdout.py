import pickle

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


def one_stream(start: int, stop: int, ends: tuple[int, ...] = ()) -> RowOrder:
    writes = np.arange(start, stop)
    return RowOrder(writes, np.zeros(stop - start, np.int64), np.isin(writes, ends))


class TestByHand:
    """1,000 rows make runs of 10; a run is held out as soon as it and the earlier ones are 4 % of the rows."""

    def test_four_percent_in_runs(self) -> None:
        runs = [*range(240, 250), *range(490, 500), *range(740, 750), *range(990, 1_000)]
        assert held_rows(HoldOut(), RowOrder.appended(1_000)) == runs

    def test_run_stops_at_the_end_of_its_episode(self) -> None:
        assert held_rows(HoldOut(), one_stream(0, 1_000, ends=(244,)))[:5] == [240, 241, 242, 243, 244]
        # 5 held of 375 rows leave room for the next ten, in runs that start after the episode.
        assert held_rows(HoldOut(), one_stream(0, 1_000, ends=(244,)))[5:15] == list(range(365, 375))

    def test_runs_are_at_most_50_rows_long(self) -> None:
        assert held_rows(HoldOut(), RowOrder.appended(100_000))[:51] == [*range(1_200, 1_250), 2_450]

    def test_100_rows_hold_out_single_ones(self) -> None:
        assert held_rows(HoldOut(), RowOrder.appended(100)) == [24, 49, 74, 99]

    def test_a_run_goes_on_with_the_next_rows(self) -> None:
        hold_out = HoldOut()
        runs = [range(96, 100), range(196, 200), range(296, 300), range(396, 400), range(496, 498)]
        assert held_rows(hold_out, one_stream(0, 498)) == [row for run in runs for row in run]
        assert held_rows(hold_out, one_stream(0, 510))[-4:] == [496, 497, 498, 499]

    @pytest.mark.parametrize(("end", "held"), [(496, [498, 499]), (497, [])])
    def test_a_run_ends_with_its_episode_though_the_row_before_is_gone(self, end: int, held: list[int]) -> None:
        hold_out = HoldOut()
        hold_out.mask(one_stream(0, 498, ends=(497,) if end == 497 else ()))
        # Everything was overwritten since, and nothing is missing.
        assert [row for row in held_rows(hold_out, one_stream(498, 996)) if row < 510] == held

    def test_a_run_does_not_go_on_after_rows_that_nobody_saw(self) -> None:
        hold_out = HoldOut()
        hold_out.mask(one_stream(0, 498))
        assert 499 not in held_rows(hold_out, one_stream(499, 900))

    def test_rows_overwritten_unseen_leave_the_earlier_choice_alone(self) -> None:
        hold_out = HoldOut()
        before = held_rows(hold_out, one_stream(0, 1_000))
        hold_out.mask(one_stream(5_000, 6_000))
        assert all(row >= 5_000 for row in held_rows(hold_out, one_stream(5_500, 6_500)))
        assert before[-1] == 999

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

    def test_a_run_is_made_of_neighbours_in_one_episode(self) -> None:
        rings = Rings(2, capacity=20_000, episode_end_probability=0.02)
        rings.write(10_000, 10_000)
        order = rings.order()
        mask = HoldOut().mask(order)
        for stream in (0, 1):
            rows = order.stream == stream
            held = order.write_index[rows & mask]
            ends = order.episode_end[rows]
            # Two held runs never touch here unless an episode ended between them.
            runs = np.split(held, np.flatnonzero((np.diff(held) > 1) | ends[held[:-1]]) + 1)
            assert len(runs) > 1
            for run in runs:
                assert not ends[run[:-1]].any()
                assert len(run) <= 50
