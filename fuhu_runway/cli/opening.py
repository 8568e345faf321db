"""Open what a command works with, as its options say: a journal, and a client of the gateway."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs

from fuhu_runway import errors, hooks
from fuhu_runway.account import Account
from fuhu_runway.journal import BaseJournal, JobState, journal_at
from fuhu_runway.models import Gateway, PollPolicy, usage_error
from fuhu_runway.paths import check_folder
from fuhu_runway.uploads import GatewayFiles

from .console import Screen
from .options import JournalPlace, Target

if TYPE_CHECKING:
    from fuhu_runway.client import Client
    from fuhu_runway.testing.simulator import Simulator

STATE_NAME: Final = "simulated-gateway.jsonl"
"""The file with the tasks of a simulated gateway, which may be killed along with the batch."""

SIMULATED_SPEED: Final = 100.0
"""A job of 100 s takes a second."""

SIMULATED_POLLING: Final = PollPolicy(first=0.1, max_interval=0.5)

PRIVATE: Final = 0o600
"""The mode of new files: only their owner can read them."""

# Journals


@contextlib.asynccontextmanager
async def opened(place: JournalPlace) -> AsyncIterator[BaseJournal]:
    """Yield a journal. While a file is open here, no other process can open it."""
    journal = journal_at(place)
    try:
        await journal.counts()  # raises first if anything is wrong with it
        yield journal
    finally:
        await journal.aclose()


@contextlib.asynccontextmanager
async def readable(place: JournalPlace) -> AsyncIterator[BaseJournal]:
    """Yield the journal, or if it cannot be used, as on a read-only disk, a copy with its log."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(opened(place))
        except errors.JournalBusy:
            raise
        except errors.JournalError as error:
            if not isinstance(place, Path):
                raise
            folder = Path(stack.enter_context(TemporaryDirectory()))
            try:
                copy = copied(place, folder)
            except OSError:
                raise error from None
            journal = await stack.enter_async_context(opened(copy))
        yield journal


def copied(path: Path, folder: Path) -> Path:
    """Copy a journal and its log, as far as they exist, to a folder; return the copy's path."""
    for name in (path.name, f"{path.name}-wal"):
        if path.with_name(name).is_file():
            shutil.copyfile(path.with_name(name), folder / name)
    return folder / path.name


# Gateways


async def open_client(
    stack: contextlib.AsyncExitStack,
    target: Target,
    screen: Screen,
    simulator: "Simulator | None",
    **settings: Any,
) -> "Client":
    """Return a client of the gateway, or of *simulator*; *stack* closes both."""
    from fuhu_runway._wire.tables import GATEWAYS
    from fuhu_runway.client import Client

    if simulator is None:
        key, url = target.access.key(), target.access.base_url
        settings["account"] = Account.from_env()
        settings["hooks"] = [screen.watch, *settings.get("hooks", ())]
    else:
        await stack.enter_async_context(simulator)
        screen.info("simulated: a gateway on this machine, no key, no cost")
        key, url = simulator.api_key, simulator.base_url
        settings["polling"] = SIMULATED_POLLING
        settings["account"] = Account(simulator.access_token, simulator.user_id)
    gateway: Gateway | str | None = target.access.gateway
    row = GATEWAYS.get(target.access.gateway or "fuhuapi")
    if row is not None and simulator is not None:
        gateway = row = attrs.evolve(row, files_path="/v1/files")  # any simulated one has it
    if row is not None and row.files_path is not None:
        settings["uploads"] = GatewayFiles()
    client = Client(key, base_url=url, gateway=gateway, **settings)
    address = urlsplit(client.gateway.base_url or "")
    port = address.port or (80 if address.scheme == "http" else 443)
    screen.address = f"{address.netloc.removesuffix(f':{port}')}:{port}"
    return await stack.enter_async_context(client)


def check_journal(target: Target, journal: JournalPlace) -> None:
    """Raise unless there is a key, and the journal belongs to this kind of gateway."""
    target.check()
    if not isinstance(journal, Path):
        if target.simulate:
            advice = "Remove --simulate. To simulate the gateway too, see fuhu-runway simulate."
            raise usage_error("simulate", "--simulate needs a journal in a file.", advice)
    elif not target.simulate and journal.exists() and journal.with_name(STATE_NAME).exists():
        raise _other_gateway("simulated", "real")


async def client_of(
    stack: contextlib.AsyncExitStack,
    store: BaseJournal,
    journal: JournalPlace,
    target: Target,
    screen: Screen,
    *listeners: hooks.Listener,
    is_new: bool = False,
) -> "Client":
    """
    Return the client of a journal's gateway, real or simulated.

    The file of a simulated gateway, beside the journal, is created only if *is_new* is true.
    """
    simulator = None
    if target.simulate and isinstance(journal, Path):
        state_file = journal.with_name(STATE_NAME)
        counts = await store.counts()
        if not state_file.exists():
            # A run that was killed early leaves a journal with nothing but planned jobs.
            if sum(counts.values()) > counts[JobState.PLANNED]:
                raise _other_gateway("real", "simulated")
            if not is_new:
                happened = "No simulated gateway belongs to this journal."
                advice = "Remove --simulate, or simulate the batch first."
                raise usage_error("simulate", happened, advice)
        simulator = _simulator_of(state_file)
    return await open_client(stack, target, screen, simulator, journal=store, hooks=listeners)


@contextlib.asynccontextmanager
async def working(
    journal: JournalPlace,
    target: Target,
    screen: Screen,
    *listeners: hooks.Listener,
    out: Path | None = None,
    is_new: bool = False,
) -> AsyncIterator[tuple[BaseJournal, "Client"]]:
    """Yield a journal and the client of its gateway, if clips can be saved in *out*."""
    check_journal(target, journal)
    if out is not None:
        check_folder(out)
    async with contextlib.AsyncExitStack() as stack:
        # The journal first: only one process can open it, which protects the other files.
        store = await stack.enter_async_context(opened(journal))
        yield (
            store,
            await client_of(stack, store, journal, target, screen, *listeners, is_new=is_new),
        )


def _simulator_of(state_file: Path) -> "Simulator":
    """Return the simulated gateway that is kept in *state_file*, made if there is none."""
    from fuhu_runway.testing.simulator import Simulator

    try:
        state_file.touch(mode=PRIVATE)  # it contains the prompts
        return Simulator(
            speed=SIMULATED_SPEED,
            points=None,
            key_style="any",
            feed_verb="any",
            state_file=state_file,
        )
    except (OSError, ValueError) as error:
        raise usage_error(
            "simulate",
            f"{state_file.name!r} is not the state of a simulated gateway.",
            "Use another folder, or remove this file and the journal beside it.",
        ) from error


def _other_gateway(found: str, wanted: str) -> errors.UsageError:
    return usage_error(
        "simulate",
        f"The journal belongs to a {found} gateway, not to a {wanted} one.",
        "Use --simulate in every run or in none, or use another folder.",
    )
