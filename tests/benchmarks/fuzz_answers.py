"""A million damaged responses: what each is read as, and whether its task id is kept."""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/support

from support.samples import reader_of, request_to, samples

from fuhu_runway import errors
from fuhu_runway._wire.encode import Reply
from fuhu_runway._wire.tables import ENDPOINTS, SUBMITS
from fuhu_runway.models import Balance, TaskRecord

ID: Final = "573772da-c2ec-4a60"
SEEDS: Final = [sample.body[:4000] for sample in samples()] + [
    json.dumps(body).encode()
    for body in (
        {"task_id": ID},
        {"id": ID, "status": "queued", "error": {"code": "", "message": ""}},
        {"code": 200, "msg": "ok", "data": {"task_id": ID}},
        {"code": 400, "msg": "busy", "data": {"id": ID}},
        {"success": False, "message": "quota exhausted", "data": {"taskId": ID}},
        {"code": "invalid_request", "message": "no", "result": ID},
        {"data": [{"task_id": ID}], "error": "too many requests"},
        {"code": 1, "data": json.dumps({"task_id": ID})},
    )
]
PIECES: Final = [
    *(b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"\n", b"\xff"),
    *(b"null", b"true", b"false", b"NaN", b"0", b"200", b"400", b"429", b"1e999", b'""', b"{}"),
    *(b'"task_id"', b'"id"', b'"data"', b'"code"', b'"error"', b'"status"', b'"success"'),
    *(b'"msg"', b'"busy"', b'"2"', b'"invalid_request"', b'"insufficient_user_quota"'),
    *("余额不足".encode(), "繁忙".encode("gbk"), b"<html>", b'<div id="root">', b"\x1f\x8b"),
    *(b"\xef\xbb\xbf", b"[" * 900),
]
TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+|.', re.DOTALL)
STATUSES: Final = [200] * 8 + [100, 201, 202, 301, 307, 400, 401, 402, 403, 404, 408, 409, 413, 422]
STATUSES += [425, 429, 429, 499, 500, 502, 503, 504, 524, 600]
HEADERS: Final[list[dict[str, str]]] = [
    {},
    {"content-type": "application/json"},
    {"content-type": "text/html"},
    {"cf-mitigated": "challenge"},
    {"retry-after": "1893456000", "date": "odd"},
]
PAID: Final = {row.name for row in SUBMITS.values()}
USUAL_ID: Final = re.compile(r"(?=[^\d]*\d)[A-Za-z0-9-]{6,64}")


def mutated(rng: random.Random) -> bytes:
    """Return a seed after some changes, most of them to whole tokens."""
    body = rng.choice(SEEDS)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        tokens = TOKEN.findall(body)[:3000] or [b""]
        at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        change = rng.choice(CHANGES)
        body = change(rng, tokens, at, other)
    if rng.random() < 0.02:
        body = body.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return body


Change = Callable[[random.Random, list[bytes], int, int], bytes]
CHANGES: Final[list[Change]] = [
    lambda rng, tokens, at, _: b"".join([*tokens[:at], rng.choice(PIECES), *tokens[at + 1 :]]),
    lambda rng, tokens, at, _: b"".join([*tokens[:at], rng.choice(PIECES), *tokens[at:]]),
    lambda _, tokens, at, __: b"".join(tokens[:at] + tokens[at + 1 :]),
    lambda _, tokens, at, other: b"".join([*tokens[:at], tokens[other], *tokens[at:]]),
    lambda _, tokens, at, other: b"".join([*tokens[:at], tokens[other], *tokens[at + 1 :]]),
    lambda _, tokens, at, __: b"".join(tokens[:at]),
    lambda rng, tokens, _, __: b"".join(tokens) + rng.choice(SEEDS),
    lambda _, tokens, __, ___: json.dumps(b"".join(tokens).decode("latin-1")).encode(),
    lambda rng, tokens, at, _: (
        b"".join(tokens[:at]) + rng.randbytes(1) + b"".join(tokens[at + 1 :])
    ),
]


def usual_ids(body: bytes) -> set[str]:
    """Return the ids at usual places of what is strictly JSON; shares no code with the package."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return set()
    return {name for name in _usual_ids(value) if USUAL_ID.fullmatch(name)}


def _usual_ids(value: Any, depth: int = 2) -> Iterator[str]:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        names = [value.get(key) for key in ("task_id", "taskId", "id")]
        yield from (name for name in names if isinstance(name, str))
        for key in ("data", "result"):
            if isinstance(value.get(key), str):
                yield value[key]
            elif depth > 1:
                yield from _usual_ids(value.get(key), depth - 1)


def judged(reply: Reply) -> str:
    """Return what an answer was read as: the class, or what is wrong with that."""
    name = reply.request.endpoint.name
    result: TaskRecord | Balance | Exception
    try:
        result = reader_of(name)(reply)
    except errors.RunwayError as error:
        result = error
    except Exception as defect:  # noqa: BLE001  (the fuzzer searches for these)
        return f"WRONG {type(defect).__name__}"
    ids = usual_ids(reply.body) if name in PAID else set()
    if ids and isinstance(result, errors.RunwayError):
        if getattr(result, "fate", None) is not errors.Fate.UNKNOWN or "Nothing was" in str(result):
            return "WRONG called free of charge"
        if result.task_id is None:
            return "WRONG without the id"
    return type(result).__name__ + (" (names a task)" if ids else "")


def main() -> int:
    """Read the given number of responses, and count what they were read as."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=100_000, help="how many answers")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter()
    slowest, slow_body, begun = 0.0, b"", time.monotonic()
    requests = {name: request_to(name) for name in ENDPOINTS}
    for _ in range(options.number):
        # Half of them are responses to paid requests, where more can go wrong.
        name = rng.choice(sorted(PAID)) if rng.random() < 0.5 else rng.choice(sorted(ENDPOINTS))
        body = mutated(rng)
        status, headers = rng.choice(STATUSES), rng.choice(HEADERS)
        reply = Reply(requests[name], status, headers, body, received_at=1.7e9)
        before = time.monotonic()
        verdict = judged(reply)
        if time.monotonic() - before > slowest:
            slowest, slow_body = time.monotonic() - before, body
        counts[verdict] += 1
        if verdict.startswith("WRONG") and counts[verdict] <= 3:
            print(verdict, name, reply.status, dict(reply.headers), body[:400])
    for verdict, count in counts.most_common():
        print(f"{count:>9,}  {verdict}")
    took = time.monotonic() - begun
    print(f"{options.number:>9,}  answers with seed {options.seed}, {took:.0f} s, ", end="")
    print(f"the slowest {slowest * 1000:.0f} ms, of {len(slow_body):,} bytes")
    return 1 if any(verdict.startswith("WRONG") for verdict in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
