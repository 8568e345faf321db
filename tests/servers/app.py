"""An app under uvicorn, as users write it: it pays, waits, saves, and is stopped by a signal."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fuhu_runway import Client, PollPolicy, hooks

FOLDER = Path(os.environ["APP_FOLDER"])
JOURNAL = FOLDER / "run.db" if os.environ["APP_JOURNAL"] else None


def listen(event: hooks.Event) -> None:
    """Record each clip that is saved or returned."""
    if isinstance(event, hooks.DownloadFinished | hooks.ClipHandedOut):
        with (FOLDER / "ended.txt").open("a") as file:
            file.write(f"{event.task_id}\n")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client with the app, and record what is unfinished when it stops."""
    polling = PollPolicy(first=0.02, max_interval=0.02)
    client = Client(journal=JOURNAL, polling=polling, hooks=[listen])
    async with client:
        app.state.client = client
        yield
    left = [task.id for task in client.unfinished]
    (FOLDER / "unfinished.json").write_text(json.dumps(left))


app = FastAPI(lifespan=lifespan)


@app.post("/start/{name}")
async def start(name: str) -> str:
    """Pay, and save the clip in the background."""
    client: Client = app.state.client
    job = await client.start("a kitten", save=FOLDER / f"{name}.mp4", custom_id=name)
    return job.id


@app.post("/wait/{name}")
async def wait(name: str) -> str:
    """Pay, wait and save while the browser waits."""
    client: Client = app.state.client
    clip = await (await client.start("a puppy", save=FOLDER / f"{name}.mp4", custom_id=name))
    return clip.id


@app.post("/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    """Pay, and send each change of the task."""
    client: Client = app.state.client
    task = await client.generate("a foal", custom_id=name)

    async def lines() -> AsyncIterator[str]:
        async for record in task.updates():
            yield json.dumps(record.as_dict()) + "\n"

    return StreamingResponse(lines())
