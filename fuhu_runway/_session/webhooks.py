"""
Handle webhooks: wake the waits for a task, and find the tasks of submissions in doubt.

Rule 1: a webhook only makes a poll due. The response to that poll counts.
Rule 2: the task of a submission in doubt is taken from a webhook only if the feed has it and no
other submission does.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from fuhu_runway import hooks as events
from fuhu_runway._waiting.poller import WEBHOOK_EVERY
from fuhu_runway._waiting.unfinished import Origin
from fuhu_runway._wire.decode import read_task
from fuhu_runway._wire.tables import ENDPOINT_NAMES, ENDPOINTS, SUBMITS
from fuhu_runway.errors import JournalError, RunwayError
from fuhu_runway.journal import JobState, Plan
from fuhu_runway.models import Generation, TaskRecord
from fuhu_runway.task import Task

from .entry import Entry
from .session import Session

if TYPE_CHECKING:
    from fuhu_runway._addresses import Address, Webhook

    from .sessions import Sessions

FEED: Final = ENDPOINTS["feed"].name
"""The endpoint polled for tasks with an address; the official format has no callbacks."""


def new_address(
    sessions: "Sessions", plan: Plan, request: Generation, custom_id: str | None, tag: str | None
) -> "Address | None":
    """Return an address for the webhooks of the task of a request, if its kind takes one."""
    if sessions.addresses is None or not SUBMITS[type(request)].takes_callback:
        return None
    return sessions.addresses.new(
        sessions,
        request,
        plan.key,
        sessions.settings.clock.wall(),
        custom_id=custom_id,
        tag=tag,
    )


def receive(sessions: "Sessions", address: "Address", webhook: "Webhook") -> None:
    """Handle a webhook in every loop of a client; called in any thread and loop."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    # Running loops come first: one of them reports the webhook, and polls.
    by_loop = sorted(sessions.by_loop.items(), key=lambda pair: not pair[0].is_running())
    if not by_loop:
        address.early = webhook
    for place, (loop, session) in enumerate(by_loop):
        work = partial(handle, sessions, session, address, webhook, is_first=place == 0)
        if loop is here:
            work()
        else:
            # A loop that has ended in the meantime has no waits left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(work)


def handle(
    sessions: "Sessions",
    session: Session,
    address: "Address",
    webhook: "Webhook",
    *,
    is_first: bool = True,
) -> None:
    """Handle a webhook in one loop; *is_first* is true in the loop that reports it."""
    if address.is_strange and address.task_id is None:
        address.task_id = webhook.task_id or None
    if address.task_id is None:
        address.early = webhook
        if address.is_in_doubt and is_first:
            session.run(recover(sessions, session, address))
        return
    if webhook.task_id not in {None, address.task_id}:
        if is_first:
            refusal = events.CallbackRefused(address.task_id, "it names another task")
            sessions.hooks.emit(refusal)
        return
    if is_first:
        sessions.hooks.emit(events.CallbackReceived(address.task_id, webhook.state))
    watch = session.poller.find(FEED, address.task_id)
    if watch is not None:
        session.poller.webhook_came(watch, is_end=webhook.is_end)
    elif address.is_strange and is_first:
        session.run(_look_up(sessions, session, address, webhook))
    else:
        address.early = webhook


def follow(
    sessions: "Sessions",
    session: Session,
    task: Task,
    address: "Address | None",
    found: TaskRecord | None = None,
) -> None:
    """
    Count a task that was accepted, and wake its waits when its webhook comes.

    *found* is its record from the feed, if a webhook named the task and no response did.
    """
    has_ended = task.record is not None and task.record.is_settled
    is_addressed = address is not None and not has_ended
    watch = sessions.watch_in(session.poller, task, is_addressed=is_addressed)
    session.tasks.add(watch)
    session.poller.take_end(watch)
    if address is not None:
        task.keep(watch)
        early, address.early = address.early, None
        if early is not None:
            handle(sessions, session, address, early)
    if found is not None:
        session.poller.take_found(watch, found)


