"""
Replies of a gateway as samples that anyone may read: every secret is replaced by a stand-in.

Rule 1: what is not known to be harmless is replaced. Harmless are the names of JSON keys, small
numbers, and the words that the tables know.
Rule 2: the same value has the same stand-in everywhere, so that an id is still recognised.
Rule 3: a stand-in is of the same kind as its value, so that the reply is still read the same way.
"""

import ipaddress
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from fuhu_runway._json import decode, parsed, text_of
from fuhu_runway._redact import PLAIN_NAME, redact
from fuhu_runway._urls import is_web_address
from fuhu_runway._wire import tables
from fuhu_runway._wire.decode import read_balance, read_task
from fuhu_runway._wire.encode import Reply, Request
from fuhu_runway._wire.refusals import INDEX_PAGE_MARKS, MAX_BODY, NO_METHOD, REFUSALS
from fuhu_runway._wire.salvage import salvage
from fuhu_runway._wire.values import NO_REFUND, instant_in, number_in, retry_after
from fuhu_runway.errors import GatewayError, RunwayError, UnreadableReply, UsageError
from fuhu_runway.models import DEFAULT_MODEL, Balance, TaskRecord
from fuhu_runway.paths import write_whole

WORDS: Final = frozenset(tables.STATES).union(
    NO_REFUND,
    *(row.codes for row in REFUSALS),
    # What the dialects are recognised by, and what a gateway says where all is well.
    {"success", "ok", "none", "null", "true", "false", "成功"},
    {"billing_subscription", "list", "token_usage"},
    # What `first_clip` sends.
    {"cinematic", DEFAULT_MODEL},
)
"""Values that are kept wherever they occur, in lower case."""
TEXTS: Final = sorted({text for row in REFUSALS for text in row.texts}, key=len, reverse=True)
"""Reasons that the tables know: of a message that contains one, only that is kept."""
FURTHER_TEXTS: Final = sorted({text for row in REFUSALS for text in row.also})
"""Texts that are kept as well, since they change what a reason beside them means."""
REASON_KEYS: Final = frozenset(
    {"message", "msg", "description", "detail", "reason", "fail_reason", "failure", "error"}
)
WORD_KEYS: Final = tables.STATE_KEYS | {
    *("code", "type", "failureCode", "failure_code", "action", "object", "platform"),
}
"""Keys whose value is a word of the gateway's, so that also a word we do not know is kept."""
_WORD: Final = re.compile(r"[^\W\d_]{2,20}(?:[_:. -][^\W\d_]{1,20}){0,3}")
_HARMLESS: Final = re.compile(r"\d{1,3}(?:\.\d+)?%|\d{1,4}:\d{1,4}|\d{1,3} points")
"""A percentage, a ratio, or a few points."""
_ID: Final = re.compile(r"(?=[^\d]*\d)[\w.:-]{3,128}", re.ASCII)
_MEDIA_TYPE: Final = re.compile(
    r"(?:application/(?:problem\+)?json|application/xml|text/(?:html|plain|json|xml))"
    r"(?:; ?charset=(?:utf-8|gbk|gb2312|iso-8859-1))?"
)
_ENDING: Final = re.compile(r"\.(?:mp4|mov|webm|png|jpe?g|webp|m3u8)\Z")

SMALL: Final = 1000
"""Numbers below this identify no account: statuses, seconds, percentages, the points of a clip."""
SENTINELS: Final = frozenset({tables.UNLIMITED, 999_999_999})
"""Numbers that stand for no limit (api-facts 7)."""
FIRST_SECOND: Final = 1_735_689_600
"""The first stand-in for a time: the beginning of 2025, in Unix seconds."""
SAMPLE_URL: Final = f"{tables.GATEWAYS['fuhuapi'].base_url}/"
"""The origin that the samples' requests go to."""

_HEAD: Final = """\
# Replies of a gateway, recorded by fuhu-runway {version}, in the form of tests/samples.
# Keys, prompts, ids, addresses, names, times and amounts are replaced by stand-ins.
# `expect` is what this version reads in a reply: check it before a sample becomes a test.
base:
  endpoint: feed
  status: 200
  headers: {}
"""


