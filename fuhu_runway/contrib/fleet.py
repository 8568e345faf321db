"""
Many machines work on the same prompts. Needs the extra `fleet`, and a Postgres.

Rule 1: the queue may deliver a job twice; the journal lets one worker send it.
Rule 2: a job is delivered again until the journal says how it ended.
Rule 3: a worker whose lease has expired ends, since others have its jobs by then. Before that, it
writes the ids of the tasks that it has paid for.
"""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final, Self

import attrs

from fuhu_runway._arguments import KEY_VARIABLE, check, mark_of_key
from fuhu_runway._places import place_of
from fuhu_runway.client import Client
from fuhu_runway.errors import JournalError
from fuhu_runway.items import Item, Source, check_source, item_of, numbered, plan_for
from fuhu_runway.journal import Job, JobState, nth
from fuhu_runway.models import DEFAULT_WAIT, Limits, require_text, usage_error

try:
    import procrastinate
except ImportError as missing:
    raise ImportError(
        'fuhu_runway.contrib.fleet needs an extra; in a checkout: python -m pip install ".[fleet]"',
        name=missing.name,
    ) from missing

from ._fleet.queue import AGAIN, CHUNK, PAUSE, QUEUE, Queue
from ._fleet.requests import Cipher, packed
from ._fleet.worker import NOTED, LeaseExpired, Retries, Worker
from ._postgres import url_of
from .postgres import PostgresJournal
from .shared_pace import SharedPace

__all__ = ["RESTART_CODE", "Cipher", "Enqueued", "Fleet", "LeaseExpired", "Status", "WorkerStatus"]

RESTART_CODE: Final = 75
"""Exit code of a worker whose lease has expired: EX_TEMPFAIL, start it again."""


@attrs.frozen
class Enqueued:
    """What `Fleet.enqueue` did."""

    #: How many jobs are new.
    new: int
    #: How many were enqueued before.
    known: int


@attrs.frozen
class WorkerStatus:
    """A worker of a fleet."""

    id: int
    #: How long ago its last heartbeat was, in seconds.
    heartbeat_age: float
    #: How many jobs it holds.
    jobs: int


@attrs.frozen
class Status:
    """What a fleet is doing."""

    workers: list[WorkerStatus]
    #: How many jobs the journal has in each state.
    jobs: dict[JobState, int]
    #: How many jobs wait for a worker, ...
    ready: int
    #: ... wait for another attempt, ...
    scheduled: int
    #: ... and are being carried out.
    running: int
    #: The jobs in doubt: they may have been accepted.
    doubts: list[Job]
    #: The points that were spent and not refunded.
    points: float
    #: Requests per second of all workers together; None while they are not limited.
    rate: float | None
    #: How long the gateway wants no requests, in seconds.
    held: float


