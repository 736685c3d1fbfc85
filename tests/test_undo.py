"""Undo is exact: whatever is done to sessions, and whatever goes wrong, each answers as a replay of its log says.

The engine is the real one around a tiny model, with every method of the menu. What a session must answer comes from a
model that was never in an engine, with the patches attached as their methods returned them: compared bit by bit.
"""

from __future__ import annotations

import copy
import random
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from editcore import checkup, history, measure
from editcore.engine import InlineEngine, new_session, room
from editcore.errors import BadRequest
from editcore.history import Move, Place
from editcore.opening import fingerprint, wrap
from tests import models
from tests.cases import ONE, TWO
from tests.faulty_desk import ENDS, STEPS, Fault, FaultyDesk, Script, logits
from tests.schooled import school, show
from tests.test_methods import LEARNING, NAMES, QUICK, TRAINED, Untouched

FAMILY = "llama"
REQUESTS = ((ONE,), (ONE, TWO))  # one alone, and a list in one patch
STRENGTHS = (0.0, 0.3, 0.5, 1.0, 1.5)
MOVES = ("toggle", "scale", "remove", "up", "down", "reset")
FAULTS = tuple(kind for kind in ENDS if kind)
EVERY_KIND = ("rome", "ft", "grace", "wise", "serac", "ice")  # of part that a patch can have
ASKED_DURING = ("memit", "ft", "grace", "wise")  # every way to have something attached
INSIDE = ("raise", "cancel", "pass", "nan")  # happen while a method works
ACTS = (*["apply"] * 4, *["broken"] * 4, *["undo"] * 7, *["redo"] * 3, *MOVES * 2, "again", "again, broken",
        "together", "dropped", "restart")  # fmt: skip
EXAMPLES = 6


class Log:
    """What was done to a session: its stacks, one an action, and the one in force."""

    def __init__(self) -> None:
        self.stacks: list[history.Stack] = [()]
        self.cursor = 0

    @property
    def stack(self) -> history.Stack:
        return self.stacks[self.cursor]

    def act(self, after: history.Stack) -> None:
        if after != self.stack:
            self.stacks, self.cursor = [*self.stacks[: self.cursor + 1], after], self.cursor + 1

    def step(self, by: int) -> None:
        self.cursor = min(max(0, self.cursor + by), len(self.stacks) - 1)


