"""The pictures hold what they are given, say what they show, and leave the process as they found it."""

import copy
import importlib
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from pictures_helpers import drawn, legend_of
from PIL import Image
from toys import SPEC, TINY, Resampler, equal, gaussian, global_state

import synther_buffers
from synther_buffers import (
    DiffusionUpsampler,
    DPMSolver,
    HeunSolver,
    RowOrder,
    SyntheticReplay,
    Transitions,
    TransitionSpec,
    measure_fidelity,
    plots,
)
from synther_buffers.plots.density import measure_density
from synther_buffers.plots.generation import matrix_columns
from synther_buffers.transitions.codec import Codec
from synther_buffers.upsampling.augmentation import Bootstrap

DISCRETE = TransitionSpec.from_spaces(spaces.Box(-9, 9, (2,)), spaces.Discrete(3))


def few(actions: list[int], rewards: list[float]) -> Transitions:
    index = torch.arange(float(len(actions)))
    observation = torch.stack((index, index.square()), dim=1)
    return Transitions(
        observation, torch.tensor(actions), torch.tensor(rewards), observation + 1.0, torch.zeros(len(index)).bool()
    )


class TestMarginals:
    def test_the_least_similar_columns_come_first(self):
        real, synthetic = gaussian(2_000), gaussian(2_000, seed=1)
        synthetic.action = synthetic.action * 0.5
        synthetic.observation = synthetic.observation + torch.tensor([0.0, 0.3])
        figure = plots.marginals(real, synthetic, SPEC, num_columns=3)
        fidelity = measure_fidelity(real, synthetic, SPEC)
        titles = [axes.get_title() for axes in figure.axes]
        assert fidelity.worst_column == "action[0]"
        assert titles[0] == f"action[0]\nsimilarity {fidelity.worst_marginal:.2f}"
        assert titles[1].startswith("observation[1]\n")
        assert len(titles) == 3
        assert legend_of(figure) == ["real", "synthetic"]
        assert (figure.get_supxlabel(), figure.get_supylabel()) == ("value (units of the environment)", "density")
        drawn(figure)

    def test_of_an_element_before_and_after_the_step_the_less_similar_is_shown(self):
        real, synthetic = gaussian(1_000), gaussian(1_000)
        synthetic.observation = synthetic.observation + 1.0
        synthetic.next_observation = synthetic.next_observation + 2.0
        titles = [axes.get_title().split("\n")[0] for axes in plots.marginals(real, synthetic, SPEC).axes]
        # Four elements of (next) observations are all that differ.
        assert set(titles[:2]) == {"next_observation[0]", "next_observation[1]"}
        assert set(titles[2:]) == {"action[0]", "reward", "terminated"}

    def test_histograms_are_those_of_the_data(self):
        real, synthetic = gaussian(3_000), gaussian(2_000, seed=1)
        (axes,) = plots.marginals(real, synthetic, SPEC, columns=["reward"]).axes
        for patch, rows in zip(axes.patches, (real, synthetic), strict=True):
            heights, edges, _ = patch.get_data()
            assert heights == pytest.approx(np.histogram(rows.reward.double(), edges, density=True)[0])
        # From the 0.1 % to the 99.9 % quantile of both.
        both = torch.cat((real.reward, synthetic.reward)).double()
        assert edges[[0, -1]] == pytest.approx(torch.quantile(both, torch.tensor([0.001, 0.999]).double()).tolist())

    def test_few_values_are_bars_by_hand(self):
        figure = plots.marginals(
            few([0, 0, 1, 2], [1.0] * 4), few([0, 1, 1, 1], [1.0] * 4), DISCRETE, columns=["action", "reward"]
        )
        action, reward = figure.axes
        heights = [[bar.get_height() for bar in bars] for bars in action.containers]
        assert heights == [[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]]
        assert [text.get_text() for text in action.get_xticklabels()] == ["0", "1", "2"]
        # Half of |1/2 - 1/4| + |1/4 - 3/4| + |1/4 - 0|.
        assert action.get_title() == "action\nsimilarity 0.50"
        # A constant column is one bar of each set.
        assert [[bar.get_height() for bar in bars] for bars in reward.containers] == [[1.0], [1.0]]
        assert figure.get_supylabel() == "density (bars: share)"
        # Told apart by the hatch, in greyscale too.
        assert [bars[0].get_hatch() for bars in action.containers] == [None, "////"]
        drawn(figure)

    def test_one_value_that_owns_nearly_all_rows(self):
        real = gaussian(5_000)
        real.reward = torch.where(torch.arange(5_000) < 20, real.reward, 0.0)
        axes = plots.marginals(real, real, SPEC, columns=["reward"], width=plots.COLUMN).axes[0]
        assert np.isfinite(axes.patches[0].get_data().values).all()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"columns": ["speed"]}, "unknown column 'speed'; known columns: observation"),
            ({"columns": []}, "columns is empty"),
            ({"num_columns": 0}, "num_columns is 0"),
            ({"width": 0.5}, "width is 0.5"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            plots.marginals(gaussian(10), gaussian(10), SPEC, **arguments)

    def test_rows_that_cannot_be_compared_are_named(self):
        broken = gaussian(10)
        broken.reward[3] = math.nan
        with pytest.raises(ValueError, match="synthetic holds NaN or infinity in reward"):
            plots.marginals(gaussian(10), broken, SPEC)
        with pytest.raises(ValueError, match="real does not match the spec"):
            plots.correlations(few([0], [0.0]), gaussian(10), SPEC)
        with pytest.raises(ValueError, match="synthetic has 0 rows"):
            plots.projection(gaussian(10), gaussian(0), SPEC)


class TestCorrelations:
    def test_matrices_and_their_difference(self):
        real, synthetic = gaussian(500), gaussian(400, seed=1)
        figure = plots.correlations(real, synthetic, SPEC)
        matrices = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3]]
        for matrix, rows in zip(matrices, (real, synthetic), strict=False):
            # All but the flag.
            columns = [rows.observation, rows.action, rows.reward[:, None], rows.next_observation]
            assert matrix == pytest.approx(np.corrcoef(torch.cat(columns, 1).T))
        assert matrices[2] == pytest.approx(abs(matrices[0] - matrices[1]))
        assert [axes.get_title() for axes in figure.axes[:3]] == ["real", "synthetic", "difference"]
        names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert names == ["observation[0]", "observation[1]", "action[0]", "reward",
                         "next_observation[0]", "next_observation[1]"]  # fmt: skip
        assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim() == (-1.0, 1.0)
        bars = {axes.get_xlabel() for axes in figure.axes[3:]}
        assert bars == {"correlation", "absolute difference"}
        drawn(figure)

    def test_a_column_that_does_not_vary_on_one_side_is_left_out(self):
        real, synthetic = gaussian(100), gaussian(100)
        synthetic.reward.fill_(1.0)
        axes = plots.correlations(real, synthetic, SPEC).axes[0]
        assert "reward" not in [text.get_text() for text in axes.get_yticklabels()]
        assert axes.images[0].get_array().shape == (5, 5)

    def test_of_many_columns_the_fields_are_named(self):
        spec = TransitionSpec.from_spaces(spaces.Box(-9, 9, (6,)), spaces.Box(-1, 1, (2,)))
        generator = torch.Generator().manual_seed(0)
        observation = torch.randn(50, 6, generator=generator)
        rows = Transitions(observation, observation[:, :2], observation[:, 0], observation, observation[:, 0] > 0)
        axes = plots.correlations(rows, rows, spec, width=plots.COLUMN).axes[0]
        ticks = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.get_yticks(), strict=True))
        # Columns 0..5, 6..7, 8 and 9..14.
        assert ticks == {"observation": 2.5, "action": 6.5, "reward": 8.0, "next\nobservation": 11.5}

    def test_needs_two_columns(self):
        spec = TransitionSpec.from_spaces(spaces.Discrete(2), spaces.Discrete(2))
        zeros = torch.zeros(3, dtype=torch.int64)
        rows = Transitions(zeros, zeros, torch.zeros(3), zeros, zeros.bool())
        with pytest.raises(ValueError, match="0 continuous columns vary in both sets"):
            plots.correlations(rows, rows, spec)


