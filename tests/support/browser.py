"""A real browser, and a page that reports what it sees."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
from aiohttp import web

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
BROWSER: Final = next(filter(None, map(shutil.which, NAMES)), None)

FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # the tests may run as root, and the pages are ours
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

#: Plays each video until its picture moves, and tells what became of it and of everything else.
LOOK: Final = """
async function played(video) {
  video.muted = true;
  let trouble = null;
  await video.play().catch((error) => { trouble = String(error); });
  while (!trouble && !(video.currentTime > 0.05)) {
    await new Promise((next) => video.addEventListener("timeupdate", next, { once: true }));
  }
  return {
    trouble, source: video.currentSrc, duration: video.duration, at: video.currentTime,
    width: video.videoWidth, name: video.title,
  };
}
async function look() {
  const found = (kind) => [...document.querySelectorAll(kind)];
  const view = (shown) => {
    const style = getComputedStyle(shown);
    return { text: shown.innerText, color: style.color, background: style.backgroundColor,
             tags: [...shown.querySelectorAll("*")].map((one) => one.localName) };
  };
  return {
    videos: await Promise.all(found("video").map(played)),
    bars: found("progress").map((bar) => ({ position: bar.position, name: bar.title })),
    views: found("section > *").map(view),
    color: getComputedStyle(document.body).color,
    injected: window.injected ?? null,
  };
}
addEventListener("load", async () => {
  const seen = await look().catch((error) => ({ broken: String(error) }));
  await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
});
"""


@attrs.define(eq=False)
class Site:
    """One page on loopback, and the files of a folder."""

    folder: Path
    html: str = ""
    seen: "asyncio.Future[Any]" = attrs.field(factory=asyncio.Future)
    #: What the browser asked for, in order.
    asked: list[str] = attrs.field(factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path == "/seen":
            self.seen.set_result(json.loads(await request.text()))
            return web.Response()
        if request.path == "/":
            return web.Response(text=self.html, content_type="text/html")
        file = self.folder / request.path[1:]
        return web.FileResponse(file) if file.is_file() else web.Response(status=404)


@asynccontextmanager
async def opened(site: Site, profile: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a browser on the page of *site*, and return its process."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    quiet = asyncio.subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(
        *(str(BROWSER), *FLAGS, f"--user-data-dir={profile}", url),
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,  # it is many processes, and they end together
    )
    try:
        yield browser
    finally:
        with suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
        await browser.wait()
        await runner.cleanup()


async def look_at(views: list[str], folder: Path, profile: Path, *, scheme: str = "light") -> Any:
    """Return what a browser sees of *views* and which requests it makes."""
    shown = "\n".join(f"<section>{view}</section>" for view in views)
    html = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Views</title>"
        f'<meta name="color-scheme" content="{scheme}"><link rel=icon href="data:,">'
        f"<body>\n{shown}\n<script>{LOOK}</script>"
    )
    site = Site(folder, html)
    async with opened(site, profile) as browser:
        ended = asyncio.ensure_future(browser.wait())
        await asyncio.wait([site.seen, ended], return_when=asyncio.FIRST_COMPLETED)
        assert not ended.done(), f"the browser ended with {browser.returncode}"
        ended.cancel()
        return site.seen.result(), site.asked
