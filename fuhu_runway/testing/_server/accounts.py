"""Accounts: the points and the rate limit of each key."""

import math

import attrs


@attrs.define
class Bucket:
    """
    A token bucket: requests per second, and how many at once.

    The caller passes *now*, in seconds of any monotonic clock.
    """

    per_second: float
    burst: int
    _tokens: float = attrs.field(init=False)
    _filled_at: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        self._tokens = float(self.burst)

    def take(self, now: float) -> bool:
        """Take a token, and return whether there was one."""
        if self._tokens < self.burst:
            refill = (now - self._filled_at) * self.per_second
            self._tokens = min(float(self.burst), self._tokens + refill)
        self._filled_at = now
        is_left = self._tokens >= 1.0
        self._tokens -= is_left
        return is_left


@attrs.define
class Account:
    """One key and its points."""

    name: str
    #: The user whose key it is. The keys of a user share their tasks.
    user_id: int
    #: Empty for an account of an earlier run, until its key is added.
    key: str = attrs.field(default="", repr=False)
    #: The points left; None means no limit.
    points: float | None = None
    used: float = 0.0
    refunded: float = 0.0
    #: The number of its tasks.
    accepted: int = 0
    bucket: Bucket | None = None

    def open(self, key: str, points: float | None, bucket: Bucket | None) -> None:
        """Let *key* spend *points*, less those that earlier runs have used."""
        self.key = key
        self.points = None if points is None else points - self.used
        self.bucket = bucket

    def can_pay(self, price: float) -> bool:
        return self.points is None or self.points >= price

    def charge(self, price: float) -> None:
        self.accepted += 1
        self.used += price
        if self.points is not None:
            self.points -= price

    def refund(self, price: float) -> None:
        self.used -= price
        self.refunded += price
        if self.points is not None:
            self.points += price
