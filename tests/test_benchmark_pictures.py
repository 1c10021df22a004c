"""The pictures of the benchmarks hold what they are given and say what they show."""

import math

import numpy as np
import pytest
import torch
from benchmarks.pictures import fidelity_cost, strength_sweeps
from matplotlib.figure import Figure
from pictures_helpers import drawn, legend_of


def clouds(sets) -> Figure:
    """One environment, without strengths."""
    return strength_sweeps({"Hopper": (sets, {})}, width=6.5)


class TestClouds:
    def sets(self) -> dict:
        rng = np.random.default_rng(0)
        return {
            "diffusion": (rng.lognormal(1.0, 0.3, 500), rng.lognormal(-3.0, 0.5, 500)),
            "noise": (torch.as_tensor(rng.lognormal(-1.0, 0.2, 400)), torch.as_tensor(rng.lognormal(-2.0, 0.5, 400))),
        }

    def test_medians_marginals_and_names(self):
        sets = self.sets()
        figure = clouds(sets)
        joint, top, side, _ = figure.axes
        for line, (distance, error) in zip(joint.lines, sets.values(), strict=True):
            median = [np.median(np.asarray(values)) for values in (distance, error)]
            assert [line.get_xdata()[0], line.get_ydata()[0]] == pytest.approx(median, rel=0.01)
        for line, (distance, _) in zip(top.lines, sets.values(), strict=True):
            x, height = line.get_data()
            assert height.max() == 1.0
            assert x[height.argmax()] == pytest.approx(np.median(np.asarray(distance)), rel=0.2)
        for line, (_, error) in zip(side.lines, sets.values(), strict=True):
            height, y = line.get_data()
            assert y[height.argmax()] == pytest.approx(np.median(np.asarray(error)), rel=0.4)
        assert (joint.get_xscale(), joint.get_yscale()) == ("log", "log")
        assert joint.get_xlabel() == "distance to the closest real row"
        assert legend_of(figure) == ["diffusion", "noise"]
        # Told apart without colours.
        assert (
            len({line.get_marker() for line in joint.lines}) == len({line.get_linestyle() for line in top.lines}) == 2
        )
        drawn(figure)

    def test_zeros_are_drawn_at_a_floor_that_says_so(self):
        figure = clouds({**self.sets(), "resampled": (np.zeros(50), np.full(50, 1e-30))})
        joint = figure.axes[0]
        x, y = (joint.lines[2].get_data()[axis][0] for axis in range(2))
        for value, axis, lowest in ((x, joint.xaxis, 0.2), (y, joint.yaxis, 0.01)):
            ticks = dict(zip(axis.get_ticklocs().tolist(), [t.get_text() for t in axis.get_ticklabels()], strict=True))
            assert r"\leq" in ticks[min(ticks)]
            assert min(ticks) == pytest.approx(value)
            assert 0 < value < lowest
        assert joint.get_xlim()[0] < x
        drawn(figure)

    def test_rows_that_could_not_be_simulated_are_left_out(self):
        whole = self.sets()["diffusion"]
        holes = np.where(np.arange(1_000) % 2, math.nan, np.repeat(whole[1], 2))
        figures = [clouds({"a": pair}) for pair in (whole, (np.repeat(whole[0], 2), holes))]
        left, right = (figure.axes[1].lines[0].get_ydata() for figure in figures)
        assert left == pytest.approx(right)

    @pytest.mark.parametrize(
        ("results", "error", "message"),
        [
            ([], TypeError, "results of Hopper is a list"),
            ({}, ValueError, "results of Hopper has 0 entries; wanted 1 to 8"),
            ({str(i): ([1.0], [1.0]) for i in range(9)}, ValueError, "results of Hopper has 9 entries"),
            ({"a": ([1.0, 2.0], [1.0])}, ValueError, r"results\['a'\] has distances of shape \(2,\) and errors of"),
            ({"a": [1.0]}, ValueError, r"results\['a'\] has 1 entries; wanted \(distances, errors\)"),
            ({"a": ([1.0], [math.nan])}, ValueError, r"results\['a'\] has no row whose distance and error"),
            ({"a": ([-1.0], [1.0])}, ValueError, r"results\['a'\] has negative values"),
        ],
    )
    def test_errors(self, results, error, message):
        with pytest.raises(error, match=message):
            clouds(results)

    @pytest.mark.parametrize("pair", [([0.0, 0.0], [0.0, 0.0]), ([2.0], [3.0])])
    def test_sets_without_spread(self, pair):
        drawn(clouds({"a": pair}))