class Transcript:
    """
    The replies of a gateway to one client, recorded to be shown to other people.

    Hand it to `examine` and `first_clip`; `save` writes it, `str` returns it. Of replies that are
    read alike, such as those of a task that runs, only the first is kept.
    """

    def __init__(self) -> None:
        self._replies: list[Reply] = []

    def __repr__(self) -> str:
        return f"<Transcript of {len(self._replies)} replies>"

    def add(self, reply: Reply) -> None:
        """Keep a reply. It is read only when the transcript is, since a task may depend on it."""
        # The lists of an account also show what other programs did.
        if reply.request.endpoint not in {tables.ACCOUNT_TASKS, tables.KEY_LOG}:
            self._replies.append(reply)

    def __str__(self) -> str:
        stand_ins, shown, counts = StandIns(), dict[Any, str](), defaultdict[str, int](int)
        for reply in self._replies:
            sample = _sample(reply, stand_ins)
            seen = {**sample["expect"], "progress": None, "updated_at": None}
            key = json.dumps([sample["endpoint"], sample["status"], sample["request"], seen])
            if key not in shown:
                counts[sample["endpoint"]] += 1
                shown[key] = _as_yaml(f"{sample['endpoint']}-{counts[sample['endpoint']]}", sample)
        head = _HEAD.replace("{version}", version("fuhu-runway"))
        return "\n".join([head, *shown.values()])

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """
        Write the transcript to a file, whole or not at all, and return its path.

        Raises:
            UsageError: There is such a file already, or it cannot be written.
        """
        target = Path(path)
        check_free(target, overwrite=overwrite)
        text = str(self)
        try:
            write_whole(target, text)
        except OSError as error:
            happened = f"The transcript cannot be written to {target.name!r} ({error.strerror})."
            raise _not_written(happened, "Use another file.") from error
        return target


def check_free(path: Path, *, overwrite: bool) -> None:
    """
    Check that a transcript may be saved at *path*.

    Raises:
        UsageError: There is such a file already, or no such folder.
    """
    if not path.parent.is_dir():
        raise _not_written(f"There is no folder {str(path.parent)!r}.", "Create it.")
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise _not_written(f"The file {path.name!r} exists already.", "Use another file.")


def _not_written(happened: str, advice: str) -> UsageError:
    # Not `usage_error`: the replies may be those to a paid request.
    return UsageError(happened, "No transcript was written.", advice, field="record")


