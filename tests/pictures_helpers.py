"""What the tests of pictures share."""

import io

from matplotlib.figure import Figure
from PIL import Image


def drawn(figure: Figure) -> Image.Image:
    """The figure as pixels: drawing it must not fail either."""
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return Image.open(buffer)


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]
