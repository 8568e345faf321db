"""A whole gateway for tests and for trying things out: no key, no cost, no network."""

from . import faults
from ._books import Seen, TaskView
from ._callbacks import Callbacks
from ._dialects import DIALECTS
from ._state import LedgerEntry, read_ledger
from .simulator import Simulator

__all__ = [
    "DIALECTS",
    "Callbacks",
    "LedgerEntry",
    "Seen",
    "Simulator",
    "TaskView",
    "faults",
    "read_ledger",
]