@attrs.define(eq=False, repr=False)
class StandIns:
    """The stand-ins of one transcript."""

    _known: dict[tuple[str, str], int] = attrs.field(factory=dict)
    _counts: defaultdict[str, int] = attrs.field(factory=lambda: defaultdict(int))
    #: Texts of the request that a reply belongs to, which no word may quote.
    secrets: tuple[str, ...] = ()
    #: The smallest number that is replaced.
    small: float = SMALL

    def _number_of(self, kind: str, original: object) -> int:
        """Return the number of a value among those of its kind, the same for the same value."""
        key = (kind, str(original))
        if key not in self._known:
            self._counts[kind] += 1
            self._known[key] = self._counts[kind]
        return self._known[key]

    def value(self, value: Any, key: str = "") -> Any:
        """Return a JSON value with everything replaced that could identify someone."""
        if isinstance(value, dict):
            return {self.key(name): self.value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, key) for item in value]
        if isinstance(value, str):
            return self.text(value, key)
        return value if value is None or isinstance(value, bool) else self.number(value)

    def key(self, name: str) -> str:
        is_plain = PLAIN_NAME.fullmatch(name) and not re.search(r"\d{4}", name)
        if is_plain and redact(name, self.secrets) == name:
            return name
        return f"key_{self._number_of('key', name)}"

    def number(self, value: float) -> float:
        if abs(value) < self.small or value in SENTINELS:
            return round(value, 4)  # without an exponent, which YAML reads as text
        if 1e9 <= value < 1e14:
            in_ms = value > 1e11
            second = FIRST_SECOND + self._number_of("time", int(value / 1000 if in_ms else value))
            return second * 1000 if in_ms else second
        number = self._number_of("number", value)
        return number + (10**8 if value >= 10**8 else 1000)

    def text(self, text: str, key: str = "") -> str:  # noqa: PLR0911  (one kind of text a line)
        plain = text.strip()
        number = None if "_" in plain else number_in(plain)
        if not plain or plain.lower() in WORDS or _HARMLESS.fullmatch(plain):
            return plain
        if number is not None:
            return str(self.number(int(number) if number.is_integer() else number))
        if (inner := parsed(plain)) is not None:
            return json.dumps(self.value(inner, key), ensure_ascii=False)
        if plain.startswith("/") or is_web_address(plain.replace(" ", "%20")):
            return self.url(plain)
        if instant_in(plain) is not None:
            second = FIRST_SECOND + self._number_of("time", plain)
            return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if key in WORD_KEYS and _WORD.fullmatch(plain) and redact(plain, self.secrets) == plain:
            return plain
        if key in REASON_KEYS:
            said = plain.lower()
            known = [
                *[one for one in TEXTS if one in said][:1],
                *(one for one in FURTHER_TEXTS if one in said),
            ]
            shown = " ".join(known) or f"reason {self._number_of('reason', plain)}"
            return shown + self.ids_in(plain)
        if _is_ip_address(plain):
            return f"192.0.2.{self._number_of('ip', plain) % 256}"
        if _ID.fullmatch(plain):
            return self.id(plain)
        return f"text {self._number_of('text', plain)}"

    def ids_in(self, text: str) -> str:
        """Return the stand-ins of the task ids that a text names, named the same way."""
        found = salvage(text.encode("utf-8", "replace"), is_whole=True)
        return "".join(f" (task_id: {self.text(task_id)})" for task_id in found)

    def id(self, original: str) -> str:
        return f"00000000-0000-4000-8000-{self._number_of('id', original):012}"

    def url(self, address: str) -> str:
        try:
            parts = urlsplit(address.replace(" ", "%20"))
        except ValueError:  # such as brackets without an IPv6 address
            return f"text {self._number_of('text', address)}"
        ending = _ENDING.search(parts.path.lower())
        file = f"/file-{self._number_of('file', parts.path)}{ending[0] if ending else ''}"
        query = "?signature=hidden" if parts.query else ""
        if not parts.netloc:
            return f"{file}{query}"
        host = f"host-{self._number_of('host', parts.hostname)}.example"
        return f"{parts.scheme and f'{parts.scheme}:'}//{host}{file}{query}"

    def path(self, request: Request) -> str:
        """Return the path of a request's URL, with names in place of an id and of a key."""
        endpoint = request.endpoint
        start = endpoint.path.partition("{")[0]
        prefix = urlsplit(request.url).path.rpartition(start)[0]
        if prefix not in PREFIXES:
            prefix = f"/prefix-{self._number_of('prefix', prefix)}"
        query = urlsplit(request.url).query.partition("=")[0]
        return f"{prefix}{endpoint.path}{query and f'?{query}=…'}"


PREFIXES: Final = {"", *(row.prefix for row in tables.GATEWAYS.values())}.union(
    row.official_prefix for row in tables.GATEWAYS.values()
)


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        return False
    return True


def _sample(reply: Reply, stand_ins: StandIns) -> dict[str, Any]:
    """Return one reply as a sample."""
    request = reply.request
    stand_ins.secrets = request.secrets
    # An amount of money below a thousand is still the user's own affair.
    stand_ins.small = 2 if request.endpoint.route is not None else SMALL
    body = _body(reply, stand_ins)
    headers = _headers(reply, stand_ins)
    sent = {"method": request.endpoint.verb, "path": stand_ins.path(request)}
    if request.body is not None:
        sent["body"] = json.dumps(stand_ins.value(decode(request.body)), ensure_ascii=False)
    return {
        "endpoint": request.endpoint.name,
        "status": reply.status,
        "headers": headers,
        "request": sent,
        "body": body,
        "expect": _expected(reply, headers, body, stand_ins),
    }