class Rig:
    """An engine around a tiny model, and what each of its sessions must be."""

    def __init__(self, home) -> None:
        self.home, self.script, self.logs, self.expected = home, Script(self.cancel), {}, {}
        self.pristine = copy.deepcopy(models.model(FAMILY))
        self.pristine.config.max_position_embeddings = 4096  # rotary: room for many texts in front of a prompt
        self.handle = self.fresh()
        for name in TRAINED:
            school(models.handle(FAMILY), name)
            self.handle.memory["editor", name] = models.handle(FAMILY).memory["editor", name]
        show(self.handle)
        self.base, self.untouched = logits(self.fresh(), ()), Untouched(self.handle)
        self.engine = self.opened()

    def fresh(self):
        return wrap(copy.deepcopy(self.pristine), models.tokenizer(), f"tiny-{FAMILY}")

    def opened(self) -> InlineEngine:
        return InlineEngine("tiny", self.home, lambda model, home, say: FaultyDesk(self.handle, home, self.script))

    def restart(self) -> None:
        self.engine.close()
        self.engine = self.opened()

    def cancel(self, job: str) -> None:
        self.engine.cancel(job)

    def session(self) -> str:
        made = new_session()
        self.logs[made] = Log()
        return made

    # what can be done, and what must come of it ------------------------------------------------------------------

    def submit(self, session, name, requests) -> str:
        steps = {"steps": 4} if name in LEARNING else {}
        values = {**steps, **QUICK.get(name, {"layer": 1}), **({"count": 1} if name == "ike" else {})}
        return self.engine.submit(session, requests, name, values, str(random.random()))

    def finish(self, job, ends) -> None:
        end = time.monotonic() + 120
        while not (state := self.engine.poll(job)).finished:
            assert time.monotonic() < end
            time.sleep(0.001)
        assert state.status == ends, state.error

    def apply(self, session, name, requests, fault=Fault()) -> None:  # noqa: B008
        self.carry_out(session, self.submit(session, name, requests), fault)

    def carry_out(self, session, job, fault=Fault()) -> None:  # noqa: B008
        self.script.plan(job, fault)
        self.finish(job, ENDS[fault.kind])
        if ENDS[fault.kind] == "done":
            self.logs[session].act((*self.logs[session].stack, Place(job)))

    def together(self, sessions, name, requests) -> None:
        for session, job in [(s, self.submit(s, name, requests)) for s in sessions]:
            self.carry_out(session, job)

    def dropped(self, session, other, name, requests) -> None:
        """One job is taken away while it waits behind another."""
        first, second = self.submit(session, name, requests), self.submit(other, name, requests)
        self.cancel(second)
        self.finish(second, "cancelled")
        self.carry_out(session, first)

    def again(self, session, number, fault=Fault()) -> None:  # noqa: B008
        log = self.logs[session]
        if not log.stack:
            return
        at = number % len(log.stack)
        job = self.engine.recompute(session, log.stack[at].edit, str(random.random()))
        self.script.plan(job, fault)
        self.finish(job, ENDS[fault.kind])
        if ENDS[fault.kind] == "done":
            made = (Place(f"{job}-{n}", p.on, p.strength) for n, p in enumerate(log.stack[at:], 1))
            log.act((*log.stack[:at], *made))

    def move(self, session, move) -> None:
        log = self.logs[session]
        try:
            after = history.moved(log.stack, move)
        except BadRequest:
            with pytest.raises(BadRequest):
                self.engine.sessions.move(session, move)
            return
        self.engine.sessions.move(session, move)
        log.act(after)

    def undo(self, session) -> None:
        self.engine.sessions.undo(session)
        self.logs[session].step(-1)

    def redo(self, session) -> None:
        self.engine.sessions.redo(session)
        self.logs[session].step(1)

    # what must be so ---------------------------------------------------------------------------------------------

    def replayed(self, stack) -> str:
        """The logits of a model that was never in an engine, with exactly these patches."""
        placed = [self.script.made[edit].scaled(strength) for edit, strength in history.in_place(stack)]
        key = tuple((id(patch.parts), patch.strength) for patch in placed)
        if key not in self.expected:
            self.expected[key] = logits(self.fresh(), placed)
        return self.expected[key]

    def check(self, session) -> None:
        stack, state = self.logs[session].stack, self.engine.sessions.state(session)
        assert tuple(Place(r.edit, r.on, r.strength) for r in state.rows) == stack
        assert state.job is None and state.edited == bool(history.in_place(stack))
        (told,) = self.engine.probe(session, ["?"])
        assert told["base"] == self.base
        assert (told["edited"] or told["base"]) == self.replayed(stack)

    def check_undone(self, session) -> None:
        """Undoes everything, looks, and does everything again that was ever undone and not replaced."""
        for _ in range(len(self.logs[session].stacks)):
            self.undo(session)
        self.check(session)
        assert self.engine.probe(session, ["?"])[0]["edited"] is None and not self.engine.sessions.state(session).undo
        for _ in range(len(self.logs[session].stacks) + 3):
            self.redo(session)
        self.check(session)
        assert not self.engine.sessions.state(session).redo

    def check_nothing_left(self) -> None:
        assert not self.engine.sessions.state(new_session()).rows and not list((self.home / "scratch").glob("*"))
        assert fingerprint(self.handle.model) == self.handle.fingerprint == fingerprint(self.pristine)
        self.untouched.check()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (measure, "CONTINUATION", 2),
            (checkup, "CONTINUATION", 2),
            (checkup, "PASSAGES", 2),
        ):
            patch.setattr(module, name, value)
        made = Rig(tmp_path_factory.mktemp("home"))
        made.script.refuse(patch)
        yield made
        made.engine.close()


@pytest.fixture
def real(rig):
    """Every edit is computed."""
    rig.script.replaying = False
    yield rig
    rig.script.replaying = True


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_did_is_undone_to_the_bit(real, name):
    session = real.session()
    for requests in REQUESTS:
        real.apply(session, name, requests)
        real.check(session)
    assert real.replayed(real.logs[session].stack) != real.base
    real.move(session, Move("scale", real.logs[session].stack[0].edit, 0.5))
    real.move(session, Move("toggle", real.logs[session].stack[1].edit, 0))
    real.check(session)
    real.check_undone(session)


