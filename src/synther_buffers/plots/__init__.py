"""Pictures as matplotlib figures, sized for a page (6.9 inches) or for a column (3.3 inches).

Every function returns a `matplotlib.figure.Figure` that is not registered with pyplot: save it with
``figure.savefig(path)``, or make it the last value of a notebook cell after ``%matplotlib inline``. Nothing is shown,
and pyplot, the backend and matplotlib's settings are not changed. Colours are Okabe and Ito's; line styles, markers or
hatches make the same distinctions.
"""

try:
    import matplotlib  # noqa: F401  (only to say what is missing)
except ImportError as error:
    raise ImportError('synther_buffers.plots needs matplotlib: pip install "synther-buffers[plots]"') from error

from .comparisons import comparison
from .generation import generation_animation, generation_strip
from .rows import correlations, marginals, projection
from .runs import refreshes
from .style import COLUMN, PAGE

__all__ = [
    "COLUMN",
    "PAGE",
    "comparison",
    "correlations",
    "generation_animation",
    "generation_strip",
    "marginals",
    "projection",
    "refreshes",
]