class TestProjection:
    def test_components_by_hand(self):
        # Standardised, the two elements of both observations and the reward are one and the same column: five of the
        # six unit variances. The action is independent: the rest. No row is terminal.
        index = torch.linspace(-1.0, 1.0, 101)
        observation = torch.stack((index, 5.0 * index), dim=1)
        action = (torch.arange(101) % 2 * 2.0 - 1.0)[:, None]
        action[0] = 0.0  # as many of each sign
        spec = TransitionSpec.from_spaces(spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,)))
        rows = Transitions(observation, action, index, observation, torch.zeros(101).bool())
        figure = plots.projection(rows, rows[:40], spec)
        assert figure.get_supxlabel() == "component 1 (83 % of variance)"
        assert figure.get_supylabel() == "component 2 (17 % of variance)"
        real, synthetic = (np.asarray(axes.collections[0].get_offsets()) for axes in figure.axes)
        assert (len(real), len(synthetic)) == (101, 40)
        wanted = (index / index.std(correction=0) * math.sqrt(5)).numpy()
        assert np.sort(real[:, 0]) == pytest.approx(wanted, abs=0.05)
        # The synthetic rows lie where they lie among the real ones: in the lower part.
        assert np.sort(synthetic[:, 0]) == pytest.approx(wanted[:40], abs=0.05)
        assert legend_of(figure) == ["50 % of the real rows", "90 % of the real rows"]
        drawn(figure)

    def test_both_panels_have_the_real_rows_lines_and_one_scale(self):
        figure = plots.projection(gaussian(2_000), gaussian(500, seed=1), SPEC, num_points=100, width=plots.COLUMN)
        left, right = figure.axes
        assert [len(axes.collections[0].get_offsets()) for axes in (left, right)] == [100, 100]
        assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
        lines = [[path.vertices for path in axes.collections[1].get_paths()] for axes in (left, right)]
        assert all(np.array_equal(a, b) for a, b in zip(*lines, strict=True))

    def test_equal_sets_lie_on_each_other(self):
        figure = plots.projection(gaussian(500), gaussian(500), SPEC)
        real, synthetic = (np.asarray(axes.collections[0].get_offsets()) for axes in figure.axes)
        assert np.sort(real, axis=0) == pytest.approx(np.sort(synthetic, axis=0))

    def test_equal_rows_cannot_be_projected(self):
        with pytest.raises(ValueError, match="real has rows that are all the same"):
            plots.projection(gaussian(10)[[0] * 10], gaussian(10), SPEC)


