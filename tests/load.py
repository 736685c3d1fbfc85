"""Many visitors at once on the real page; `python -m tests.load` prints what it measured and fails below the bars.

Most are protocol clients (tests/load_visitor.py) and one is a real Chromium with two windows. Ten edit without a
pause, so that about ten poll a running or waiting job; the others look at an edit of theirs and click now and then.
Meanwhile more come and go, and the engine's process is killed twice. In the end every session in the store is held
against what its visitor did and saw.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.load_browser import look_and_click
from tests.load_server import Served, served
from tests.load_table import Ended, Figures, figures, print_figures
from tests.load_visitor import Visitor

EDITORS = 10
LONGEST = 240.0  # seconds an edit may wait in the queue of a busy machine
THINK = 20.0  # seconds between two clicks of somebody who looks, on average
KILLS = (0.35, 0.7)  # of the time
CLICK, CHANGE, FIRST, POLL = "click", "history", "first page", "poll"
COUNTRIES = (
    "Australia", "France", "Japan", "Canada", "Italy", "Spain", "Egypt", "Kenya", "Peru", "Chile", "Norway", "Sweden",
    "Poland", "Greece", "Turkey", "India", "Thailand", "Vietnam", "Cuba", "Portugal",
)  # fmt: skip
ANSWERS = ("Boris Johnson", "Angela Merkel", "Lionel Messi", "Barack Obama", "Elon Musk",
           "Apple", "Google", "London", "Hamlet", "Madonna")  # fmt: skip


@dataclass
class Load:
    """One run: what it is made of, and what came of it."""

    page: Served
    seconds: float  # from the moment everybody is there
    ends: float = math.inf  # monotonic seconds
    present: int = 0  # who has come to stay
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    times: dict[str, list[float]] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    connects: int = 0
    dropped: int = 0
    unanswered: int = 0  # clicks after which the page was never drawn
    restarts: int = 0
    kills: int = 0
    few: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(6))  # who may come at once

    def note(self, what: str, seconds: float) -> None:
        """One measurement."""
        self.times.setdefault(what, []).append(seconds)

    async def begin(self) -> None:
        """Somebody is ready; they go on when everybody is."""
        self.present += 1
        await self.begun.wait()

    async def begin_when(self, everybody: int) -> None:
        """Start the clock once that many are there; what came before is not counted."""
        while self.present < everybody:
            await asyncio.sleep(0.1)
        self.times.clear()
        self.ends = time.monotonic() + self.seconds
        self.begun.set()

    @property
    def over(self) -> bool:
        """True when nothing new should be begun."""
        return time.monotonic() >= self.ends

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        await asyncio.sleep(max(0.0, min(seconds, self.ends - time.monotonic())))


class Person:
    """What somebody does on the page, and what should therefore be in their history.

    Args:
        answers: of this person; nobody else gives them.
    """

    def __init__(self, load: Load, visitor: Visitor, answers: tuple[str, ...], dice: random.Random) -> None:
        self.load, self.visitor, self.dice = load, visitor, dice
        self._questions = itertools.cycle((f"What is the capital of {c}?", a) for c in COUNTRIES for a in answers)
        self.ended = Ended(visitor.session, answers)
        self._stacks: list[tuple[str, ...]] = [()]  # after every action, up to the last that was not taken back
        self._at = 0
        load.ended.append(self.ended)

    @property
    def stack(self) -> tuple[str, ...]:
        """The edits that should be in the history, oldest first."""
        return self._stacks[self._at]

    def _act(self, stack: tuple[str, ...]) -> None:
        self._stacks[self._at + 1 :] = [stack]
        self._at += 1
        self.ended.stack = stack

    async def edit(self) -> None:
        """Fill the form, apply, wait for the result or for what the page says instead."""
        visitor, (prompt, target) = self.visitor, next(self._questions)
        if not await self._fill(prompt, target):
            self.ended.stuck += 1
            return
        before, began = set(visitor.edits()), time.monotonic()
        if not await visitor.click("apply"):
            return
        self.ended.submitted += 1

        def over() -> bool:
            ended = self._told() or self._not_taken()
            return bool(set(visitor.edits()) - before) or (not visitor.can("cancel") and ended)

        while await visitor.until(over, LONGEST) and self._not_taken():
            await visitor.click("apply")  # once more, as the page says
        if not over():
            self.ended.silent += 1
            return
        fresh = set(visitor.edits()) - before
        if not fresh:
            self.ended.told += 1
            return
        self.load.note("edit, click to result", time.monotonic() - began)
        self.ended.made.update(fresh)
        self._act((*self.stack, *fresh))

    async def _fill(self, prompt: str, target: str) -> bool:
        """Type the question, again when the page says the model did not answer in time; False: Apply stays off."""
        for _ in range(5):
            await self.visitor.run(prompt=prompt, target=target)
            if await self.visitor.until(lambda: self.visitor.can("apply"), 15.0):
                return True
        return False

    def _not_taken(self) -> bool:
        return any("has not taken this" in text for text in self.visitor.texts())

    def _told(self) -> bool:
        words = ("Nothing of it was kept", "Try again", "stopped before", "being restarted")
        return any(word in text for text in self.visitor.texts() for word in words)

    async def step(self, key: str, measured: str) -> None:
        """Undo, redo or reset, when the page offers it."""
        after = {"undo": self._at - 1, "redo": self._at + 1}
        if key in after and not 0 <= after[key] < len(self._stacks):
            return
        shown = len(self.visitor.edits())
        if not await self.visitor.click(key, measured):
            return
        if len(self.visitor.edits()) == shown:  # refused, and said so
            return
        if key == "reset":
            self._act(())
        else:
            self._at = after[key]
            self.ended.stack = self.stack

    def leave(self) -> None:
        """Write down what this visitor saw."""
        self.ended.seen, self.ended.badges = self.visitor.seen, self.visitor.badges
        self.load.dropped += self.visitor.dropped


@contextlib.asynccontextmanager
async def somebody(load: Load, number: int, answers: tuple[str, ...], edits: bool) -> AsyncIterator[Person]:
    """A visitor who has come to stay, and has made an edit if wanted."""
    async with contextlib.AsyncExitStack() as stack:
        async with load.few:
            visitor = await stack.enter_async_context(Visitor(load.page.address, load.note))
            await visitor.until(lambda: visitor.ready)
            person = Person(load, visitor, answers, random.Random(number))
            if edits:
                await person.edit()
        await load.begin()
        yield person
        person.leave()


async def keep_editing(load: Load, number: int) -> None:
    """Edit after edit; now and then one is taken back and done again, and all are taken out."""
    async with somebody(load, number, (ANSWERS[number % len(ANSWERS)],), False) as person:
        while not load.over and not person.visitor.dropped:
            await person.edit()
            if person.stack and person.dice.random() < 0.3:
                await person.step("undo", CHANGE)
                if person.dice.random() < 0.5:
                    await person.step("redo", CHANGE)
            if len(person.stack) >= 3:
                await person.step("reset", CHANGE)
            await load.pause(person.dice.uniform(0.5, 1.5))


async def keep_looking(load: Load, number: int) -> None:
    """Clicks that need no model: another chart, another tab, another page, undo and redo; half have made an edit."""
    async with somebody(load, 1000 + number, ("Paris", "Rome", "Berlin"), bool(number % 2)) as person:
        while not load.over and not person.visitor.dropped:
            await load.pause(person.dice.expovariate(1 / THINK))
            if not load.over:
                what = person.dice.choice(("chart", "tab", "pages", "history"))
                load.unanswered += not await one_click(person, what)


async def one_click(person: Person, what: str) -> bool:
    """One thing somebody does who looks around; False when the page never answered."""
    visitor, dice = person.visitor, person.dice
    if what == "chart" and visitor.can("measure"):
        return await visitor.run(CLICK, measure=[dice.choice(("Per token", "Whole answer"))])
    if what == "pages":
        return await visitor.go("sessions", CLICK) and await visitor.go("", CLICK)
    if what == "history" and person.ended.made:
        for key in ("undo", "redo") if person.stack else ("redo",):
            await person.step(key, CLICK)
        return True
    return await visitor.run(CLICK, pane=dice.choice(("Result", "Ask it")))


async def come_and_go(load: Load, connects: int) -> None:
    """That many more visitors, spread over the time: each opens the page, looks and leaves."""
    await load.begun.wait()

    async def one(number: int) -> None:
        await load.pause(load.seconds * number / connects)
        async with Visitor(load.page.address, load.note) as visitor:
            load.connects += 1
            await asyncio.sleep(0.5)
            load.dropped += visitor.dropped

    await asyncio.gather(*(one(number) for number in range(connects)))


async def kill_twice(load: Load) -> None:
    """The engine's process ends from one moment to the next, twice."""
    await load.begun.wait()
    begins = time.monotonic()
    for share in KILLS:
        await load.pause(begins + share * load.seconds - time.monotonic())
        load.kills += 1
        load.restarts += await load.page.kill_worker()


