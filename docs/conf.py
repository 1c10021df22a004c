"""Configuration of the documentation: ``python -m sphinx -n -W --keep-going docs build/docs``."""

import re

import typer
from docutils import nodes
from docutils.parsers.rst import Directive

from synther_buffers import __version__
from synther_buffers.commands.app import app

project = "synther-buffers"
author = "The synther-buffers developers"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
# Tables that benchmarks write are included by the pages around them.
exclude_patterns = [
    "_build",
    "results/fidelity_reference.md",
    "results/fidelity_equal_seconds.md",
    "results/fidelity_choices.md",
    "results/few_rows_table.md",
    "results/fidelity_all.md",
    "results/refresh_table.md",
    "results/training_step_table.md",
    "results/published_table.md",
    "results/presets_table.md",
    "results/offline_table.md",
]

html_theme = "furo"
html_title = f"synther-buffers {release}"
html_copy_source = False
highlight_language = "none"

# Docstrings: Google style, with single backticks around names.
default_role = "code"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
# Several attributes with one description are a line, as several arguments are.
napoleon_custom_sections = [("Attributes", "params_style")]
# Links within the package are checked; other packages' documentation would have to be fetched.
nitpick_ignore_regex = [("py:.*", r"(?!synther_buffers\.).*"), ("py:class", r".*\.(SyntheticSlots|\w+Keywords)")]


class CommandHelp(Directive):
    """``.. command-help:: upsample``: what the command's ``--help`` says, without colours and boxes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One literal block."""
        group = typer.main.get_command(app)
        parent = group.make_context("synther-buffers", [], resilient_parsing=True)
        command = group.commands[self.arguments[0]]
        command.rich_markup_mode = None
        context = type(parent)(command, info_name=command.name, parent=parent, max_content_width=96, terminal_width=96)
        text = command.get_help(context)
        return [nodes.literal_block(text, text)]


def prepare(sphinx, what, name, obj, options, lines) -> None:
    """What napoleon does not understand: names of arguments over two lines, and arguments described elsewhere."""
    for index in range(len(lines) - 1, 0, -1):
        if re.fullmatch(r"\s+(\w+, )+\w+,", lines[index - 1]):
            lines[index - 1 : index + 1] = [f"{lines[index - 1]} {lines[index].strip()}"]
        elif lines[index - 1].startswith("Args: "):
            lines[index] = lines[index].strip()


def setup(sphinx) -> None:
    """Called by Sphinx."""
    sphinx.connect("autodoc-process-docstring", prepare, priority=400)  # before napoleon
    sphinx.add_directive("command-help", CommandHelp)
