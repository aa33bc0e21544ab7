"""Whether chance explains a difference. For deciding what is worth showing; no verdict is made of it. Pure."""

from __future__ import annotations

from math import exp, lgamma, sqrt
from typing import NamedTuple

RARE = 0.01  # all of several events in one arm alone, by chance
SIGMAS = 3.0  # a difference of means, in standard errors


class Moments(NamedTuple):
    """Of a quantity per request: how many requests, the sum, and the sum of squares."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, value: float) -> Moments:
        return Moments(self.n + 1, self.total + value, self.squares + value * value)

    def filled(self, n: int) -> Moments:
        """With zeros for the requests that had none of it."""
        return self._replace(n=n)

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0

    @property
    def error(self) -> float:
        """Variance of the mean; of a single value the value's own square, as nothing else is known."""
        if self.n < 2:
            return self.mean**2
        return max(0.0, self.squares / self.n - self.mean**2) / (self.n - 1)


def all_in_canary(events: int, canary: int, stable: int) -> float:
    """Probability that all `events` fall on `canary` of the requests when arms make no difference (hypergeometric)."""
    if events == 0 or canary < events:
        return 1.0
    return min(1.0, exp(_choose(canary, events) - _choose(canary + stable, events)))


def beyond_noise(difference: float, variance: float) -> bool:
    """A difference of means that is more than SIGMAS of its standard errors."""
    return difference > SIGMAS * sqrt(variance)


def _choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