def test_lines_hold_the_share_of_points_that_they_say():
    x, y = np.random.default_rng(0).normal(size=(2, 20_000)) * [[1.0], [0.2]]
    density = measure_density(x, y, (-5.0, 5.0), (-1.0, 1.0))
    assert density.share.sum() == pytest.approx(1.0)
    low, high = density.levels(0.9, 0.5)
    column, row = (np.abs(edge[:, None] - value).argmin(0) for edge, value in ((density.x, x), (density.y, y)))
    at = density.share[row, column]
    assert ((at >= low).mean(), (at >= high).mean()) == (pytest.approx(0.9, abs=0.02), pytest.approx(0.5, abs=0.02))


# -- generation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> DiffusionUpsampler:
    upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
    upsampler.fit(gaussian(300))
    return upsampler


@pytest.mark.parametrize("solver", [HeunSolver, DPMSolver])
def test_a_denoising_path_leads_from_noise_to_rows_and_is_no_draw(solver):
    config = replace(TINY, sampler=replace(TINY.sampler, solver=solver(8, 0.05, 20.0, 100.0)))
    upsampler = DiffusionUpsampler(SPEC, config, "cpu")
    upsampler.fit(gaussian(300))
    other = copy.deepcopy(upsampler)
    before = global_state()
    states = upsampler.denoising_path(500)
    assert global_state() == before
    assert [sigma for sigma, _ in states] == pytest.approx(solver(8, 0.05, 20.0, 100.0).noise_levels())
    assert all(x.shape == (500, 7) and x.dtype == torch.float32 for _, x in states)
    assert float(states[0][1].std()) == pytest.approx(20.0, rel=0.05)
    assert float(states[-1][1].std()) < 2.0
    assert torch.equal(states[-1][1], upsampler.denoising_path(500)[-1][1])
    assert equal(upsampler.sample(50), other.sample(50))


