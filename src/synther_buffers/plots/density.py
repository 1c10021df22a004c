"""Densities of points in the plane, for contours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_BINS = 96


class Density(NamedTuple):
    """A smoothed two-dimensional histogram: centres of its bins ``[B]``, and shares ``[B, B]`` by (y, x)."""

    x: np.ndarray
    y: np.ndarray
    share: np.ndarray

    def levels(self, *masses: float) -> list[float]:
        """The densities above which these shares of all points lie, ascending as `contour` requires."""
        ordered = np.sort(self.share, axis=None)[::-1]
        total = np.cumsum(ordered)
        index = [int(np.searchsorted(total, mass * total[-1])) for mass in masses]
        return np.unique(ordered[np.minimum(index, len(ordered) - 1)]).tolist()


def measure_density(
    x: np.ndarray, y: np.ndarray, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> Density:
    """The density of points ``[N]``; points outside the limits count at the edge.

    The bandwidth is at least one bin, and otherwise three quarters of Scott's, which smooths too much if the
    distribution is not Gaussian.
    """
    counts, x_edges, y_edges = np.histogram2d(
        np.clip(x, *x_limits), np.clip(y, *y_limits), bins=_BINS, range=(x_limits, y_limits)
    )
    smooth_x, smooth_y = _smoother(x, x_edges), _smoother(y, y_edges)
    return Density(_centres(x_edges), _centres(y_edges), smooth_y @ counts.T @ smooth_x.T / len(x))


def _smoother(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """A matrix ``[B, B]`` that spreads each bin's count over its neighbours and preserves the total."""
    bandwidth = 0.75 * float(values.std()) * len(values) ** (-1 / 6) / float(edges[1] - edges[0])
    index = np.arange(len(edges) - 1)
    weights = np.exp(-0.5 * ((index[:, None] - index) / max(bandwidth, 1.0)) ** 2)
    return weights / weights.sum(0)


def _centres(edges: np.ndarray) -> np.ndarray:
    return 0.5 * (edges[1:] + edges[:-1])
