"""One HTML page of an evaluation that needs nothing else: no file beside it, no network, no script."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.meanings import Explained

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: #00694b; } .fair { color: #8a5a00; } .poor { color: #a83f00; font-weight: bold; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption, footer { color: #555; }
"""
#: What the pictures of `synther_buffers.commands.pictures` show.
_CAPTIONS = {
    "marginals": "Histograms of the least similar columns: real rows grey, synthetic rows as lines.",
    "correlations": "Correlations of the columns in real and in synthetic rows, and how far they differ.",
    "projection": "Both sets on the first two principal components of the real rows.",
}
#: The browser itself refuses whatever a name might bring in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_page(
    real: str,
    synthetic: str,
    lines: Iterable[Explained],
    columns: Mapping[str, float],
    pictures: Mapping[str, bytes | str],
    version: str,
) -> str:
    """The page as text.

    Args:
        real: what the real dataset is called.
        synthetic: what the synthetic one is called.
        lines: the figures, as `synther_buffers.evaluation.meanings.explain` tells them.
        columns: the marginal similarity of each column, in [0, 1]; shown from the least similar on.
        pictures: by name, the bytes of a PNG or why there is none.
        version: of this library.
    """
    figures = "\n".join(
        f'<tr><td>{escape(line.name)}</td><td class="value">{escape(line.value)}</td>'
        f'<td class="{escape(line.verdict)}">{escape(line.verdict)}</td><td>{escape(line.meaning)}</td></tr>'
        for line in lines
    )
    similarities = "\n".join(
        f'<tr><td>{escape(name)}</td><td class="value">{value:.4f}</td></tr>'
        for name, value in sorted(columns.items(), key=lambda item: item[1])
    )
    title = f"{escape(synthetic)} against {escape(real)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>How close the synthetic rows are to the real ones. A verdict says how a figure compares with those of real rows among
themselves; it does not say how well an agent will learn.</p>
<h2>Figures</h2>
<table>
<thead><tr><th>figure</th><th>value</th><th>verdict</th><th>meaning</th></tr></thead>
<tbody>
{figures}
</tbody>
</table>
<h2>Columns</h2>
<p>Similarity of each column's distribution, the least similar first; 1: the same.</p>
<table>
<thead><tr><th>column</th><th>similarity</th></tr></thead>
<tbody>
{similarities}
</tbody>
</table>
<h2>Pictures</h2>
{"".join(_picture(name, picture) for name, picture in pictures.items())}
<footer>synther-buffers {escape(version)}</footer>
</body>
</html>
"""


def check_page(page: Path) -> None:
    """Refuse at once what could not be written after minutes.

    Raises:
        ValueError: something has that name, or there is no folder to write into.
    """
    if os.path.lexists(page):
        raise ValueError(f"--html is {page}, which exists already; choose another name or remove it.")
    if not page.parent.is_dir():
        raise ValueError(f"--html is {page}, but there is no folder {page.parent} to write it into.")


def write_page(page: Path, text: str) -> None:
    """Write the page; nothing has its name until it is complete.

    Raises:
        ValueError: something got that name meanwhile; it is left as it is.
        OSError: it cannot be written.
    """
    from ..datasets.files import new_file, place

    with tempfile.TemporaryDirectory(prefix=f".{page.name}.", dir=page.parent) as folder:
        with new_file(Path(folder) / "page") as file:
            file.write(text.encode(errors="replace"))
        place(Path(folder) / "page", page)


def _picture(name: str, picture: bytes | str) -> str:
    if isinstance(picture, str):
        return f"<p>{escape(name)}: not drawn ({escape(picture)})</p>\n"
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    caption = _CAPTIONS.get(name, "")
    return (
        f'<figure><img src="{source}" alt="{escape(name)}"><figcaption>{escape(name)}. {escape(caption)}</figcaption>'
        "</figure>\n"
    )