def test_a_denoising_path_needs_a_model_and_rows(fitted):
    with pytest.raises(RuntimeError, match="not been fitted"):
        DiffusionUpsampler(SPEC, TINY, "cpu").denoising_path(10)
    with pytest.raises(ValueError, match="num_samples is 0"):
        fitted.denoising_path(0)


class TestGeneration:
    def test_the_strip_shows_the_path(self, fitted):
        figure = plots.generation_strip(
            fitted, columns=("reward", "observation[1]"), num_samples=50, num_panels=3, width=plots.COLUMN
        )
        states = fitted.denoising_path(50)
        assert len(figure.axes) == 3
        for axes, level in zip(figure.axes, (0, 4, 8), strict=True):
            sigma, x = states[level]
            # observation[0], observation[1], action[0], reward, ...
            wanted = x[:, [3, 1]].numpy() / math.sqrt(1.0 + sigma**2)
            assert np.asarray(axes.collections[0].get_offsets()) == pytest.approx(wanted)
            followed = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
            assert np.array(followed) == pytest.approx(wanted[:4])
        assert figure.axes[0].get_title() == r"$\sigma = 20$"
        assert figure.axes[-1].get_title() == r"rows ($\sigma = 0$)"
        assert figure.get_supxlabel() == "reward (normalised)"
        assert figure.get_supylabel() == "observation[1] (normalised)"
        # Followed rows are told by their markers.
        assert len({line.get_marker() for line in figure.axes[0].lines}) == 4
        drawn(figure)

    def test_takes_the_first_columns_that_vary(self):
        rows = gaussian(300)
        rows.observation[:, 0] = 3.0
        upsampler = DiffusionUpsampler(SPEC, TINY, "cpu")
        upsampler.fit(rows)
        figure = plots.generation_strip(upsampler, num_samples=20)
        assert figure.get_supxlabel() == "observation[1] (normalised)"
        assert figure.get_supylabel() == "action[0] (normalised)"

    def test_names_stand_for_the_columns_that_the_codec_makes(self):
        space = spaces.Dict(
            {"flag": spaces.MultiBinary(2), "gear": spaces.Discrete(3, start=5), "at": spaces.Box(-9, 9)}
        )
        spec = TransitionSpec.from_spaces(space, spaces.MultiDiscrete([2, 3]), discounts=(0.99, 0.9801))
        for model_terminals in (True, False):
            upsampler = DiffusionUpsampler(spec, replace(TINY, model_terminals=model_terminals), "cpu")
            names = matrix_columns(upsampler)
            observation = {
                "at": torch.tensor([[1.0], [2.0]]),
                "flag": torch.tensor([[1, 0], [1, 0]]).to(torch.int8),
                "gear": torch.tensor([6, 6]),
            }
            rows = Transitions(
                observation, torch.tensor([[1, 2], [1, 2]]), torch.tensor([7.0, 8.0]), observation,
                torch.tensor([True, True]), discount=torch.tensor([0.9801, 0.9801]),
            )  # fmt: skip
            codec = Codec.fit(spec, rows, model_terminals=model_terminals)
            first = dict(zip(names, codec.encode(rows)[0].tolist(), strict=True))
            ones = {name for name, value in first.items() if value == 1.0}
            wanted = {"observation.flag[0]", "observation.gear=6", "action[0]=1", "action[1]=2", "discount=0.9801"}
            wanted |= {"next_observation.flag[0]", "next_observation.gear=6"}
            assert ones == wanted | ({"terminated"} if model_terminals else set())
            assert first["observation.at[0]"] == first["reward"] == -1.0  # half a deviation of two rows below the mean

    def test_the_animation_has_a_frame_per_level_and_stays_at_the_end(self, fitted, tmp_path):
        path = plots.generation_animation(fitted, tmp_path / "rows.gif", num_samples=20, width=2.0, dpi=50)
        with Image.open(path) as image:
            assert image.n_frames == 9
            assert image.size == (100, 105)
            durations = []
            for frame in range(9):
                image.seek(frame)
                durations.append(image.info["duration"])
        assert durations[:8] == [120] * 8  # GIFs count hundredths of a second
        assert durations[8] >= 2_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"columns": ("reward", "speed")}, "unknown column 'speed'; known columns: observation"),
            ({"columns": "reward"}, "columns is 'reward'; wanted the names of two"),
            ({"num_panels": 1}, "num_panels is 1"),
            ({"num_samples": 0}, "num_samples is 0"),
        ],
    )
    def test_errors(self, fitted, arguments, message):
        with pytest.raises(ValueError, match=message):
            plots.generation_strip(fitted, **arguments)

    def test_refuses_what_does_not_generate_from_noise(self, fitted, tmp_path):
        with pytest.raises(TypeError, match="upsampler is a Bootstrap, which does not generate rows from noise"):
            plots.generation_strip(Bootstrap(SPEC, device="cpu"))
        with pytest.raises(ValueError, match=r"rows\.mp4; wanted a name that ends in \.gif"):
            plots.generation_animation(fitted, tmp_path / "rows.mp4")
        assert list(tmp_path.iterdir()) == []


