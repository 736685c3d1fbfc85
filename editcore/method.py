"""What every editing method is: a frozen dataclass of settings with one function that returns a patch.

Forms, command lines and documentation are read off the dataclass fields. Shared mathematics lives in `algebra`,
never in a parent class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from editcore.anatomy import Site
from editcore.errors import Cancelled
from editcore.handle import Handle
from editcore.patch import Part, Patch
from editcore.records import EditRequest, MethodInfo, Progress, SettingInfo, to_plain


@dataclass(frozen=True)
class Work:
    """Everything a method may use while it runs."""

    handle: Handle
    report: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    home: Path | None = None  # where statistics are cached; None: nowhere
    patches: Sequence[Patch] = ()  # what is already in place on the handle
    notes: list[str] = field(default_factory=list)  # warnings for the report

    def check(self) -> None:
        """Raises Cancelled when somebody asked to stop; called between steps."""
        if self.stop():
            raise Cancelled("The edit was stopped on request.", "Nothing was changed.")


@dataclass(frozen=True, slots=True)
class Pass:
    """Some passes of an edit through the model, all alike."""

    rows: int  # texts
    tokens: int  # of each that are read
    first: int  # the first block that runs
    last: int | None  # the last one; None: all of them and the head
    reads: int = 0  # places, in all rows, whose next token is predicted
    times: int = 1
    backward: bool = False  # a gradient is taken, back to `first`
    before: int = 0  # tokens in front of each text whose keys and values are kept
    played: bool = False  # steps of a descent: a GPU may play what it recorded (see `steps`)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an edit is expected to take, beside statistics and a trained editor; bytes."""

    patch: int  # size of the result
    state: int = 0  # what it holds while it runs, without the model and its activations
    passes: tuple[Pass, ...] = ()
    moved: int = 0  # read and written beside the passes
    once: tuple[Pass, ...] = ()  # passes that only the first edit makes: what they give is kept
    text: int = 0  # tokens of running text that are wanted and not there yet
    spectra: tuple[int, ...] = ()  # widths of the second moments whose eigenvectors are wanted and not there yet


class Method(Protocol):
    """One way to edit. Settings are dataclass fields made by `setting`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    title: ClassVar[str]
    sentence: ClassVar[str]  # what it does, for a person who chooses
    remedy: ClassVar[str]  # what to try when the edit did not take
    paper: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    one_stack: ClassVar[str]  # why it cannot edit an encoder-decoder; "": it can

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """Computes the patch and leaves no trace in the model."""
        ...

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The blocks this method would edit."""
        ...

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """The sites whose statistics it reads."""
        ...

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """What one edit is expected to take, at most: passes are counted as if it never stopped early."""
        ...


def made_by(method: Method, handle: Handle, parts: Sequence[Part], requests: Sequence[EditRequest]) -> Patch:
    """`parts` as a patch that says which model, method, settings and requests it comes from."""
    return Patch(
        tuple(parts),
        handle.name,
        handle.fingerprint,
        method.name,
        dataclasses.asdict(method),
        tuple(to_plain(request) for request in requests),
    )


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    kind: str = "",
) -> Any:
    """A dataclass field with what a form needs to know; a default of None means "chosen for the model"."""
    kind = kind or ("choice" if choices else type(default).__name__)
    return field(default=default, metadata={"kind": kind, "help": help, "low": low, "high": high, "choices": choices})


def describe(method: type[Method]) -> MethodInfo:
    """A method as plain data."""
    dials = tuple(
        SettingInfo(
            name=f.name,
            kind=f.metadata["kind"],
            default=f.default,
            help=f.metadata["help"],
            low=f.metadata["low"],
            high=f.metadata["high"],
            choices=f.metadata["choices"],
            optional=f.default is None,
        )
        for f in dataclasses.fields(method)
    )
    return MethodInfo(method.name, method.title, method.sentence, method.paper, method.needs, dials)
