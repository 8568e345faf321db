"""
Files in an object store, such as S3: those of requests, and clips. Needs the extra `store`.

Rule 1: a file of a request has the hash of its bytes as its key, so it is in the store once.
Rule 2: nothing is deleted; a lifecycle rule of the bucket does that.
Rule 3: only the synchronous calls of obstore are used, in threads: its asynchronous ones abort the
interpreter if that ends right after a call.
Rule 4: the text of a store's error is not shown, since it may quote a signed URL.
"""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from fuhu_runway.models import usage_error
from fuhu_runway.uploads import StoreError

try:
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url
except ImportError as missing:
    raise ImportError(
        'fuhu_runway.contrib.store needs an extra; in a checkout: python -m pip install ".[store]"',
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from obstore import Attributes

T = TypeVar("T")

LONGEST: Final = timedelta(days=7)
"""S3 and Google Cloud Storage sign no address for longer."""
SHORTEST: Final = timedelta(minutes=10)
"""The gateway may download the file only minutes after it has accepted the request."""

PATIENT: Final[Any] = {"max_retries": 30, "retry_timeout": timedelta(minutes=2)}
"""How long obstore retries if the store of a URL does not answer, or is overloaded."""
HASTY: Final[Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""The same before anything is paid for, so that a wrong URL fails soon."""

MARKER: Final = ".fuhu-runway"
"""An empty object, which is put to check that clips can be put."""

_BUCKETS: Final = {
    S3Store: ("s3", "bucket"),
    GCSStore: ("gs", "bucket"),
    AzureStore: ("az", "container_name"),
}
_SCHEMES: Final = ("s3://", "gs://", "az://", "file://")
_METADATA: Final = ("169.254.169.254", "metadata.google.internal")
_BAD_KEYS: Final = re.compile(
    "<Code>(InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired)<"
)


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
    Puts files into an object store.

    As `Client(uploads=ObjectStore(...))`, the local files of requests; as
    `download_to=ObjectStore(...)` of a batch or of `Client.carry_out`, the clips.

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

    #: The same store with fewer retries, to check it with before clips are paid for; None uses
    #: *store*.
    hasty: Any = attrs.field(default=None, kw_only=True, repr=False)
    #: The prefixes under which clips could be put: of thousands of jobs, the first one finds out.
    _checked: set[str] = attrs.field(init=False, factory=set, eq=False, repr=False)

    @classmethod
    def from_url(cls, url: str) -> "ObjectStore":
        """
        Return the store of a URL for clips, such as "s3://bucket/clips/".

        The credentials come from the environment or the machine, as for the tools of the provider.
        If the store does not answer, requests are retried for two minutes.

        Raises:
            UsageError: It is not the URL of a store, or it has a user, a query or a fragment.
        """
        return _opened(url)

    @property
    def reuse_seconds(self) -> float:
        """How long an address is used again for the same file, in seconds."""
        return self.expires.total_seconds() / 2

    async def __call__(self, data: bytes, name: str, content_type: str, /) -> str:
        """Put a file into the store, and return its address."""
        return await asyncio.to_thread(self._put, data, name, content_type)

    def _put(self, data: bytes, name: str, content_type: str) -> str:
        key = f"{self.prefix}{name}"
        obstore.put(self.store, key, data, attributes=self._attributes(content_type))
        if self.public_url is not None:
            return f"{self.public_url.rstrip('/')}/{key}"
        return obstore.sign(self.store, "GET", key, self.expires)

    def _attributes(self, content_type: str) -> "Attributes | None":
        # The official API insists on the type; a folder has no place for it.
        return None if isinstance(self.store, LocalStore) else {"Content-Type": content_type}

    # Clips

    async def check_access(self) -> None:
        """Put an empty object once, to check that clips can be put; for the client."""
        if self.prefix not in self._checked:
            store = self.hasty or self.store
            await _called(lambda: obstore.put(store, f"{self.prefix}{MARKER}", b""))
            self._checked.add(self.prefix)

    async def put_clip(self, name: str, file: Path) -> None:
        """Put a clip in the place of what is there; for the client."""
        attributes, key = self._attributes("video/mp4"), f"{self.prefix}{name}"
        await _called(lambda: obstore.put(self.store, key, file, attributes=attributes))

    async def clip_size(self, name: str) -> int | None:
        """Return the size of an object, in bytes; None if there is none. For the client."""

        def ask() -> int | None:
            try:
                return obstore.head(self.store, f"{self.prefix}{name}")["size"]
            except FileNotFoundError:
                return None

        return await _called(ask)

    async def has_clip(self, name: str, file: Path) -> bool:
        """Return whether an object has the bytes of a file; for the client."""

        def compare() -> bool:
            found = obstore.get(self.store, f"{self.prefix}{name}")
            if found.meta["size"] != file.stat().st_size:
                return False
            with file.open("rb") as local:
                return all(bytes(part) == local.read(len(part)) for part in found.stream())

        return await _called(compare)

    def clip_url(self, name: str) -> str:
        """Return the URL of an object, without credentials; for the client."""
        scheme, field = _BUCKETS.get(type(self.store), ("", ""))
        place = f"{self.prefix}{name}"
        inner = getattr(self.store, "prefix", None)
        if isinstance(self.store, LocalStore):
            return f"{Path(inner or '/').as_uri()}/{place}"
        if not scheme:
            return place
        return "/".join(filter(None, (f"{scheme}://{self.store.config[field]}", inner, place)))


@lru_cache(maxsize=32)  # each store has connections of its own
def _opened(url: str) -> ObjectStore:
    advice = f"Use a URL such as s3://bucket/clips/; it begins with {', '.join(_SCHEMES)}."
    if not url.startswith(_SCHEMES) or set(url) & set("@?#"):
        # The URL itself is not shown: it may have a password in it.
        raise usage_error("download_to", "This is not the URL of an object store.", advice)
    folders: Any = {"mkdir": True} if url.startswith("file://") else {}
    try:
        stores = [
            from_url(url, **folders, **({} if folders else {"retry_config": retries}))
            for retries in (PATIENT, HASTY)
        ]
    except (BaseError, ValueError, OSError) as error:
        fault = type(error).__name__
    else:
        return ObjectStore(stores[0], prefix="", hasty=stores[1])
    raise usage_error("download_to", f"The object store cannot be opened ({fault}).", advice)


async def _called(call: Callable[[], T]) -> T:
    """Call obstore in a thread, and translate its errors."""
    try:
        return await asyncio.to_thread(call)
    except (BaseError, OSError, ValueError) as error:
        fault = _fault_of(error)
    raise fault  # outside the clause: the error of the store may quote a signed URL


def _fault_of(error: Exception) -> StoreError:
    text = str(error)
    status = re.search(r"status code: (\d{3} [A-Z][A-Za-z ]{1,40})", text)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    said = ", ".join(found[1] for found in (status, code) if found) or type(error).__name__
    if (
        isinstance(error, UnauthenticatedError)
        or _BAD_KEYS.search(text)
        or any(host in text for host in _METADATA)
    ):
        return StoreError(
            f"The object store got no valid credentials ({said}).",
            "Set them in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    if isinstance(error, PermissionDeniedError | PermissionError):
        return StoreError(
            f"The object store denies access ({said}).",
            "Allow these credentials to put, get and list objects here.",
        )
    if isinstance(error, FileNotFoundError):
        return StoreError(
            f"The object store has no such bucket or folder ({said}).",
            "Create it, or correct the URL.",
        )
    return StoreError(
        f"The object store could not be used, despite retries ({said}).",
        "Check that it can be reached and has room; then try again.",
    )
