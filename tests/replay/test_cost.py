"""What a run's refreshes will take: the arithmetic by hand, and the measurement on rows that were made up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toys import SPEC, TINY, Resampler, gaussian

from synther_buffers import PRESETS, Novelty, TransitionSpec, estimate_cost
from synther_buffers.replay.cost import _made_up
from synther_buffers.upsampling.cost import Speed
from synther_buffers.upsampling.fitted_model import CALIBRATION_ROWS


@pytest.fixture
def one_second_a_step(monkeypatch):
    """Every gradient step of the denoiser takes a second, everything else nothing."""
    monkeypatch.setattr("synther_buffers.replay.cost.measure_speed", lambda *_: Speed(1.0, 0.0, 0.0, 0.0))


class TestRowsThatAreAskedFor:
    """Every row takes a second to generate, everything else nothing."""

    @pytest.fixture(autouse=True)
    def one_second_a_row(self, monkeypatch):
        monkeypatch.setattr("synther_buffers.replay.cost.measure_speed", lambda *_: Speed(0.0, 0.0, 0.0, 1.0))

    def seconds(self, **options):
        found = estimate_cost(SPEC, 1_000, upsampler=TINY, retrain_every=1_000, num_synthetic=500, **options)
        return found.seconds - CALIBRATION_ROWS

    def test_by_guidance(self):
        assert self.seconds() == 500
        assert self.seconds(guidance="novelty") == 2 * 500
        assert self.seconds(guidance=Novelty(by="resampling")) == 4 * 500

    def test_by_the_policy(self):
        # At 1,000 real transitions; and at 1,000, 1,200 and 1,400 of 1,500.
        assert self.seconds(policy_share=0.5, redraw_every=200) == 500 + 2_048
        found = estimate_cost(
            SPEC, 1_500, upsampler=TINY, retrain_every=1_000, num_synthetic=500, policy_share=0.5, redraw_every=200
        )
        assert found.seconds - CALIBRATION_ROWS == 500 + 3 * 2_048
        # At 1,000, and at each fifth of the interval of 500 up to 1,300.
        found = estimate_cost(SPEC, 1_300, upsampler=TINY, num_synthetic=500, policy_share=0.5)
        assert found.seconds - CALIBRATION_ROWS == 500 + 4 * 2_048


@pytest.mark.usefixtures("one_second_a_step")
class TestArithmetic:
    def test_two_refreshes_from_scratch_and_the_others_continue(self):
        # TINY takes 30 steps from scratch and 10 to continue, for any number of rows.
        found = estimate_cost(SPEC, 4_999, upsampler=TINY, retrain_every=1_000)
        assert (found.num_refreshes, found.seconds) == (4, 30 + 30 + 10 + 10)
        assert (found.first_seconds, found.last_seconds) == (30, 10)

    def test_the_last_step_counts(self):
        assert estimate_cost(SPEC, 5_000, upsampler=TINY, retrain_every=1_000).num_refreshes == 5

    def test_the_default_interval(self):
        # At 1,000 to 5,000 every 500, and at 5,500, 6,050, 6,655, 7,320, 8,052, 8,857 and 9,742.
        assert estimate_cost(SPEC, 10_000, upsampler=TINY).num_refreshes == 16
        # At 300, 600 and 900; and none of a buffer that is too small.
        assert estimate_cost(SPEC, 1_000, upsampler=TINY, buffer_size=300).num_refreshes == 3
        assert estimate_cost(SPEC, 1_000, upsampler=TINY, buffer_size=50).num_refreshes == 0

    def test_a_start_of_its_own(self):
        # Refreshes at 300, 1,300 and 2,300.
        found = estimate_cost(SPEC, 3_000, upsampler=TINY, retrain_every=1_000, start_after=300)
        assert (found.num_refreshes, found.seconds) == (3, 30 + 30 + 10)

    def test_too_few_rows_are_no_refresh(self):
        found = estimate_cost(SPEC, 2_010, upsampler=TINY, retrain_every=1_000, start_after=10)
        assert (found.num_refreshes, found.seconds) == (2, 30 + 30)

    def test_a_preset_without_warm_starts(self):
        found = estimate_cost(SPEC, 3_000, upsampler=replace(TINY, warm_start=False), retrain_every=1_000)
        assert found.seconds == 3 * 30

    def test_the_budget_follows_the_rows(self):
        # 4 % of the rows are held out. Steps: 7,000 * 0.096 and 7,000 * 0.192 from scratch; then 7,000 * 0.288 * 1/3.
        found = estimate_cost(SPEC, 3_000, upsampler=PRESETS["cpu"], retrain_every=1_000)
        assert found.seconds == 672 + 1_344 + 672
        assert found.num_synthetic == 28_800

    def test_a_full_buffer_does_not_grow(self):
        found = estimate_cost(SPEC, 5_000, upsampler=PRESETS["cpu"], retrain_every=1_000, buffer_size=2_000)
        assert found.num_synthetic == 20_000
        assert found.last_seconds == 384  # the least of a warm start: 2,000 * 0.192

    def test_no_refresh(self):
        assert estimate_cost(SPEC, 999, retrain_every=1_000).to_dict() == {
            "num_refreshes": 0, "seconds": 0.0, "first_seconds": 0.0, "last_seconds": 0.0, "num_synthetic": 0,
            "memory_bytes": 0, "device": "cpu",
        }  # fmt: skip
        assert estimate_cost(SPEC, 5_000, retrain_every=1_000, synthetic_fraction=0.0).num_refreshes == 0

    def test_memory_follows_rows_and_set(self):
        few, many = (
            estimate_cost(SPEC, count, upsampler=TINY, retrain_every=count, num_synthetic=1_000).memory_bytes
            for count in (1_000, 11_000)
        )
        # A row has 41 bytes (five float64, one float32 action and reward, a flag) and seven columns.
        assert SPEC.empty(1).nbytes == 41
        assert many - few == 9_600 * (41 + 12 * 7)


class TestMeasured:
    def test_rows_that_were_made_up(self):
        found = estimate_cost(SPEC, 3_000, upsampler=TINY, retrain_every=1_000)
        assert 0 < found.last_seconds < found.first_seconds < found.seconds

    def test_real_rows(self):
        assert estimate_cost(SPEC, 1_000, rows=gaussian(300), upsampler=TINY, retrain_every=1_000).seconds > 0

    def test_no_global_stream_moves(self):
        before = torch.get_rng_state()
        estimate_cost(SPEC, 1_000, upsampler=TINY, retrain_every=1_000)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Discrete(5, start=2),
            spaces.MultiDiscrete([3, 4]),
            spaces.MultiBinary(3),
            spaces.Box(0, 9, (2, 2), np.int64),
            spaces.Dict({"near": spaces.Box(-1, 1, (3,)), "far": spaces.Discrete(4)}),
        ],
        ids=str,
    )
    def test_legal_rows_of_every_space(self, space):
        spec = TransitionSpec.from_spaces(space, spaces.Discrete(3), discounts=(0.9, 0.81))
        rows = _made_up(spec)
        spec.check(rows)
        for field in spec.fields:
            value = rows.flat()[field.name].reshape(len(rows), -1).double()
            if field.kind == "continuous":
                assert bool((value >= torch.tensor(field.low)).all() and (value <= torch.tensor(field.high)).all())
            elif field.values:
                assert set(value.unique().tolist()) <= set(torch.tensor(field.values).double().tolist())
            elif field.kind == "categorical":
                start, count = torch.tensor(field.start), torch.tensor(field.num_categories)
                assert bool((value >= start).all() and (value < start + count).all())


class TestErrors:
    def test_an_upsampler_of_ones_own(self):
        with pytest.raises(TypeError, match="whose speed only a run can tell"):
            estimate_cost(SPEC, 1_000, upsampler=Resampler)

    def test_a_misspelt_option(self):
        with pytest.raises(TypeError, match="estimate_cost does not know the keyword 'retrain_evry'"):
            estimate_cost(SPEC, 1_000, retrain_evry=10)

    def test_no_steps(self):
        with pytest.raises(ValueError, match="num_steps is 0"):
            estimate_cost(SPEC, 0)

    def test_a_buffer_that_does_not_hold_an_interval(self):
        message = r"retrain_every=2000 is more than buffer_size=1000: .*Lower retrain_every or raise buffer_size\."
        with pytest.raises(ValueError, match=message):
            estimate_cost(SPEC, 10_000, retrain_every=2_000, buffer_size=1_000)
        # Without synthetic rows the buffer takes it, too.
        few = estimate_cost(SPEC, 10_000, retrain_every=2_000, buffer_size=1_000, synthetic_fraction=0.0)
        assert few.num_refreshes == 0

    def test_rows_of_another_task(self):
        other = TransitionSpec.from_spaces(spaces.Box(-1, 1, (3,), np.float64), spaces.Box(-1, 1, (1,)))
        with pytest.raises(ValueError, match="shape"):
            estimate_cost(other, 10_000, rows=gaussian(50))
