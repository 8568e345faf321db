"""The programs that the how-tos show."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def program(page: str, number: int = 1) -> str:
    """Return a Python block of a how-to, which is a whole program: the first by default."""
    text = (ROOT / f"docs/howto/{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(blocks[number - 1])
