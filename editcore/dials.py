"""Settings that several methods have: the same words for the same thing, each with the method's own default.

The dials of a value search belong together: `Searching` is what a method has that makes one, `search` reads them off.
"""

from __future__ import annotations

from typing import Any, Protocol

from editcore import algebra, subject
from editcore.method import Method, setting


def block(words: str = "Block to edit (0 = first)") -> Any:
    """A layer's number."""
    return setting(None, f"{words}; empty: chosen for the model", low=0, high=1000, kind="int")


def contexts(default: int) -> Any:
    """How many texts the prompt is put behind."""
    return setting(default, "Texts put in front of the prompt, so that the edit holds in running text", low=0, high=100)


def key() -> Any:
    """Where a mean key is read."""
    return setting("prompt", subject.PLACES_HELP, choices=subject.PLACES)


def steps(default: int, words: str = "Most steps of the search for the new value") -> Any:
    """When to give up."""
    return setting(default, words, low=1, high=10_000)


def rate(default: float, words: str = "Learning rate of that search") -> Any:
    """Adam's learning rate."""
    return setting(default, words, low=1e-8, high=100.0)


def momentum() -> Any:
    """Adam's beta_1 of a value search."""
    return setting(
        0.9, "Share of the last step's direction that search keeps; less overshoots less", low=0.0, high=0.99
    )


def weight() -> Any:
    """Weight of what the matrices usually store; see `spread.ridge`."""
    said = "Weight of what the matrices usually store (lambda); empty: one for each entry of a key"
    return setting(None, said, kind="float", low=1e-9, high=1e9)


def decay(default: float) -> Any:
    """Weight of the new value's distance from the old one."""
    return setting(default, "Pull of the new value towards the old one", low=0.0, high=1000.0)


def limit(default: float) -> Any:
    """Radius of the ball the new value stays in."""
    return setting(default, "Largest change of the value, in lengths of the old value", low=0.01, high=1000.0)


def kl(default: float) -> Any:
    """Weight of the KL term of a value search."""
    return setting(default, "Weight of keeping what else is said about the subject", low=0.0, high=1000.0)


def enough(default: float, words: str = "Stop the search at this loss") -> Any:
    """The loss at which to stop, nats."""
    return setting(default, words, low=0.0, high=10.0)


class Searching(Method, Protocol):
    """A method that searches values at the subject and reads keys there."""

    @property
    def contexts(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def limit(self) -> float: ...
    @property
    def kl(self) -> float: ...
    @property
    def enough(self) -> float: ...


def search(method: Searching) -> algebra.Search:
    """The dials of the method's value search."""
    return algebra.Search(
        method.steps, method.rate, method.momentum, method.decay, method.limit, method.kl, method.enough
    )
