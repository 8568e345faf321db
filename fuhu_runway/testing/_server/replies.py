"""The responses in `replies.toml`, where each is written as it is sent."""

import tomllib
from importlib.resources import files
from typing import Any, Final

import attrs

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"


@attrs.frozen
class Shape:
    """One way to respond about a task, or a part of one."""

    help: str
    body: str
    #: The response to a submit; None if it has the same body.
    submit: str | None = None
    content_type: str = JSON
    encoding: str = "utf-8"


ROWS: Final[dict[str, dict[str, Any]]] = tomllib.loads(
    files(__package__).joinpath("replies.toml").read_text(encoding="utf-8")
)
PARTS: Final = {name: Shape(**row) for name, row in ROWS["parts"].items()}
DIALECTS: Final = {name: Shape(**row) for name, row in ROWS["dialects"].items()}
SHAPES: Final = {name: Shape(**row) for name, row in ROWS["shapes"].items()}
BALANCES: Final = {name: Shape(**row) for name, row in ROWS["balances"].items()}