class Fleet:
    """
    Many workers on many machines that share one Postgres, and pay for each job once.

    Create it with the same arguments in the program that enqueues jobs and in each worker.

    Args:
        url: The database, such as `postgresql://host/name`; by default the environment variable
            FUHU_DATABASE_URL.
        limits: The limits of the API key. `requests_per_second` and `tasks_in_flight` hold for all
            workers together.
        download_to: Where clips are saved, as in `Client.carry_out`: a place that all workers
            reach; None saves nothing.
        max_points: Nothing more is sent once all workers together have spent this many points, by
            the journal. What is in flight at that moment may exceed it.
        timeout: How long a worker waits for a task, and then as long again for its file, in
            seconds. A task that takes longer is waited for again later.
        overwrite: Whether a clip may replace an existing file.
        cipher: Encrypts the requests in the database, such as `Fernet(key)`; the same on every
            machine.
        lease: After this many seconds without a heartbeat, the jobs of a worker go to others.
        replace_key: Whether a worker may have another key than the jobs that are left: after a key
            was revoked. Tasks that exist are found only with a key of the same account. Workers
            with the old key go on until they are stopped.
        client: Further arguments of `Client`, such as `api_key` and `base_url`.

    Raises:
        UsageError: An argument is wrong, or there is no URL.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        limits: Limits | None = None,
        download_to: str | os.PathLike[str] | None = None,
        max_points: float | None = None,
        timeout: float | None = DEFAULT_WAIT,
        overwrite: bool = False,
        cipher: Cipher | None = None,
        lease: float = 30.0,
        replace_key: bool = False,
        **client: Any,
    ) -> None:
        check(
            limits=limits,
            max_points=max_points,
            timeout=timeout,
            overwrite=overwrite,
            lease=lease,
            replace_key=replace_key,
        )
        url = url_of(url)
        self._limits = limits or Limits()
        self._max_points = max_points
        self._options: dict[str, Any] = {
            "download_to": download_to,
            "timeout": timeout,
            "overwrite": overwrite,
        }
        self._cipher = cipher
        self._lease = lease
        self._replace_key = replace_key
        self._url = url
        self._client_options = client
        #: The journal of all jobs.
        self.journal = PostgresJournal(url, wait=min(30.0, lease))
        self._queue = Queue(url)
        self._queue.app.add_tasks_from(self._blueprint(), namespace="fuhu")
        self._worker: Worker | None = None
        self._employing = asyncio.Lock()
        self._entered = 0
        self._opening = asyncio.Lock()
        self._is_ready = False

    def __repr__(self) -> str:
        return f"<Fleet {'open' if self._entered else 'closed'}>"

    # Opening and closing

    async def init(self) -> None:
        """
        Create the tables in the database, or update those of an older version.

        Raises:
            JournalTooNew: A newer version made them.
            JournalBusy: Another process holds a lock on them for longer than 20 seconds.
            JournalError: The database cannot be used.
        """
        await self.journal.init()
        async with self:
            await self._queue.init()
        await SharedPace(self._url).init()

    async def __aenter__(self) -> Self:
        async with self._opening:
            if not self._entered:
                try:
                    await self.journal.counts()  # whose errors say what is wrong
                    await self._queue.app.open_async()
                except BaseException:
                    await self._close()
                    raise
            self._entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._opening:
            self._entered -= 1
            if not self._entered:
                await self._close()

    async def _close(self) -> None:
        await self._dismiss()
        await self.journal.aclose()
        await self._queue.app.close_async()

    @asynccontextmanager
    async def _ready(self) -> AsyncIterator[None]:
        """Keep the fleet open, and raise if it has no tables."""
        async with self:
            if not self._is_ready:
                await self._queue.check()
                self._is_ready = True
            yield

    # Enqueuing

    async def enqueue(
        self, items: Source, *, name: str | None = None, retry_failed: bool = False
    ) -> Enqueued:
        """
        Add jobs to the queue; free, and sends nothing to the gateway.

        Enqueuing the same items again adds nothing: a job is known by its `custom_id`, else by its
        content and how often that has occurred in these items. Local files are read by the worker,
        from the same path.

        Args:
            items: Prompts, requests and items, as in `Batch`; read lazily.
            name: A name for all of them, which is refused for other items. With a name, the items
                are all read before the first one is added.
            retry_failed: Whether jobs that have failed count as new.

        Raises:
            UsageError: An item is not a request, *name* is not a usable text, or a `custom_id` or
                *name* belongs to something else.
            JournalError: The database cannot be used.
        """
        check_source(items)
        if name is not None:
            require_text("name", name)
        async with self._ready():
            if name is not None:
                whole = [item_of(thing, n) async for n, thing in numbered(items)]
                await self._check_name(name, whole)
                items = whole
            new = known = 0
            rows: list[tuple[str, str, bytes]] = []
            async with aclosing(self._rows(items, retry_failed=retry_failed)) as all_rows:
                async for row in all_rows:
                    rows.append(row)
                    if len(rows) == CHUNK:
                        new += await self._add(rows, retry_failed=retry_failed)
                        known += len(rows)
                        rows = []
            new += await self._add(rows, retry_failed=retry_failed)
            return Enqueued(new, known + len(rows) - new)

    async def _rows(
        self, items: Source, *, retry_failed: bool
    ) -> AsyncGenerator[tuple[str, str, bytes], None]:
        """Yield key, fingerprint and request of each item."""
        times = Counter[str]()
        named: dict[str, str] = {}
        async with aclosing(numbered(items)) as things:
            async for index, thing in things:
                item = item_of(thing, index)
                plan = await self.journal.keyed(await plan_for(item))
                key, mark = plan.key, plan.fingerprint
                if item.custom_id is None:
                    times[mark] += 1
                    key = nth(mark, times[mark])
                elif named.setdefault(key, mark) != mark:
                    raise usage_error(
                        "custom_id",
                        f"Two different requests have the custom_id {item.custom_id!r}.",
                        "Give each request a name of its own.",
                    )
                yield key, mark, packed(item, retry_failed=retry_failed, cipher=self._cipher)

    async def _add(self, rows: list[tuple[str, str, bytes]], *, retry_failed: bool) -> int:
        if not rows:
            return 0
        # One statement cannot tell two equal names apart.
        rows = list({row[0]: row for row in rows}.values())
        return await self._queue.add(
            rows, is_encrypted=self._cipher is not None, again=retry_failed
        )

    async def _check_name(self, name: str, items: list[Item]) -> None:
        """Refuse a name that other items have; take it once nothing else is wrong with these."""
        digest = hashlib.sha256()
        marks: dict[str, str] = {}
        async for key, mark, _ in self._rows(items, retry_failed=False):
            digest.update(f"{key} {mark}\n".encode())
            marks[key] = mark
        await self._queue.check_names(list(marks), list(marks.values()))
        if not await self._queue.set_once(f"source:{name}", digest.hexdigest()):
            raise usage_error(
                "name",
                f"Other items were enqueued as {name!r}.",
                "Use another name, or none: jobs that were enqueued before are not added again.",
            )

    async def left(self) -> int:
        """Return how many jobs are neither over nor in doubt."""
        async with self._ready():
            return await self._queue.left()

    # Following

    async def outcomes(self) -> AsyncGenerator[Job, None]:
        """
        Yield the row of each job as soon as it is saved, has failed or is in doubt.

        Ends when every job has ended or is in doubt. Leaving early cancels nothing. A job in doubt
        whose task is found later is yielded again.

        Raises:
            JournalError: The database cannot be used.
        """
        seen: dict[str, str] = {}
        async with self._ready():
            while True:
                is_last = not await self._queue.left()
                for key, state in await self._queue.ended():
                    if seen.get(key) != state:
                        seen[key] = state
                        job = await self.journal.find(key)
                        if job is not None:
                            yield job
                if is_last:
                    return
                await asyncio.sleep(PAUSE)

    async def status(self) -> Status:
        """Return what the fleet is doing: workers, jobs by state, doubts, and the pace."""
        async with self._ready():
            entries = await self._queue.entries()
            rate, held = await self._queue.pace()
            return Status(
                workers=[WorkerStatus(**row) for row in await self._queue.workers()],
                jobs=await self.journal.counts(),
                doubts=await self.journal.jobs(JobState.IN_DOUBT),
                points=await self._queue.spent(),
                rate=rate,
                held=held,
                **entries,
            )

    async def cancel(self, name: str) -> Job | None:
        """
        Cancel a job that was not sent, or stop following its task.

        Waits until its worker has let go of it, or has sent no heartbeat for `lease` seconds.

        Args:
            name: Its key or its custom id.

        Returns:
            None if it was not sent. Otherwise its row: it is paid for or in doubt, and its task
            continues at the gateway.

        Raises:
            UsageError: There is no such job.
        """
        async with self._ready():
            found = await self.journal.find(name)
            keys = [found.key] if found else [name, f"id:{name}"]
            was_there = [await self._queue.cancel(key, self._lease) for key in keys]
            job = found and await self.journal.find(found.key)
            if job is None and not any(was_there):
                raise usage_error("name", "There is no such job.", "Use a key from journal.jobs().")
            if job is not None and job.state is JobState.PLANNED:
                # A worker that was frozen may send it at this moment.
                with suppress(JournalError):
                    await self.journal.forget(job.key, JobState.PLANNED)
                return await self.journal.find(job.key)
            return job

    # Working

    @property
    def blueprint(self) -> procrastinate.Blueprint:
        """
        The tasks of the fleet, for your own procrastinate `App`.

        `app.add_tasks_from(fleet.blueprint, namespace="fuhu")`; its worker has to take the queue
        `fuhu`, with `delete_jobs="always"`, inside `async with fleet`, and to send a heartbeat
        several times per `lease`. If its heartbeats do not reach the database for that long, its
        jobs are returned to the queue, once the ids of what was paid for are written; the process
        goes on.
        """
        blueprint = self._blueprint()

        @blueprint.periodic(cron="* * * * *")
        @blueprint.task(
            name="requeue_lost", queue=QUEUE, priority=AGAIN, queueing_lock="fuhu:requeue_lost"
        )
        async def requeue_lost(timestamp: int) -> None:  # noqa: ARG001  (procrastinate passes it)
            await self._queue.requeue_lost(self._lease)

        return blueprint

    def _blueprint(self) -> procrastinate.Blueprint:
        blueprint = procrastinate.Blueprint()

        @blueprint.task(name="deliver", queue=QUEUE, pass_context=True, retry=Retries())
        async def deliver(context: procrastinate.JobContext, key: str) -> None:
            worker = await self._employed()
            await worker.deliver(context, key)

        return blueprint

    async def work(
        self, *, in_flight: int = 500, grace: float = 60.0, signals: bool = True
    ) -> None:
        """
        Carry out jobs until SIGTERM or SIGINT; costs points for each job that is submitted.

        After the signal, or once this call is cancelled, it takes no more jobs, follows those it
        has for *grace* seconds, and returns the rest to the queue. If it is killed, nothing is
        lost: others continue its jobs after `lease` seconds.

        Args:
            in_flight: How many jobs this worker may have at once; a waiting job costs about
                25 KB.
            grace: How long running jobs are followed after the signal, in seconds.
            signals: Whether to handle the signals; if not, cancel this call to stop.

        Raises:
            UsageError: The other workers have another API key, the database has no tables, or no
                clip can be saved in `download_to`.
            JournalError: The database cannot be used.
            LeaseExpired: The database could not be reached for `lease` seconds. Start the worker
                again.
        """
        check(in_flight=in_flight, grace=grace)
        async with self._ready():
            worker = await self._employed()
            try:
                await worker.run(in_flight, grace, signals=signals)
            finally:
                await self._dismiss()

    async def _employed(self) -> Worker:
        """Return the worker of this process; raise if its key is not that of the others."""
        async with self._employing:
            if self._worker is not None and self._worker.is_over:
                await self._dismiss()
            if self._worker is None:
                # A worker that can save nothing would delay one job after the other.
                place = place_of(self._options["download_to"])
                if place is not None:
                    await place.open()
                client = Client(
                    journal=self.journal,
                    limits=self._limits,
                    pace=SharedPace(self._url),
                    **self._client_options,
                )
                await self._check_key(client)
                self._worker = Worker(
                    queue=self._queue,
                    journal=self.journal,
                    client=client,
                    options=self._options,
                    cipher=self._cipher,
                    lease=self._lease,
                    tasks_in_flight=self._limits.tasks_in_flight,
                    max_points=self._max_points,
                )
                client._sessions.hooks.add(self._worker.note, NOTED)  # noqa: SLF001  (the same package)
            return self._worker

    async def _dismiss(self) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.aclose()

    async def _check_key(self, client: Client) -> None:
        key = self._client_options.get("api_key") or os.environ[KEY_VARIABLE]
        mark = mark_of_key(key, client.gateway)
        if await self._queue.set_once("key", mark):
            return
        if not self._replace_key and await self._queue.left():
            raise usage_error(
                "api_key",
                "The other workers of this fleet have another API key, or another gateway.",
                "Use the same key and gateway, or wait until its jobs are done. If that key no "
                "longer works, replace it with another of the same account (replace_key=True, or "
                "--replace-key).",
            )
        await self._queue.set("key", mark)
