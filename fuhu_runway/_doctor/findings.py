"""What the checks found: findings, and the report of all of them."""

import enum
from typing import Final

import attrs

from fuhu_runway.models import Gateway


class Verdict(enum.Enum):
    """What a check has shown."""

    FITS = "ok"
    MISFIT = "does not fit"
    UNTESTED = "could not be tested"


@attrs.frozen
class Finding:
    """The result of one check."""

    #: What was checked; a name from `CHECKS`.
    about: str
    verdict: Verdict
    #: What was found, in one or two sentences.
    found: str
    #: What to change; empty if nothing has to be.
    advice: str = ""

    @property
    def is_skipped(self) -> bool:
        """Whether the check was not made, because of an earlier finding."""
        return self.found == SKIPPED


SKIPPED: Final = "Not tested, because of an earlier finding."


CHECKS: Final = {
    "key": "whether there is a key, and whether it looks like one",
    "address": "whether base_url can be used",
    "proxy": "whether the environment names a proxy, and which",
    "DNS": "whether the host, or that of the proxy, has an address",
    "TCP": "whether it accepts connections",
    "TLS": "whether its certificate is trusted",
    "route": "whether there is an API at the path of the feed: base_url and prefix",
    "verb": "whether the feed is polled with POST or with GET",
    "access": "whether the key is accepted, and where it has to be",
    "balance": "which route shows the balance, and what is left",
    "account": "whether the access token, if there is one, shows the account's tasks",
    "clock": "whether this machine's clock agrees with the gateway's",
    "gateway": "which known gateway works the same way",
}
"""Each check and what it is about, in the order in which they are made."""

NEEDED: Final = frozenset({"key", "address", "route", "verb"})
"""The checks without which a clip might be paid for and not be found again."""


@attrs.frozen
class Report:
    """What `examine` found."""

    #: One finding for each of `CHECKS`, in that order.
    findings: tuple[Finding, ...]
    #: What works: pass it to `Client(gateway=...)`. None if nothing did.
    gateway: Gateway | None = attrs.field(default=None, repr=False)

    @property
    def fits(self) -> bool:
        """Whether no check found anything that does not fit."""
        return all(finding.verdict is not Verdict.MISFIT for finding in self.findings)

    @property
    def is_ready(self) -> bool:
        """Whether a clip can be submitted and polled; what only tells more need not fit."""
        verdicts = {finding.about: finding.verdict for finding in self.findings}
        # A key that might be refused does no harm: nothing is charged then.
        return verdicts["access"] is not Verdict.MISFIT and all(
            verdicts[about] is Verdict.FITS for about in NEEDED
        )


@attrs.define
class Notes:
    """The findings so far."""

    _findings: dict[str, Finding] = attrs.field(factory=dict)

    def add(self, finding: Finding) -> None:
        self._findings[finding.about] = finding

    def fits(self, about: str, found: str, advice: str = "") -> None:
        self.add(Finding(about, Verdict.FITS, found, advice))

    def misfit(self, about: str, found: str, advice: str) -> None:
        self.add(Finding(about, Verdict.MISFIT, found, advice))

    def untested(self, about: str, found: str, advice: str = "") -> None:
        self.add(Finding(about, Verdict.UNTESTED, found, advice))

    def verdict(self, about: str) -> Verdict | None:
        finding = self._findings.get(about)
        return None if finding is None else finding.verdict

    def report(self, gateway: Gateway | None) -> Report:
        """Return a finding for each check; some could not be made after an earlier one."""
        skipped = {about: Finding(about, Verdict.UNTESTED, SKIPPED) for about in CHECKS}
        return Report(tuple((skipped | self._findings).values()), gateway)
