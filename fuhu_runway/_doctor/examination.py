"""
The free checks of one gateway, each of which needs what the earlier ones found.

Rule 1: only what is free is sent: polls of a task that cannot exist, and balance requests.
Rule 2: no finding contains the key, an id or an IP address.
"""

import asyncio
import ipaddress
import socket
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import reduce
from typing import Final
from urllib.parse import urlsplit

import attrs

from fuhu_runway._http.transport import Transport, proxy_from_environment
from fuhu_runway._redact import redact
from fuhu_runway._urls import is_ip_address
from fuhu_runway._wire import tables
from fuhu_runway._wire.account import ask_tasks, read_tasks
from fuhu_runway._wire.decode import read_balance, read_task
from fuhu_runway._wire.encode import Reply, ask_balance, ask_task
from fuhu_runway.account import Account
from fuhu_runway.errors import NoReply, NotSent, RunwayError, Unauthorized, UsageError
from fuhu_runway.models import Balance, BalanceRoute, Gateway, KeyStyle, Timeouts

from .findings import Notes, Verdict
from .probe import Kind, Probe, is_like, origin_of, place_of, variants

NO_TASK: Final = "00000000-0000-0000-0000-000000000000"
"""The id that is polled: the nil UUID, which no gateway gives to a task."""
NO_KEY: Final = "sk-none"
"""What is sent if there is no key: a gateway refuses it, which shows that it is one."""
NO_ROUTE: Final = "/no-such-route"
"""Appended to the prefix to see what the gateway says where it has nothing."""

MAX_CLOCK_DIFFERENCE: Final = 60.0
"""In seconds. Beyond this, webhooks that are signed with a time are refused as too old."""

UNITS: Final = {
    BalanceRoute.BILLING: "in the unit that the gateway is set to: US dollars, yuan or points",
    BalanceRoute.TOKEN: "in internal units, of which usually 500,000 are one US dollar",
    BalanceRoute.QUOTA: "in US dollars",
}