@pytest.fixture(scope="module")
def busy(rig):
    """A session with a part of every kind in place."""
    session = rig.session()
    for name in EVERY_KIND:
        rig.apply(session, name, (TWO,))
    return session


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_breaks_leaves_session_and_model_as_they_were(real, busy, name, kind):
    real.apply(busy, name, (ONE,), Fault(kind, STEPS))
    real.check(busy)
    real.check_nothing_left()


@pytest.mark.parametrize("name", ASKED_DURING)
def test_questions_between_the_steps_of_an_edit_change_neither_it_nor_their_answers(real, busy, monkeypatch, name):
    monkeypatch.setattr(room, "_SHARE", 1e-9)  # one at every step
    other, during = real.session(), []
    real.apply(other, "ice", (ONE,))

    def made(*askers):
        job = real.submit(busy, name, (ONE,))
        while real.engine.poll(job).status != "running":  # it waits for what is planned, and so do the questions
            time.sleep(0.001)
        asked = [real.engine._room.probe(asker, ["?"], "raw", 60.0) for asker in askers]
        for answer in asked:
            answer.add_done_callback(lambda _: during.append(real.engine.poll(job).status))
        real.carry_out(busy, job)
        real.undo(busy)
        return real.script.made[job], [answer.result(60.0)[0] for answer in asked]

    quiet, _ = made()
    asked, told = made(other, busy, real.session())
    assert during.count("running") >= 2
    expected = [real.replayed(real.logs[session].stack) for session in (other, busy)]
    assert [t["edited"] for t in told] == [*expected, None] and {t["base"] for t in told} == {real.base}
    for before, after in zip(quiet.parts, asked.parts, strict=True):
        assert all(torch.equal(after.tensors[key], tensor) for key, tensor in before.tensors.items())
    real.check(busy)
    real.check_nothing_left()


def do(rig, sessions, act, which, number, name, requests) -> None:
    """One act on one of the sessions."""
    session, other = sessions[which], sessions[which - 1]
    fault = Fault(FAULTS[number % len(FAULTS)], 1 + number % STEPS)
    stack = rig.logs[session].stack
    edit = stack[number % len(stack)].edit if stack else ""
    match act:
        case "apply" | "broken":
            rig.apply(session, name, requests, Fault() if act == "apply" else fault)
        case "again" | "again, broken":
            rig.again(session, number, Fault() if act == "again" else fault)
        case "together":
            rig.together(sessions, name, requests)
        case "dropped":
            rig.dropped(session, other, name, requests)
        case "undo" | "redo":
            for _ in range(1 + number % 3):
                {"undo": rig.undo, "redo": rig.redo}[act](session)
        case "restart":
            rig.restart()
        case _:
            rig.move(session, Move(act, edit, STRENGTHS[number % 5] if act == "scale" else float(number % 2)))


DONE = st.tuples(
    st.sampled_from(ACTS), st.integers(0, 1), st.integers(0, 99), st.sampled_from(NAMES), st.sampled_from(REQUESTS)
)


def test_whatever_is_done_each_session_is_a_replay_of_its_log_and_undoes_to_the_base(rig):
    used = set()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck,
        phases=[Phase.generate],  # making a failure smaller would take minutes
    )  # fmt: skip
    @given(st.lists(DONE, min_size=35, max_size=45))
    def holds(acts):
        sessions = [rig.session() for _ in range(2)]
        for act in acts:
            do(rig, sessions, *act)
            rig.check(sessions[act[1]])
            used.add(act[3])
        for session in sessions:
            rig.check(session)
            rig.check_undone(session)
        rig.check_nothing_left()

    holds()
    assert used == set(NAMES)


def test_browsers_that_act_at_the_same_time_never_see_each_others_edits(rig):
    sessions, wrong = [rig.session() for _ in range(3)], []

    def browse(seed):
        chance, session = random.Random(seed), sessions[seed]
        try:
            for _ in range(15):
                act = chance.choice([a for a in ACTS if a not in ("together", "dropped", "restart")])
                do(rig, [session], act, 0, chance.randrange(100), chance.choice(NAMES), chance.choice(REQUESTS))
                rig.check(session)
        except BaseException as error:
            wrong.append(error)

    browsers = [threading.Thread(target=browse, args=(seed,)) for seed in range(3)]
    for browser in browsers:
        browser.start()
    for browser in browsers:
        browser.join(300)
    assert not wrong
    for session in sessions:
        rig.check_undone(session)
    rig.check_nothing_left()