async def recover(
    sessions: "Sessions", session: Session, address: "Address", endpoint: str | None = None
) -> None:
    """Keep the task of a submission in doubt, if a webhook named it."""
    job = None
    with suppress(JournalError):
        job = await sessions.ledger.find(address.job)
    webhook, request = address.early, address.request
    if webhook is not None and job and job.task_id is not None and job.state.is_answered:
        # A person or the gateway's lists settled it, so this is a webhook like any other.
        address.early = None
        address.answered(job.task_id)
        handle(sessions, session, address, webhook)
        return
    record = await search(sessions, session, address)
    if record is None:
        return
    ago = max(0.0, sessions.settings.clock.wall() - address.made_at)
    accepted_at = sessions.settings.clock.now() - ago
    task = sessions.new_task(
        (FEED, record.task_id),
        Origin(accepted_at, address.custom_id, address.tag),
        request=request,
        context=address.context,
    )
    sessions.claim_later(task)
    endpoint = endpoint or ENDPOINT_NAMES[type(request).__name__]
    sessions.hooks.emit(events.SubmissionFound(endpoint, task.id))
    follow(sessions, session, task, address, record)


async def _look_up(
    sessions: "Sessions", session: Session, address: "Address", webhook: "Webhook"
) -> None:
    """Find the job in doubt that an address belongs to, if an earlier process made the address."""
    addresses, journal, seen = sessions.addresses, sessions.journal, sessions.looked_up
    if addresses is None or journal is None or not addresses.is_lasting or address.nonce in seen:
        return
    seen.add(address.nonce)
    try:
        for job in await journal.jobs(JobState.IN_DOUBT):
            if addresses.nonce_of(job.key) == address.nonce:
                address.job, address.made_at = job.key, job.submitted_at or job.planned_at
                address.early, address.task_id = webhook, None
                address.custom_id, address.tag = job.custom_id, job.tag
                await recover(sessions, session, address, ENDPOINT_NAMES[job.endpoint])
                # The feed may not know it yet; then the next webhook names it again.
                if address.task_id is None:
                    seen.discard(address.nonce)
    except JournalError:
        seen.discard(address.nonce)  # it may be readable at the next webhook


async def search(
    sessions: "Sessions", session: Session, address: "Address | None"
) -> TaskRecord | None:
    """Return the record of the task that a webhook named, if the feed and the journal agree."""
    addresses, ledger, clock = sessions.addresses, sessions.ledger, sessions.settings.clock
    if addresses is None or address is None:
        return None
    while address.early is not None and not address.is_sought:
        task_id, address.early = address.early.task_id, None
        if not task_id:
            continue
        record, reason = None, "the task that it names belongs to another submission"
        address.is_sought = True
        try:
            # A leaked address must not cause a poll with each webhook.
            await session.transport.pause(max(0.0, address.next_search_at - clock.now()))
            address.next_search_at = clock.now() + WEBHOOK_EVERY
            job = await ledger.find(task_id)
            # The row itself may already name the task, from a damaged response.
            is_taken = job is not None and job.key != address.job
            if not is_taken and not addresses.is_taken(task_id, address):
                wire = sessions.poll_request(task_id, official=False)
                wire = wire.hiding(getattr(address.request, "prompt", None))
                shown = await session.transport.call(wire, read_task)
                # Another submission may have found it in the meantime.
                if not addresses.is_taken(task_id, address):
                    address.answered(task_id)
                    record = attrs.evolve(shown, task_id=task_id)
        except RunwayError as error:
            reason = f"the feed does not confirm it ({type(error).__name__})"
        finally:
            address.is_sought = False
        if record is None:
            sessions.hooks.emit(events.CallbackRefused(None, reason))
            continue
        origin = Origin(clock.now(), address.custom_id, address.tag)
        sessions.settings.unfinished.accepted((FEED, task_id), origin)
        entry = Entry(ledger, address.job, clock, sessions.hooks)
        await entry.accepted(task_id, address.made_at, proof="webhook")
        return record
    return None
