"""
What deliveries change about looking: how many looks they may cause, and whether to rely on them.

Rule 1: a delivery is only a hint: the look that follows counts.
Rule 2: a sender that learned the address of a task can cause polls, at a limited rate.
Rule 3: only what has been proved is relied on: looking is left to a slow net once deliveries were
seen to come first, and no longer when an end comes that none of them told.

Pure: the caller passes *now*, in seconds of any monotonic clock.
"""

import math
from typing import Final

import attrs

HINTED_AT_ONCE: Final = 3
"""So many looks may follow deliveries at once: a repeat, and a feed that lags behind its news."""
HINTED_EVERY: Final = 5.0
"""From there on one in so many seconds: what a task costs at the start of the ordinary ladder."""
MOST_PROOF: Final = 64
"""However often deliveries went missing, so many that came first make up for it."""
SILENT_ENDS: Final = 5
"""So many ends without a single delivery are no chance any more."""


@attrs.define
class Allowance:
    """How many looks at one task deliveries may still cause."""

    _spent_until: float = -math.inf

    def take(self, now: float, *, keep: int = 0) -> float:
        """Return when the next look may be, and count it; the last *keep* at once are left over."""
        at = max(now, self._spent_until - (HINTED_AT_ONCE - 1 - keep) * HINTED_EVERY)
        self._spent_until = max(self._spent_until, now) + HINTED_EVERY
        return at

    def is_open(self, now: float) -> bool:
        """Whether a look may be now."""
        return self._spent_until <= now + (HINTED_AT_ONCE - 1) * HINTED_EVERY


@attrs.define
class Reliance:
    """Whether webhooks announce ends before a poll finds them."""

    #: Whether looking can be left to the net.
    is_proved: bool = False
    #: Whether any delivery ever came.
    was_heard: bool = False
    #: How many ends were found that no delivery had told.
    untold: int = 0
    _proof: int = 0
    _needed: int = 1

    def end_was_told(self) -> None:
        """Record an end that a webhook announced before a poll found it."""
        self._proof += 1
        self.is_proved = self._proof >= self._needed

    def end_was_not_told(self) -> bool:
        """Record an end without a webhook; return whether that ends the reliance."""
        self.untold += 1
        was_proved = self.is_proved
        if was_proved:
            # Deliveries that stop, come late or get lost have to prove the more the next time.
            self._needed = min(2 * self._needed, MOST_PROOF)
            self._proof = 0
            self.is_proved = False
        else:
            # Here the looks are frequent, and one of them may just have been the quicker.
            self._proof = max(0, self._proof - 1)
        return was_proved

    @property
    def is_silent(self) -> bool:
        """Whether it is time to say that no delivery comes at all."""
        return self.untold >= SILENT_ENDS and not self.was_heard
