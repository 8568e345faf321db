"""The programs that the how-tos show."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def program(page: str) -> str:
    """Return the first Python block of a how-to, which is its whole program."""
    text = (ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]