# -- runs and comparisons --------------------------------------------------------------------------------------------


def report(num_observed: int, loss: float, marginal: float, warm: bool = True) -> dict:
    return {
        "num_observed": num_observed,
        "fit": {"loss": loss, "held_out_loss": None, "warm": warm},
        "fidelity": {"marginal": marginal, "correlation": 0.9},
        "fidelity_real": {"marginal": 0.97, "correlation": 0.99},
    }


def curve(figure: Figure, key: str) -> list[tuple[float, float]]:
    (line,) = [line for axes in figure.axes for line in axes.lines if line.get_gid() == key]
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))


class TestRefreshes:
    def test_the_log_of_a_replay(self, tmp_path):
        log = tmp_path / "refreshes.jsonl"
        replay = SyntheticReplay(
            SPEC, upsampler=Resampler, retrain_every=1_000, num_synthetic=500, refresh_log=log, upsampler_device="cpu"
        )
        for total in (1_000, 2_000, 3_000):
            replay.observe_total(total)
            replay.refresh(gaussian(total), RowOrder.appended(total))
        figures = [plots.refreshes(source) for source in (log, str(log), replay.reports)]
        for figure in figures:
            assert curve(figure, "fit.loss") == [(1_000, 0.5), (2_000, 0.5), (3_000, 0.5)]
            wanted = [r.fidelity.marginal for r in replay.reports]
            assert [y for _, y in curve(figure, "fidelity.marginal")] == pytest.approx(wanted)
        loss, similarity = figures[0].axes
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("real transitions", "loss (1: untrained)")
        assert similarity.get_ylabel() == "similarity (1: equal)"
        assert legend_of(figures[0])[:3] == ["training loss", "held-out loss", "marginal"]
        drawn(figures[0])

    def test_null_is_a_gap_and_a_fresh_start_is_open(self):
        figure = plots.refreshes([report(10, 0.5, 0.8, warm=False), report(20, 0.4, 0.9)], width=plots.COLUMN)
        assert all(math.isnan(y) for _, y in curve(figure, "fit.held_out_loss"))
        markers = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert [(line.get_markerfacecolor(), line.get_xdata().tolist()) for line in markers] == [
            ("#0072B2", [20.0]),
            ("white", [10.0]),
        ]
        assert figure.axes[0].get_xlabel() == ""  # shared with the panel below
        drawn(figure)

    def test_no_line_leads_from_one_run_to_the_next(self):
        figure = plots.refreshes([report(10, 0.5, 0.8), report(20, 0.4, 0.9), report(10, 0.6, 0.7)])
        (first, second, gap, third) = curve(figure, "fit.loss")
        assert (first, second, third) == ((10, 0.5), (20, 0.4), (10, 0.6))
        assert math.isnan(gap[0])

    def test_a_line_that_is_being_written_is_left_out(self, tmp_path):
        log = tmp_path / "log.jsonl"
        log.write_text(json.dumps(report(10, 0.5, 0.8)) + '\n{"num_obs')
        assert curve(plots.refreshes(log), "fit.loss") == [(10, 0.5)]
        log.write_text('{"num_obs\n' + json.dumps(report(10, 0.5, 0.8)) + "\n")
        with pytest.raises(ValueError, match=r"line 1 of .*log\.jsonl is not JSON"):
            plots.refreshes(log)
        log.write_text(json.dumps(report(10, 0.5, 0.8)) + '\n{"num_obs\n')  # broken, and nobody is writing it
        with pytest.raises(ValueError, match=r"line 2 of .*log\.jsonl is not JSON"):
            plots.refreshes(log)

    def test_errors(self, tmp_path):
        log = tmp_path / "log.jsonl"
        log.write_text("")
        with pytest.raises(ValueError, match=r"log\.jsonl holds no refresh yet"):
            plots.refreshes(log)
        for text in ('{"a": 1}\n', "3\n"):
            log.write_text(text)
            with pytest.raises(ValueError, match=r"entry 1 of .*log\.jsonl is no report of a refresh"):
                plots.refreshes(log)
        with pytest.raises(TypeError, match="source is a int"):
            plots.refreshes(3)
        with pytest.raises(FileNotFoundError):
            plots.refreshes(tmp_path / "nowhere.jsonl")


# -- the process -----------------------------------------------------------------------------------------------------


def test_nothing_global_is_touched():
    import matplotlib

    # Past the mapping's own access, which would choose a backend.
    settings, before = dict(dict.items(matplotlib.rcParams)), global_state()
    rows = gaussian(100)
    for picture in (plots.marginals, plots.correlations, plots.projection):
        drawn(picture(rows, rows, SPEC))
    assert dict(dict.items(matplotlib.rcParams)) == settings
    assert global_state() == before


@pytest.fixture
def anew(monkeypatch):
    """Forget the module, so that it is imported anew; afterwards it is what it was."""
    monkeypatch.setattr(synther_buffers, "plots", plots)
    for name in [name for name in sys.modules if name.startswith("synther_buffers.plots")]:
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_pyplot_is_not_needed(anew):
    anew.setitem(sys.modules, "matplotlib.pyplot", None)
    module = importlib.import_module("synther_buffers.plots")
    assert module is not plots
    drawn(module.marginals(gaussian(10), gaussian(10), SPEC))


def test_without_matplotlib_it_says_what_to_install(anew):
    anew.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'plots needs matplotlib: pip install "synther-buffers\[plots\]"'):
        importlib.import_module("synther_buffers.plots")