class TestStrengthSweeps:
    def environments(self) -> dict:
        rng = np.random.default_rng(0)

        def cloud(distance: float, error: float) -> tuple:
            return distance * rng.lognormal(0.0, 0.2, 300), error * rng.lognormal(0.0, 0.5, 300)

        sets = {"model": cloud(3.0, 0.1), "noise 0.1": cloud(0.5, 0.04), "real": (cloud(2.0, 1.0)[0], np.zeros(300))}
        medians = {"model": [(3.0, 0.1)], "noise 0.1": [(0.05, 0.0004), (0.5, 0.04), (5.0, 4.0)]}
        return {"Hopper": (sets, medians), "Walker": (sets, medians)}

    def test_a_row_per_environment_with_the_clouds_and_the_medians(self):
        figure = strength_sweeps(self.environments(), width=6.5)
        assert len(figure.axes) == 2 * 4
        assert legend_of(figure) == ["model", "noise 0.1", "real"]
        for index, name in enumerate(("Hopper", "Walker")):
            joint, top, side, sweep = figure.axes[4 * index : 4 * index + 4]
            assert top.get_title(loc="left") == name
            assert [len(axes.lines) for axes in (joint, top, side)] == [3, 3, 3]
            # A line across the panel at the model's distance, its marker, the curve, and the cloud's strength on it.
            across, model, curve, chosen = sweep.lines
            assert (list(across.get_xdata()), list(across.get_ydata())) == ([3.0, 3.0], [0, 1])
            assert model.get_xydata().tolist() == [[3.0, 0.1]]
            assert curve.get_xydata().tolist() == [[0.05, 0.0004], [0.5, 0.04], [5.0, 4.0]]
            assert chosen.get_xydata().tolist() == [[0.5, 0.04]]
            assert (sweep.get_xscale(), sweep.get_yscale()) == ("log", "log")
            # The same set looks the same in both panels.
            for cloud, marker in ((joint.lines[0], model), (joint.lines[1], chosen)):
                assert (cloud.get_color(), cloud.get_marker()) == (marker.get_color(), marker.get_marker())
            assert curve.get_linestyle() == top.lines[1].get_linestyle() != top.lines[0].get_linestyle()
        drawn(figure)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"medians": {"real": [(1.0, 0.0)]}}, "medians of 'real' must be positive and finite"),
            ({"medians": {"model": [(1.0, math.nan)]}}, "medians of 'model' must be positive and finite"),
            ({"medians": {"model": [1.0, 2.0]}}, r"medians of 'model' have shape \(2,\); wanted \[K, 2\]"),
            ({"medians": {"other": [(1.0, 1.0)]}}, "Walker has medians of 'other', but no such set"),
            ({"sets": {"model": ([1.0], [1.0])}}, r"Walker has the sets \['model'\]; wanted those of the first"),
            ({"width": 3.3}, r"width is 3.3; wanted at least 5 inches"),
        ],
    )
    def test_errors(self, change, message):
        environments = self.environments()
        sets, medians = environments["Walker"]
        environments["Walker"] = (change.get("sets", sets), change.get("medians", medians))
        with pytest.raises(ValueError, match=message):
            strength_sweeps(environments, width=change.get("width", 6.5))

    def test_no_environment(self):
        with pytest.raises(ValueError, match="environments has 0 entries"):
            strength_sweeps({})


class TestFidelityCost:
    def test_a_panel_per_figure_and_a_line_per_preset(self):
        figure = fidelity_cost(
            {
                "cpu": [{"seconds": 60, "marginal": 0.9, "gap": 3.0}, {"seconds": 6, "marginal": 0.8, "gap": None}],
                "gpu": [{"seconds": 30.0, "marginal": 0.95, "gap": math.nan}],
            }
        )
        marginal, gap = figure.axes
        assert [line.get_xydata().tolist() for line in marginal.lines] == [[[6.0, 0.8], [60.0, 0.9]], [[30.0, 0.95]]]
        assert [line.get_xydata().tolist() for line in gap.lines] == [[[60.0, 3.0]], []]
        assert (marginal.get_xlabel(), marginal.get_ylabel()) == ("seconds", "marginal similarity (best: 1)")
        assert gap.get_ylabel() == "gap"
        assert legend_of(figure) == ["cpu", "gpu"]
        assert len({(line.get_marker(), line.get_linestyle()) for line in marginal.lines}) == 2
        drawn(figure)

    @pytest.mark.parametrize(
        ("results", "message"),
        [
            ({"cpu": [{"marginal": 0.9}]}, r"results\['cpu'\]\[0\] has seconds=None; wanted a positive number"),
            ({"cpu": [{"seconds": -1.0, "marginal": 0.9}]}, "has seconds=-1.0"),
            ({"cpu": [{"seconds": 1.0}]}, "results has no figures besides seconds"),
        ],
    )
    def test_errors(self, results, message):
        with pytest.raises(ValueError, match=message):
            fidelity_cost(results)
