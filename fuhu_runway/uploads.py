"""
Where files are stored: those of requests, so that the gateway can download them, and clips.

The official format takes most files as they are. The reverse format takes addresses only, so a
client with local files needs `Client(uploads=...)`: an `Uploader`, or `GatewayFiles()`.
Clips are saved in a folder or in a `ClipStore`.
"""

from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

import attrs


class Uploader(Protocol):
    """
    Puts a file where the gateway can download it, and returns the address; async or not.

    A function that is not async is called in a thread. The same bytes always have the same name.
    Their address is used again for half an hour, or for `reuse_seconds` if the function has such
    an attribute, so it must work for longer than that. What it raises ends the submission with
    `UploadFailed`, and nothing is charged; so it does if it takes longer than `Timeouts.total`.
    """

    def __call__(self, data: bytes, name: str, content_type: str, /) -> str | Awaitable[str]:
        """
        Return the http(s) URL of the file.

        Args:
            data: The whole file.
            name: A name made of a hash of the bytes and the ending of their type, such as
                "9f86d081….png".
            content_type: Such as "image/png", as the bytes tell it.
        """
        ...


@attrs.frozen
class GatewayFiles:
    """
    The gateway's own file route, as `Client(uploads=GatewayFiles())`.

    For gateways with a `Gateway.files_path`. It takes the client's key; an upload costs nothing.
    """


@attrs.frozen
class StoreError(Exception):
    """Why an object store cannot be used, and what to do about it."""

    happened: str
    advice: str


class ClipStore(Protocol):
    """
    A store for clips, such as an `ObjectStore`, as `download_to` of a batch.

    A name is a file name without a folder. The methods raise `StoreError`, which becomes an
    error that says what happened to the money.
    """

    async def check_access(self) -> None:
        """Raise unless clips can be stored here."""

    async def put_clip(self, name: str, file: Path) -> None:
        """Put a file under a name, in place of what is there."""

    async def clip_size(self, name: str) -> int | None:
        """Return the size of an object, in bytes; None if there is none."""

    async def has_clip(self, name: str, file: Path) -> bool:
        """Return whether the object has the bytes of the file."""

    def clip_url(self, name: str) -> str:
        """Return the URL of an object, which has no secrets and gives no access."""
