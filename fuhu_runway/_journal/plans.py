"""What the journal writes about a request: hashes, and what its duration depends on."""

import asyncio
import hashlib
import json

import attrs

from fuhu_runway._media import local_fields, read
from fuhu_runway.models import Generation

from .states import Plan


def plan_of(
    request: Generation,
    key: str | None = None,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Plan:
    """Return the plan of a request; its key is the fingerprint by default."""
    mark = fingerprint(request)
    prompt = getattr(request, "prompt", None)
    return Plan(
        key=key or mark,
        fingerprint=mark,
        endpoint=type(request).__name__,
        custom_id=custom_id,
        model=getattr(request, "model", None),
        seconds=getattr(request, "seconds", None),
        tag=tag,
        prompt_hash=hash_prompt(prompt) if prompt else None,
    )


async def planned(
    request: Generation,
    key: str | None = None,
    custom_id: str | None = None,
    tag: str | None = None,
) -> Plan:
    """Return `plan_of` a request; its local files, if it has any, are read in a thread."""
    if local_fields(request):
        return await asyncio.to_thread(plan_of, request, key, custom_id, tag)
    return plan_of(request, key, custom_id, tag)


def nth(fingerprint: str, times: int) -> str:
    """Return the key of the *times*-th job with this content."""
    return f"{fingerprint}:{times}"


def fingerprint(request: Generation) -> str:
    """
    Return a hash of the request; the journal keys it with its salt before writing it.

    A local file counts by its content, so that a resumed batch knows it wherever it is.
    """
    values = attrs.asdict(request)
    for field in local_fields(request):
        values[field.name] = {"sha256": read(field, values[field.name]).digest}
    fields = json.dumps(values, default=dict)
    # Parsed again, since only keys that are all text can be sorted.
    content = json.dumps([type(request).__name__, json.loads(fields)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def hash_prompt(prompt: str) -> str:
    """Return a hash of a prompt, which ignores how its words are separated."""
    # Gateways trim white space before they list the prompt. A lone surrogate has its own bytes.
    return hashlib.sha256(" ".join(prompt.split()).encode(errors="surrogatepass")).hexdigest()