def _body(reply: Reply, stand_ins: StandIns) -> str:
    try:
        if not reply.cut:
            return json.dumps(stand_ins.value(decode(reply.body)), ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    text = text_of(reply.body[:MAX_BODY]).strip()
    if "<html" in text.lower() or text[:9].lower() == "<!doctype":
        mark = next((mark for mark in INDEX_PAGE_MARKS if mark in text), "")
        title = f"Method {NO_METHOD}" if NO_METHOD in text.lower() else "A page"
        return f"<!doctype html><title>{title}</title><div {mark}></div>{stand_ins.ids_in(text)}"
    return stand_ins.text(text, "message") if text else ""


def _headers(reply: Reply, stand_ins: StandIns) -> dict[str, str]:
    """Return the headers that decide how a reply is read."""
    found: dict[str, str] = {}
    media_type = _MEDIA_TYPE.match(reply.headers.get("content-type", "").lower())
    if media_type:
        found["Content-Type"] = media_type[0]
    delay = retry_after(reply.headers, reply.received_at)
    if delay is not None:
        found["Retry-After"] = str(round(delay))
    if "location" in reply.headers:
        found["Location"] = stand_ins.url(reply.headers["location"])
    if reply.headers.get("cf-mitigated") == "challenge":
        found["Cf-Mitigated"] = "challenge"
    return found


def _expected(
    reply: Reply, headers: Mapping[str, str], body: str, stand_ins: StandIns
) -> dict[str, Any]:
    """Return what this version reads in a sample, without the fields that have their defaults."""
    request = reply.request
    polled = None if request.task_id is None else stand_ins.text(request.task_id)
    sample = Reply(
        Request(request.endpoint, SAMPLE_URL, {}, task_id=polled),
        reply.status,
        {name.lower(): value for name, value in headers.items()},
        body.encode(),
    )
    try:
        read = read_balance if request.endpoint.route else read_task
        found: TaskRecord | Balance = read(sample)
    except RunwayError as error:
        return _expected_error(error, polled)
    if isinstance(found, Balance):
        amounts = attrs.asdict(found, filter=attrs.filters.exclude("raw"))
        return {"gives": "balance", **_without_defaults(amounts)}
    names = (
        *("task_id", "state", "word", "progress", "video_url", "poster_url", "last_frame_url"),
        *("prompt", "prompt_en", "message", "points", "refunded", "created_at", "updated_at"),
    )
    values = {name: getattr(found, name) for name in names} | {"state": found.state.name}
    for name in ("created_at", "updated_at"):
        values[name] = values[name] and values[name].isoformat()
    return _without_defaults(values)


def _expected_error(error: RunwayError, polled: str | None) -> dict[str, Any]:
    """Return what the reader of samples knows of an error; a poll's task is its default."""
    values: dict[str, Any] = {"raises": type(error).__name__, "request_id": error.request_id}
    if error.task_id != polled:
        values["task_id"] = error.task_id
    if isinstance(error, GatewayError):
        values |= {name: getattr(error, name) for name in ("code", "message", "retry_after")}
        values["fate"] = error.fate.name
    if isinstance(error, UnreadableReply):
        values |= {"fate": error.fate.name, "reasons": list(error.reasons)}
    return _without_defaults(values)


def _without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if value is not None and value is not False
    }


def _as_yaml(name: str, sample: Mapping[str, Any]) -> str:
    """Return a sample as YAML, of which JSON is a part; texts that contain JSON are quoted once."""
    lines = [f"{name}:", "  why: Recorded."]
    for key, value in sample.items():
        if isinstance(value, str):
            shown = "'" + value.replace("'", "''") + "'" if key == "body" else value
        else:
            shown = json.dumps(value, ensure_ascii=False)
        lines.append(f"  {key}: {shown}")
    return "\n".join(lines) + "\n"