@attrs.define(eq=False)
class Examination:
    """The checks of one gateway, each of which needs what the earlier ones found."""

    transport: Transport
    configured: Gateway
    #: The key; None if there is none that can be sent.
    key: str | None
    timeouts: Timeouts
    notes: Notes
    #: Whether the host that accepted a connection is this machine.
    is_local: bool = attrs.field(init=False, default=False)

    @property
    def is_https(self) -> bool:
        return str(self.configured.base_url).lower().startswith("https:")

    async def run(self) -> Gateway | None:
        """Make all checks, and return the gateway that works."""
        proxy = self.check_proxy()
        if proxy is None or not await self.reach(proxy or str(self.configured.base_url)):
            return None
        try:
            first = await self.poll(self.configured)
            self.check_tls(is_direct=not proxy)
            self.check_clock(first.reply)
            found = await self.find_route(first)
            return None if found is None else await self.find_rest(found)
        except NotSent as error:
            about = "TLS" if error.happened.startswith("The TLS") else "proxy" if proxy else "TCP"
            self.notes.misfit(about, error.happened, error.advice)
        except NoReply as error:
            advice = "Check scheme and port of base_url, or try again later."
            self.notes.untested("route", error.happened, advice)
        return None

    def check_proxy(self) -> str | None:
        """Return the URL of the proxy, empty if there is none, and None if it cannot be used."""
        self.notes.fits("address", f"Requests go to {origin_of(self.configured.base_url)}.")
        try:
            proxy = proxy_from_environment(str(self.configured.base_url)) or ""
        except UsageError as error:
            self.notes.misfit("proxy", error.happened, error.advice)
            return None
        found = f"Requests go through {origin_of(proxy)}." if proxy else "No proxy is set."
        self.notes.fits("proxy", found)
        return proxy

    async def reach(self, url: str) -> bool:
        """Return whether the host of *url*, be it the gateway or a proxy, accepts connections."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeouts.connect):
                await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            found = f"The host {redact(host)} has no address ({type(error).__name__})."
            self.notes.misfit("DNS", found, "Check its spelling, and the network.")
            return False
        is_named = not is_ip_address(host)
        found = f"The host {host} has an address." if is_named else "The URL has an IP address."
        self.notes.fits("DNS", found)
        try:
            async with asyncio.timeout(self.timeouts.connect):
                _, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            found = f"No connection to port {port} was accepted ({type(error).__name__})."
            advice = "Check host and port of base_url, and whether a firewall is in between."
            self.notes.misfit("TCP", found, advice)
            return False
        self.is_local = ipaddress.ip_address(writer.get_extra_info("peername")[0]).is_loopback
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        self.notes.fits("TCP", f"Port {port} accepts connections.")
        return True

    def check_tls(self, *, is_direct: bool) -> None:
        """Record what a first reply shows about TLS."""
        if self.is_https:
            self.notes.fits("TLS", "The certificate is trusted.")
        elif is_direct and self.is_local:
            self.notes.fits("TLS", "Not used, since the gateway is on this machine.")
        else:
            found = "base_url is http, so that anyone on the way can read the key."
            self.notes.misfit("TLS", found, "Use https:// in base_url.")

    def check_clock(self, reply: Reply) -> None:
        try:
            date = parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
        except ValueError:
            self.notes.untested("clock", "The gateway sends no Date header.")
            return
        ahead = (reply.received_at or 0) - date
        if abs(ahead) <= MAX_CLOCK_DIFFERENCE:
            self.notes.fits("clock", "It differs from the gateway's by less than a minute.")
            return
        side = "ahead of" if ahead > 0 else "behind"
        found = f"The clock of this machine is {abs(ahead):,.0f} s {side} the gateway's."
        self.notes.misfit("clock", found, "Set it: webhooks, TLS and journals rely on it.")

    async def poll(self, gateway: Gateway) -> Probe:
        """Poll a task that cannot exist, once."""
        request = ask_task(NO_TASK, tables.feed(official=False), gateway, self.key or NO_KEY)
        reply = await self.transport.send(request)
        try:
            read_task(reply)
        except RunwayError as error:
            return Probe(gateway, reply, error)
        return Probe(gateway, reply, None)

    async def is_feed(self, probe: Probe) -> bool:
        """Return whether a reply comes from the feed, and not from whatever has no other route."""
        if probe.kind not in {Kind.KEY_REFUSED, Kind.UNCLEAR}:
            return probe.kind is Kind.API
        nowhere = f"{probe.gateway.prefix}{NO_ROUTE}"
        return not probe.looks_like(await self.poll(attrs.evolve(probe.gateway, prefix=nowhere)))

    async def find_route(self, first: Probe) -> Probe | None:
        """Return a poll to which the feed responds, as it is configured or in another known way."""
        place = place_of(first.gateway)
        if first.kind is Kind.TRY_LATER:
            advice = "Try again later." if first.error is None else first.error.advice
            self.notes.untested("route", f"{place}: {first}.", advice)
            return None
        if await self.is_feed(first):
            self.notes.fits("route", f"The feed answers at {place}.")
            self.notes.fits("verb", f"It is polled with {first.gateway.feed_verb}.")
            return first
        if first.kind is Kind.KEY_REFUSED:
            found = "The gateway refuses the key whatever the path is, so that none can be checked."
            self.notes.untested("route", found, "Correct the key first.")
            return first
        for gateway in variants(self.configured):
            probe = await self.poll(gateway)
            if await self.is_feed(probe):
                self.compare_routes(first, probe)
                return probe
        self.notes.misfit("route", f"{place}: {first}. No known prefix works.", ADVICE[first.kind])
        return None

    def compare_routes(self, first: Probe, probe: Probe) -> None:
        """Record how the feed that was found differs from the one that is configured."""
        ours, found = self.configured, probe.gateway
        if place_of(ours) == place_of(found):
            self.notes.fits("route", f"The feed answers at {place_of(found)}.")
        else:
            text = f"{place_of(ours)}: {first}. The feed answers at {place_of(found)}."
            advice = f"Use prefix={found.prefix!r}."
            if ours.base_url != found.base_url:
                advice = (
                    f"Use {origin_of(found.base_url)} as base_url, and prefix={found.prefix!r}."
                )
            self.notes.misfit("route", text, advice)
        if ours.feed_verb == found.feed_verb:
            self.notes.fits("verb", f"It is polled with {found.feed_verb}.")
        else:
            text = f"The feed is polled with {found.feed_verb}, not with {ours.feed_verb}."
            self.notes.misfit("verb", text, f"Use feed_verb={found.feed_verb!r}.")

    async def find_rest(self, found: Probe) -> Gateway:
        """Check the key and the balance, and return the gateway with what works."""
        found = await self.find_key_style(found)
        gateway = await self.find_balance(found.gateway)
        await self.check_account(gateway)
        if self.notes.verdict("route") is Verdict.FITS or gateway != self.configured:
            self.compare(gateway)
        return gateway

    async def find_key_style(self, found: Probe) -> Probe:
        """Return a poll whose key was accepted, if it is accepted in any known place."""
        if self.key is None:
            self.notes.untested("access", "There is no key.", "Set one, and try again.")
            return found
        if found.kind is not Kind.KEY_REFUSED:
            text = f"The reply to a poll of a task that does not exist is {found}."
            is_sure = found.kind is Kind.API
            (self.notes.fits if is_sure else self.notes.untested)("access", text)
            return found
        for style in KeyStyle:
            probe = await self.poll(attrs.evolve(found.gateway, key_style=style))
            if probe.kind is Kind.API:
                text = f"The key is accepted as {style.value!r} only; as it is sent: {found}."
                self.notes.misfit("access", text, f"Use key_style=KeyStyle.{style.name}.")
                self.notes.fits("route", f"The feed answers at {place_of(probe.gateway)}.")
                return probe
        text = f"The gateway refuses the key: {found}."
        advice = "Check on the gateway's page that the key is active, and belongs to this gateway."
        self.notes.misfit("access", text, advice)
        return found

    async def find_balance(self, gateway: Gateway) -> Gateway:
        """Return the gateway with the first balance route that answers."""
        if self.key is None:
            return gateway
        failures: list[RunwayError] = []
        for route in dict.fromkeys((gateway.balance, *BalanceRoute)):
            variant = attrs.evolve(gateway, balance=route)
            if route is BalanceRoute.QUOTA and gateway.quota_url is None:
                continue  # the key in an address goes only to a host that is known to expect it
            try:
                balance = await self.balance(variant)
            except RunwayError as error:
                failures.append(error)
                continue
            self.compare_balance(variant, balance)
            return variant
        self.notes.untested("balance", failures[0].happened, "Look at the gateway's own page.")
        return gateway

    async def check_account(self, gateway: Gateway) -> None:
        """Record whether the account's tasks can be listed, with which lost tasks are found."""
        try:
            account = Account.from_env()
            if account is None:
                found = "No access token is set, so the task of a lost response cannot be found."
                self.notes.fits("account", found)
                return
            # A time before such gateways existed, so the list is empty.
            request = ask_tasks(gateway, account, since=1, until=1)
            read_tasks(await self.transport.send(request))
        except (UsageError, Unauthorized) as error:
            self.notes.misfit("account", error.happened, error.advice)
        except RunwayError as error:
            self.notes.untested("account", error.happened, error.advice)
        else:
            self.notes.fits("account", "The access token shows the account's tasks.")

    async def balance(self, gateway: Gateway) -> Balance:
        parts = []
        for name in tables.BALANCE_ENDPOINTS[gateway.balance]:
            request = ask_balance(tables.ENDPOINTS[name], gateway, str(self.key))
            parts.append(read_balance(await self.transport.send(request)))
        return reduce(Balance.joined, parts)

    def compare_balance(self, gateway: Gateway, balance: Balance) -> None:
        """Record where the balance is and what is left; it shows as well that the key is valid."""
        left = "no limit" if balance.unlimited else "an unknown amount"
        if balance.remaining is not None:
            left = f"{balance.remaining:,.10g}, {UNITS[gateway.balance]}"
        route = gateway.balance
        if route is not self.configured.balance:
            found = f"The balance is at {route.value}. What is left: {left}."
            self.notes.misfit("balance", found, f"Use balance=BalanceRoute.{route.name}.")
        elif balance.remaining is not None and balance.remaining <= 0:
            self.notes.misfit("balance", f"What is left: {left}.", "Top up the account or the key.")
        else:
            self.notes.fits("balance", f"What is left: {left}.")
        if self.notes.verdict("access") is Verdict.UNTESTED:
            self.notes.fits("access", "The gateway shows the key its balance.")

    def compare(self, gateway: Gateway) -> None:
        """Record which gateway to configure."""
        ours = attrs.asdict(self.configured, recurse=False)
        changes = {
            name: value
            for name, value in attrs.asdict(gateway, recurse=False).items()
            if value != ours[name]
        }
        known = next((row for row in tables.GATEWAYS.values() if is_like(row, gateway)), None)
        if not changes:
            self.notes.fits("gateway", f"It works as {gateway.name!r} is described.")
        elif changes.keys() == {"base_url"}:
            advice = f"Use {origin_of(gateway.base_url)} as base_url."
            self.notes.misfit("gateway", f"{gateway.name!r} fits with another base_url.", advice)
        elif known is not None and gateway.name in tables.GATEWAYS:
            found = f"It works as {known.name!r} does, not as {gateway.name!r}."
            url = origin_of(gateway.base_url)
            advice = f"Use --gateway {known.name}, or gateway={known.name!r}, with base_url {url}."
            self.notes.misfit("gateway", found, advice)
        else:
            shown = ", ".join(sorted(changes))
            found = f"It differs from {gateway.name!r} in: {shown}."
            advice = "In Python, use the report's `gateway`: Client(gateway=report.gateway)."
            self.notes.misfit("gateway", found, advice)


ADVICE: Final = {
    Kind.PAGE: "Check base_url: it has to be the address of the API, not of its web page.",
    Kind.REDIRECT: "Use the address that it leads to as base_url, if that is the gateway's API.",
    Kind.WRONG_VERB: "Look up in the gateway's documentation how a task is polled.",
    Kind.UNCLEAR: "Look up in the gateway's documentation what precedes /pro/generate.",
}
"""What to do if no known way to the feed works."""
