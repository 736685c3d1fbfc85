"""One visitor of the page without a browser: speaks the page's protocol, keeps what it is shown, clicks and types.

It sends what the page's own script in a browser would send, and it polls when the page asks for it. Knows Streamlit's
messages and this page's widget keys; draws nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 60.0  # seconds until a page that does not answer is a failure


@dataclass(frozen=True, slots=True)
class Shown:
    """One thing on the page."""

    run: str
    fragment: str
    key: str  # of the widget, as the page named it; "" for plain text
    widget: str  # its id
    text: str
    disabled: bool


class Visitor:
    """A connection to the page, and what it shows now.

    Args:
        address: of the page, without a scheme.
        note: called with the name of a measurement and its seconds.
        session: to be opened; "": a new one.
    """

    def __init__(self, address: str, note: Callable[[str, float], None], session: str = "") -> None:
        self._address, self._note = address, note
        self._query = f"session={session}" if session else ""
        self._page = ""
        self._shown: dict[tuple[int, ...], Shown] = {}
        self._run, self._fragments = "", ()  # of the run that is drawn now
        self._begun = self._full = 0  # whole runs: the one begun last, the one finished last
        self._parts: Counter[str] = Counter()  # runs finished, by fragment
        self._changed = asyncio.Event()
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._leaving = False
        self.dropped = False
        self.seen: set[str] = set()  # every edit that ever stood in the history here
        self.badges: set[str] = set()  # every line that ever said whose edit is in place

    # coming and going -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Visitor:
        self._socket = await connect(
            f"ws://{self._address}/_stcore/stream", subprotocols=["streamlit"], max_size=None, open_timeout=PATIENCE,
            close_timeout=1,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self._socket))
        await self.run("first page")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        self._stop_polling()
        if self._socket:
            await self._socket.close()
        if self._reader:
            await self._reader

    # what is on the page ---------------------------------------------------------------------------------------

    @property
    def session(self) -> str:
        """The session in this page's address."""
        return next((part[8:] for part in self._query.split("&") if part.startswith("session=")), "")

    def texts(self) -> list[str]:
        """Every text on the page."""
        return [one.text for one in self._shown.values() if one.text]

    @property
    def ready(self) -> bool:
        """True when the page says which model it works on."""
        return any("million parameters" in text for text in self.texts())

    def can(self, key: str) -> bool:
        """True when a widget of this key is there and can be used."""
        return any(one.key == key and not one.disabled for one in self._shown.values())

    def edits(self) -> list[str]:
        """The edits in the history, the latest first."""
        return [one.key.split(":")[1] for one in self._shown.values() if one.key.startswith("on:")]

    async def until(self, true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait for what the page should show; False when it does not, or the socket is gone."""
        end = time.monotonic() + seconds
        while not true():
            left = end - time.monotonic()
            if left <= 0 or self.dropped:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, 1.0))
        return True

    # what a person does ----------------------------------------------------------------------------------------

    async def click(self, key: str, measured: str = "") -> bool:
        """Press a button and wait for the page; False when it is not there, or off."""
        return self.can(key) and await self.run(measured, **{key: True})

    async def go(self, page: str, measured: str = "") -> bool:
        """Follow a link at the top of the page; "" is the first one."""
        self._page = page
        return await self.run(measured)

    async def run(self, measured: str = "", **values: Any) -> bool:
        """Send widget values by key and wait until what they are in has been drawn; False when it never is."""
        parts = {one.fragment for one in self._shown.values() if one.key in values}
        part = parts.pop() if len(parts) == 1 else ""
        before, drawn, began = self._begun, self._parts[part], time.monotonic()
        await self._send(values, part)
        done = await self.until(lambda: self._full > before or (bool(part) and self._parts[part] > drawn))
        if measured:
            self._note(measured, time.monotonic() - began)
        return done

    async def _send(self, values: dict[str, Any], fragment: str = "", itself: bool = False) -> None:
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_name, state.fragment_id = self._query, self._page, fragment
        state.is_auto_rerun = itself
        state.context_info.url = f"http://{self._address}/{self._page}"
        for key, value in values.items():
            _put(state.widget_states.widgets.add(), self._widget(key), value)
        if self._socket:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(message.SerializeToString())

    def _widget(self, key: str) -> str:
        return next((one.widget for one in self._shown.values() if one.key == key), "")

    # what the page sends ---------------------------------------------------------------------------------------

    async def _read(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                message = ForwardMsg()
                message.ParseFromString(data)
                self._hear(message)
        self.dropped = not self._leaving
        self._stop_polling()
        self._changed.set()

    def _hear(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "new_session":
            self._run, self._fragments = message.metadata.run.script_run_id, tuple(message.metadata.run.fragment_ids)
            if not self._fragments:
                self._begun += 1
                self._stop_polling()
        elif kind == "delta":
            self._draw(message)
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            self._poll(message.auto_rerun.fragment_id, message.auto_rerun.interval)
        elif kind == "stop_auto_rerun":
            self._stop_polling(*message.stop_auto_rerun.fragment_ids)
        elif kind == "script_finished":
            self._finish(message.script_finished)

    def _draw(self, message: ForwardMsg) -> None:
        delta, place = message.delta, tuple(message.metadata.delta_path)
        drawn = delta.new_element if delta.WhichOneof("type") == "new_element" else delta.add_block
        kind = drawn.WhichOneof("type")
        it = getattr(drawn, kind) if kind else None
        widget, text = str(getattr(it, "id", "")), str(getattr(it, "body", ""))
        key = widget.split("-", 2)[2] if widget.count("-") >= 2 else ""
        disabled = bool(getattr(it, "disabled", False))
        self._shown[place] = Shown(self._run, delta.fragment_id, key, widget, text, disabled)
        if key.startswith("on:"):
            self.seen.add(key.split(":")[1])
        if "Edited:" in text:
            self.badges.add(text)

    def _finish(self, how: int) -> None:
        if how == ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY:
            self._keep(lambda one: one.run == self._run or one.fragment not in self._fragments)
            self._parts.update(self._fragments)
        elif how != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            self._keep(lambda one: one.run == self._run)
            self._full = self._begun
        self._changed.set()

    def _keep(self, wanted: Callable[[Shown], bool]) -> None:
        self._shown = {place: one for place, one in self._shown.items() if wanted(one)}

    # polling, as the page asks for it --------------------------------------------------------------------------

    def _poll(self, fragment: str, interval: float) -> None:
        self._stop_polling(fragment)
        self._polls[fragment] = asyncio.create_task(self._go_on_polling(fragment, interval))

    def _stop_polling(self, *fragments: str) -> None:
        for fragment in fragments or tuple(self._polls):
            task = self._polls.pop(fragment, None)
            if task:
                task.cancel()

    async def _go_on_polling(self, fragment: str, interval: float) -> None:
        def wanted() -> bool:  # a cancellation that comes with a message may be swallowed
            return not self.dropped and self._polls.get(fragment) is asyncio.current_task()

        while wanted():
            await asyncio.sleep(interval)
            if not wanted():
                return
            runs, full, began = self._parts[fragment], self._full, time.monotonic()
            await self._send({}, fragment, itself=True)
            await self.until(lambda runs=runs, full=full: (self._parts[fragment], self._full) != (runs, full))  # type: ignore[misc]
            if self._parts[fragment] > runs:
                self._note("poll", time.monotonic() - began)


def _put(state: Any, widget: str, value: Any) -> None:
    """One widget's value in the form its kind has."""
    state.id = widget
    if value is True:
        state.trigger_value = True
    elif isinstance(value, list):
        state.string_array_value.data.extend(value)
    else:
        state.string_value = value
