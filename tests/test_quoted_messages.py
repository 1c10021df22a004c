"""The messages that the page on troubleshooting quotes are those that the library writes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(r'\*\*"([^"]+)"\*\*', (ROOT / "docs" / "troubleshooting.md").read_text().replace("\n", " "))


def texts() -> list[str]:
    """Every string of the code, f-strings with ``{}`` in place of what they insert."""
    found = []
    for folder in ("src", "adapters"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    )
    return found


def test_there_are_some():
    assert len(QUOTED) > 15


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_written_somewhere(quoted):
    assert any(quoted in text for text in texts())
