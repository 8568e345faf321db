"""Requests as bytes, as the database of a fleet keeps them."""

import base64
import json
from pathlib import Path
from typing import Any, Protocol

import attrs

from fuhu_runway._media import local_fields
from fuhu_runway.inputs import KINDS
from fuhu_runway.items import Item
from fuhu_runway.models import MotionVector, usage_error


class Cipher(Protocol):
    """What encrypts the requests in the database, such as `cryptography.fernet.Fernet`."""

    def encrypt(self, data: bytes, /) -> bytes:
        """Return *data* encrypted."""
        ...

    def decrypt(self, token: bytes, /) -> bytes:
        """Return what was encrypted; raise if it was encrypted with another key."""
        ...


def packed(item: Item, *, retry_failed: bool, cipher: Cipher | None) -> bytes:
    """Return an item as JSON, encrypted if there is a *cipher*."""
    request = item.request
    values = attrs.asdict(request)
    for field in local_fields(request):
        local = values[field.name]
        if isinstance(local, bytes):
            values[field.name] = {"base64": base64.b64encode(local).decode()}
        else:
            values[field.name] = {"path": str(local.absolute())}
    whole = {
        "kind": next(name for name, kind in KINDS.items() if kind is type(request)),
        "request": values,
        "custom_id": item.custom_id,
        "source": item.source,
        "retry_failed": retry_failed,
    }
    body = json.dumps(whole, default=dict).encode()
    return body if cipher is None else cipher.encrypt(body)


def unpacked(
    body: bytes, key: str, *, is_encrypted: bool, cipher: Cipher | None
) -> tuple[Item, bool]:
    """
    Return the item of a job, and whether it is submitted again if it failed before.

    Raises:
        UsageError: It is encrypted with another cipher, or a local file of the request is not on
            this machine.
    """
    if is_encrypted:
        body = _opened(body, cipher)
    whole: dict[str, Any] = json.loads(body)
    values, kind = whole["request"], KINDS[whole["kind"]]
    for field in attrs.fields(kind):
        match values[field.name]:
            case {"path": path} if "media" in field.metadata:
                values[field.name] = Path(path)
            case {"base64": text} if "media" in field.metadata:
                values[field.name] = base64.b64decode(text)
            case dict(axes) if field.name == "motion":
                values[field.name] = MotionVector(**axes)
    name, request = whole["custom_id"], kind(**values)
    item = Item(request, name, whole["source"], key=key if name is None else None)
    return item, whole["retry_failed"]


def _opened(body: bytes, cipher: Cipher | None) -> bytes:
    reason = "and this worker has no cipher"
    if cipher is not None:
        try:
            return cipher.decrypt(body)
        except Exception as error:  # noqa: BLE001  (each kind of cipher has its own)
            reason = f"and the cipher of this worker cannot decrypt it ({type(error).__name__})"
    raise usage_error(
        "cipher",
        f"The request is encrypted, {reason}.",
        "Pass the same cipher as on the other machines.",
    )
