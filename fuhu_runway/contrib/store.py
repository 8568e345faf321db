"""
Local pictures and clips in an object store, such as S3. Needs the extra `store`.

Rule 1: a file's key is the hash of its bytes, so that a file is in the store once.
Rule 2: nothing is deleted; a lifecycle rule of the bucket does that.
"""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs

from fuhu_runway.models import usage_error

try:
    import obstore
    from obstore.store import LocalStore
except ImportError as missing:
    raise ImportError(
        'fuhu_runway.contrib.store needs an extra; in a checkout: python -m pip install ".[store]"',
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from obstore import Attributes

LONGEST: Final = timedelta(days=7)
"""S3 and Google Cloud Storage sign no address for longer."""
SHORTEST: Final = timedelta(minutes=10)
"""The gateway may download the file only minutes after it has accepted the request."""


def _check_expires(_store: object, _field: object, value: object) -> None:
    if not isinstance(value, timedelta) or not SHORTEST <= value <= LONGEST:
        raise usage_error(
            "expires",
            "expires must be a timedelta from 10 minutes to 7 days.",
            "Choose a time in which the gateway has surely downloaded the file, such as a day.",
        )


@attrs.frozen
class ObjectStore:
    """
    Puts local files into an object store, as `Client(uploads=ObjectStore(...))`.

    Raises:
        UsageError: *expires* is not a timedelta from 10 minutes to 7 days.
    """

    #: A store of obstore, such as `obstore.store.S3Store("my-bucket")`.
    store: Any = attrs.field(repr=lambda store: type(store).__name__)
    #: What the keys of the files begin with.
    prefix: str = attrs.field(default="fuhu-runway/", kw_only=True)
    #: How long a signed address works; it is used again for half of that time.
    expires: timedelta = attrs.field(
        default=timedelta(days=1), kw_only=True, validator=_check_expires
    )
    #: The address under which the bucket is public; None signs an address for each file.
    public_url: str | None = attrs.field(default=None, kw_only=True, repr=False)

    @property
    def reuse_seconds(self) -> float:
        """How long an address is used again for the same file, in seconds."""
        return self.expires.total_seconds() / 2

    async def __call__(self, data: bytes, name: str, content_type: str, /) -> str:
        """Put a file into the store, and return its address."""
        return await asyncio.to_thread(self._put, data, name, content_type)

    def _put(self, data: bytes, name: str, content_type: str) -> str:
        key = f"{self.prefix}{name}"
        # The official API insists on the type; a folder has no place for it.
        has_types = not isinstance(self.store, LocalStore)
        attributes: Attributes | None = {"Content-Type": content_type} if has_types else None
        obstore.put(self.store, key, data, attributes=attributes)
        if self.public_url is not None:
            return f"{self.public_url.rstrip('/')}/{key}"
        return obstore.sign(self.store, "GET", key, self.expires)
