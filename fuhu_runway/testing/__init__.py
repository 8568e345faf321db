"""
A simulated gateway for tests and for trying things out: no key, no cost, no network.

Names are imported on first use, since every pytest run imports this package for the plugin.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import faults
    from ._pytest.virtual import virtual_time
    from ._server.callbacks import Callbacks
    from ._server.lists import AccountLists
    from ._server.replies import DIALECTS, SHAPES
    from ._server.state import LedgerEntry, read_ledger
    from ._server.store import Seen, TaskView
    from .faults import KNOWN
    from .simulator import Simulator

_HOME_OF = {
    "AccountLists": "_server.lists",
    "DIALECTS": "_server.replies",
    "Callbacks": "_server.callbacks",
    "KNOWN": "faults",
    "LedgerEntry": "_server.state",
    "SHAPES": "_server.replies",
    "Seen": "_server.store",
    "Simulator": "simulator",
    "TaskView": "_server.store",
    "read_ledger": "_server.state",
    "virtual_time": "_pytest.virtual",
}

__all__ = [
    "DIALECTS",
    "KNOWN",
    "SHAPES",
    "AccountLists",
    "Callbacks",
    "LedgerEntry",
    "Seen",
    "Simulator",
    "TaskView",
    "faults",
    "read_ledger",
    "virtual_time",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "faults":
        return importlib.import_module(".faults", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
