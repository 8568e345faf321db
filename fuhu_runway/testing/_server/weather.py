"""The faults that `Simulator.weather` picks from, by kind of request."""

from collections.abc import Mapping
from typing import Final

from fuhu_runway.testing import faults
from fuhu_runway.testing.faults import Fault, Where

# Faults that cost nothing: no task is created without its id reaching the client.
_ANYWHERE: Final = (
    faults.TooManyRequests(0.1),
    faults.TooManyRequests("0.1", status=503),
    faults.empty_429(),
    faults.Informational(),
    faults.Head(headers=(("Content-Security-Policy", "a" * 8200),)),
    faults.Chunked(),
    faults.Gzipped(),
)
_UNPAID: Final = (
    *_ANYWHERE,
    faults.server_error(502),
    faults.Drop(reset=True),
    faults.Cut(1000),
)
_READS: Final = (
    *_UNPAID,
    faults.Truncated(),
    faults.Response(401),
    faults.Response(404),
    *map(faults.known, ("challenge", "captive_portal", "request_failed")),
)
_SHAPES: Final = ("bom", "php_warning", "raw_control", "empty_error")
WEATHER: Final[Mapping[Where, tuple[Fault, ...]]] = {
    "submit": (*_ANYWHERE, *map(faults.OtherDialect, _SHAPES)),
    "feed": (
        *_READS,
        faults.EmptyFields(),
        faults.unknown_word(),
        faults.task_not_exist(),
        faults.known("task_not_exist_in_200"),
    ),
    "download": (
        *_UNPAID,
        faults.Response(202),
        faults.html_page(),
        faults.Redirect(),
        faults.IgnoresRange(),
        faults.Head(headers=(("ETag", None),)),
    ),
    "balance": _READS,
    "tasks": _READS,
    "charges": _READS,
}
