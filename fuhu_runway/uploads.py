"""
Where the local files of requests are put, so that the gateway can download them.

The official format takes most files as they are. The reverse format takes addresses only, so a
client with local files needs `Client(uploads=...)`: an `Uploader`, or `GatewayFiles()`.
"""

from collections.abc import Awaitable
from typing import Protocol

import attrs


class Uploader(Protocol):
    """
    Puts a file where the gateway can download it, and returns the address; async or not.

    A function that is not async is called in a thread. The same bytes always have the same name.
    Their address is used again for half an hour, or for `reuse_seconds` if the function has such
    an attribute, so it must work for longer than that. What it raises ends the submission with
    `UploadFailed`, and nothing is charged.
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
