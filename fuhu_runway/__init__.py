"""
An asyncio SDK for Runway-style video generation: submit once, pay once, never lose a clip.

Names are imported when they are first asked for, so that importing the package costs next to
nothing.

PYTEST_DONT_REWRITE: pytest.main() may come after this import, and would warn of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, hooks
    from ._wire.tables import GATEWAYS
    from .background import BackgroundJob
    from .batch import Batch, Item, Outcome, Summary
    from .callbacks import CallbackReceiver
    from .client import Client
    from .downloads import Progress
    from .journal import Journal
    from .models import (
        ActOne,
        Balance,
        BalanceRoute,
        Gateway,
        ImageToVideo,
        KeyStyle,
        Limits,
        MotionVector,
        OfficialImageToVideo,
        PollPolicy,
        RetryPolicy,
        TaskRecord,
        TaskState,
        TextToVideo,
        Timeouts,
        VideoToVideo,
    )
    from .paths import safe_name
    from .task import Clip, Task

_HOMES = {
    "_wire.tables": ("GATEWAYS",),
    "background": ("BackgroundJob",),
    "batch": ("Batch", "Item", "Outcome", "Summary"),
    "callbacks": ("CallbackReceiver",),
    "client": ("Client",),
    "downloads": ("Progress",),
    "journal": ("Journal",),
    "models": (
        "ActOne",
        "Balance",
        "BalanceRoute",
        "Gateway",
        "ImageToVideo",
        "KeyStyle",
        "Limits",
        "MotionVector",
        "OfficialImageToVideo",
        "PollPolicy",
        "RetryPolicy",
        "TaskRecord",
        "TaskState",
        "TextToVideo",
        "Timeouts",
        "VideoToVideo",
    ),
    "paths": ("safe_name",),
    "task": ("Clip", "Task"),
}
_MODULES = ("errors", "hooks")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "GATEWAYS",
    "ActOne",
    "BackgroundJob",
    "Balance",
    "BalanceRoute",
    "Batch",
    "CallbackReceiver",
    "Client",
    "Clip",
    "Gateway",
    "ImageToVideo",
    "Item",
    "Journal",
    "KeyStyle",
    "Limits",
    "MotionVector",
    "OfficialImageToVideo",
    "Outcome",
    "PollPolicy",
    "Progress",
    "RetryPolicy",
    "Summary",
    "Task",
    "TaskRecord",
    "TaskState",
    "TextToVideo",
    "Timeouts",
    "VideoToVideo",
    "errors",
    "hooks",
    "safe_name",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
