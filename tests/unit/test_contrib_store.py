import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.clients import quick_client
from support.media import PNG
from support.servers import raw_server, reply

pytest.importorskip("obstore", reason="the extra store is not installed")

import obstore
from obstore.store import LocalStore, MemoryStore, S3Store

from fuhu_runway.contrib.store import ObjectStore
from fuhu_runway.errors import UploadFailed, UsageError
from fuhu_runway.testing import Simulator

NAME = "9f86d081.png"


def bucket(url: str) -> S3Store:
    """Return a bucket at *url*, with a key that opens nothing."""
    return S3Store(
        "pictures",
        endpoint=url.rstrip("/"),
        region="eu-central-1",
        access_key_id="marked-id",
        secret_access_key="marked-secret",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


async def test_a_bucket_gets_the_file_and_signs_its_address() -> None:
    """The file is put under its hash with its type, and the signed address expires as set."""
    async with raw_server(reply(b"", ETag='"1"')) as raw:
        files = ObjectStore(bucket(raw.url), prefix="in/", expires=timedelta(hours=2))
        address = await files(PNG, NAME, "image/png")
    (request,) = raw.requests
    assert request.startswith(b"PUT /pictures/in/9f86d081.png HTTP/1.1\r\n")
    assert b"content-type: image/png" in request.lower()
    assert request.endswith(PNG)
    assert address.startswith(f"{raw.url}pictures/in/{NAME}?")
    assert "X-Amz-Expires=7200" in address
    assert "X-Amz-Signature=" in address
    assert files.reuse_seconds == 3600


async def test_a_public_bucket_needs_no_signature() -> None:
    """With a public_url, the address is that of the file under it."""
    store = MemoryStore()
    files = ObjectStore(store, public_url="https://cdn.example/pictures/")
    address = await files(PNG, NAME, "image/png")
    assert address == f"https://cdn.example/pictures/fuhu-runway/{NAME}"
    found = obstore.get(store, f"fuhu-runway/{NAME}")
    # Older versions write the names of attributes in lower case.
    types = [value for name, value in found.attributes.items() if name.lower() == "content-type"]
    assert types == ["image/png"]
    assert bytes(found.bytes()) == PNG


async def test_a_folder_takes_files_without_their_type(tmp_path: Path) -> None:
    """A folder that a web server shows is a store as well."""
    files = ObjectStore(LocalStore(tmp_path), public_url="https://cdn.example")
    await files(PNG, NAME, "image/png")
    assert content(tmp_path / "fuhu-runway" / NAME) == PNG


def content(path: Path) -> bytes:
    """Return the bytes of a file."""
    return path.read_bytes()


async def test_a_client_puts_its_files_there(gateway: Simulator) -> None:
    """A request carries the address that the store gave, and one file is put there once."""
    store = MemoryStore()
    files = ObjectStore(store, public_url="https://cdn.example")
    async with quick_client(gateway, uploads=files) as client:
        for _ in range(2):
            await client.generate("a kitten", image=PNG)
    (path,) = [one["path"] for page in obstore.list(store) for one in page]
    assert [task.request["image"] for task in gateway.tasks] == [f"https://cdn.example/{path}"] * 2


async def test_an_error_of_the_store_is_a_failed_upload(gateway: Simulator) -> None:
    """What the store says of a refusal is shown without addresses and keys."""
    denied = reply(b"<Error><Code>AccessDenied</Code></Error>", "403 Forbidden")
    async with (
        raw_server(denied) as raw,
        quick_client(gateway, uploads=ObjectStore(bucket(raw.url))) as client,
    ):
        with pytest.raises(UploadFailed, match="PermissionDenied") as caught:
            await client.generate("a kitten", image=PNG)
    assert "marked" not in str(caught.value)
    assert raw.url not in str(caught.value)
    assert not gateway.requests


@pytest.mark.parametrize(
    "wrong", [3600, timedelta(minutes=9), timedelta(days=8), timedelta(0), None]
)
def test_an_expiry_that_cannot_work_is_refused(wrong: Any) -> None:
    """Shorter than ten minutes or longer than a week is refused when the store is made."""
    with pytest.raises(UsageError, match="expires must be a timedelta"):
        ObjectStore(MemoryStore(), expires=wrong)


def test_a_store_shows_its_kind_alone() -> None:
    """The repr has no key of the bucket and no address."""
    shown = repr(ObjectStore(bucket("http://127.0.0.1:1"), public_url="https://marked.example"))
    assert "S3Store" in shown
    assert "marked" not in shown


def test_without_the_extra_the_import_says_which_is_needed() -> None:
    """Without obstore, the error names the command that installs it."""
    code = "import sys; sys.modules['obstore'] = None; import fuhu_runway.contrib.store"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert 'pip install ".[store]"' in ended.stderr
