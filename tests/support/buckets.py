"""A little object store on loopback, as far as S3 needs it for clips, and clients of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import attrs
from aiohttp import web

QUICKLY: Any = {
    "max_retries": 5,
    "backoff": {
        "init_backoff": timedelta(milliseconds=1),
        "max_backoff": timedelta(milliseconds=2),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=2),
}
"""Retries with pauses of a few milliseconds."""


@attrs.define(eq=False)
class LittleS3:
    """One bucket, "clips"; a test sets what it answers next."""

    port: int = 0
    objects: dict[str, bytes] = attrs.field(factory=dict)
    types: dict[str, str] = attrs.field(factory=dict)
    #: The verb and the key of each request.
    requests: list[tuple[str, str]] = attrs.field(factory=list)
    #: Answers to the next requests of a verb, as statuses and codes of S3.
    faults: list[tuple[str, int, str]] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        bucket, _, key = request.match_info["path"].partition("/")
        self.requests.append((request.method, key))
        for fault in self.faults:
            verb, status, code = fault
            if verb == request.method:
                self.faults.remove(fault)
                return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>")
        if bucket != "clips":
            return web.Response(status=404, text="<Error><Code>NoSuchBucket</Code></Error>")
        if request.method == "PUT":
            self.objects[key] = await request.read()
            self.types[key] = request.content_type
            return web.Response(headers={"ETag": '"1"'})
        if key not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        return web.Response(
            body=self.objects[key],
            headers={"ETag": '"1"', "Last-Modified": "Tue, 01 Dec 2026 10:00:00 GMT"},
        )


@asynccontextmanager
async def little_s3() -> AsyncIterator[LittleS3]:
    """Serve an empty bucket on a free port."""
    store = LittleS3()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", store.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        store.port = runner.addresses[0][1]
        yield store
    finally:
        await runner.cleanup()


def environment(store: LittleS3) -> dict[str, str]:
    """Return what a program needs to find the store, with a key that opens nothing."""
    return {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "marked-id",
        "AWS_SECRET_ACCESS_KEY": "marked-secret",
    }


def s3(store: LittleS3, bucket: str = "clips") -> Any:
    """Return obstore's client of a bucket; its retries take a few milliseconds."""
    from obstore.store import S3Store

    return S3Store(
        bucket,
        endpoint=store.url,
        region="eu-central-1",
        access_key_id="marked-id",
        secret_access_key="marked-secret",
        client_options={"allow_http": True},
        retry_config=QUICKLY,
    )