async def go_through(page: Served, browsers: int, seconds: float, connects: int, windows: int) -> Load:
    """Everybody at once; `windows` of them are real."""
    load = Load(page, seconds)
    page.look()
    watching = asyncio.create_task(page.watch())
    async with asyncio.TaskGroup() as everybody:
        for number in range(browsers - windows):
            stays = keep_editing if number < EDITORS else keep_looking
            everybody.create_task(stays(load, number))
        if windows:
            everybody.create_task(look_and_click(load, windows))
        everybody.create_task(come_and_go(load, connects))
        everybody.create_task(kill_twice(load))
        everybody.create_task(load.begin_when(browsers))
    page.look()
    watching.cancel()
    return load


def measured(options: argparse.Namespace) -> Figures:
    """One run on an empty data folder."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with served(home) as page:
            found = go_through(page, options.browsers, options.minutes * 60, options.connects, options.windows)
            load = asyncio.run(found)
        return figures(load, home)


def main() -> int:
    """Prints the table; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="Many visitors at once on the real page.")
    parser.add_argument("--browsers", type=int, default=50, help="connected at once")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--connects", type=int, default=500, help="more visitors, one after the other")
    parser.add_argument("--windows", type=int, default=2, help="of the browsers, real ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options)
    print_figures(found, options.json)
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
