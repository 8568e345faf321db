"""
An asyncio SDK for Runway-style video generation: submit once, pay once, never lose a clip.

Public names are imported on first use, so that importing the package takes almost no time.

PYTEST_DONT_REWRITE: pytest.main() may be called after this import, and would warn about it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, hooks
    from ._wire.tables import GATEWAYS
    from .account import Account
    from .background import BackgroundJob
    from .batch import Batch
    from .callbacks import CallbackReceiver
    from .client import Client
    from .downloads import Progress
    from .errors import RunwayError
    from .items import Item, Outcome, Summary
    from .journal import Journal
    from .models import (
        ActOne,
        Aleph,
        Balance,
        BalanceRoute,
        Gateway,
        Generation,
        ImageToVideo,
        KeyStyle,
        Limits,
        MotionVector,
        OfficialCharacterPerformance,
        OfficialImageToVideo,
        OfficialRequest,
        OfficialTextToVideo,
        OfficialVideoToVideo,
        OfficialVideoUpscale,
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
    from .uploads import GatewayFiles

    __version__: str

__all__ = [
    "GATEWAYS",
    "Account",
    "ActOne",
    "Aleph",
    "BackgroundJob",
    "Balance",
    "BalanceRoute",
    "Batch",
    "CallbackReceiver",
    "Client",
    "Clip",
    "Gateway",
    "GatewayFiles",
    "Generation",
    "ImageToVideo",
    "Item",
    "Journal",
    "KeyStyle",
    "Limits",
    "MotionVector",
    "OfficialCharacterPerformance",
    "OfficialImageToVideo",
    "OfficialRequest",
    "OfficialTextToVideo",
    "OfficialVideoToVideo",
    "OfficialVideoUpscale",
    "Outcome",
    "PollPolicy",
    "Progress",
    "RetryPolicy",
    "RunwayError",
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


_HOMES = {
    "GATEWAYS": "_wire.tables",
    "Account": "account",
    "BackgroundJob": "background",
    "Batch": "batch",
    "CallbackReceiver": "callbacks",
    "Client": "client",
    "Clip": "task",
    "GatewayFiles": "uploads",
    "Item": "items",
    "Journal": "journal",
    "Outcome": "items",
    "Progress": "downloads",
    "RunwayError": "errors",
    "Summary": "items",
    "Task": "task",
    "safe_name": "paths",
}
"""The module of each public name that is not in `models`."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fuhu-runway")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in {"errors", "hooks"}:
        return importlib.import_module(f".{name}", __name__)
    module = importlib.import_module(f".{_HOMES.get(name, 'models')}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
