"""Everything that can go wrong, as one tree. Every message says what was seen, what was wanted, what to try.

EditcoreError
├── BadInput            the caller can fix it: exit code 2, shown beside the form
│   ├── BadRequest      an empty prompt, an answer that is too long, a probe that leaks the edit
│   ├── SubjectNotFound the subject is missing or not part of the prompt
│   ├── BadSetting      an unknown or out-of-range method setting
│   ├── UnknownMethod   no such method
│   ├── Untrained       a method that learns first has not been trained for this model
│   └── Unsuited        the method cannot edit a model of this kind
├── ModelError          the model cannot be loaded or cannot be edited safely
│   └── WrongModel      a patch made for another model
├── PatchError          a patch file is damaged
├── Diverged            an edit produced a number that is not finite
├── Cancelled           somebody asked to stop
├── OutOfMemory         the device had not enough left; nothing was kept
└── EngineError         the worker is not there, or broke
    └── EngineBusy      the queue is full
"""

from __future__ import annotations


class EditcoreError(Exception):
    """Root of the tree.

    Args:
        seen: what was found, in a full sentence.
        wanted: what would have been right (may be empty).
        try_: what to do next (may be empty).
    """

    def __init__(self, seen: str, wanted: str = "", try_: str = "") -> None:
        self.seen, self.wanted, self.try_ = seen, wanted, try_
        super().__init__(" ".join(part for part in (seen, wanted, try_) if part))


class BadInput(EditcoreError):
    """The caller can fix it."""


class BadRequest(BadInput):
    """The request itself cannot be carried out."""


class SubjectNotFound(BadInput):
    """The subject is missing, or is not part of the prompt."""


class BadSetting(BadInput):
    """An unknown method setting, or a value outside its bounds."""


class UnknownMethod(BadInput):
    """No method has this name."""


class Untrained(BadInput):
    """A method that learns first has not been trained for this model."""


class Unsuited(BadInput):
    """The method cannot edit a model of this kind."""


class ModelError(EditcoreError):
    """The model cannot be loaded, or not edited safely.

    Args:
        private: what only whoever runs this machine should read, such as what else is on its disk. It is part of the
            message here and does not cross to a page.
    """

    def __init__(self, seen: str, wanted: str = "", try_: str = "", private: str = "") -> None:
        super().__init__(seen, wanted, try_)
        self.private = private
        self.args = (" ".join(part for part in (seen, wanted, try_, private) if part),)


class WrongModel(ModelError):
    """A patch was made for another model."""


class PatchError(EditcoreError):
    """A patch on disk is damaged or incomplete."""


class Diverged(EditcoreError):
    """An edit produced a number that is not finite; nothing was kept."""


class Cancelled(EditcoreError):
    """The work was stopped on request; nothing was kept."""


class OutOfMemory(EditcoreError):
    """The device had not enough memory left; nothing was kept."""


class EngineError(EditcoreError):
    """The engine is not running, did not answer, or broke while working."""


class EngineBusy(EngineError):
    """The engine's queue is full."""


BY_NAME: dict[str, type[EditcoreError]] = {
    kind.__name__: kind
    for kind in (
        EditcoreError, BadInput, BadRequest, SubjectNotFound, BadSetting, UnknownMethod, Untrained, Unsuited,
        ModelError, WrongModel, PatchError, Diverged, Cancelled, OutOfMemory, EngineError, EngineBusy,
    )
}  # fmt: skip
_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")


def first_line(error: BaseException) -> str:
    """What an error of a library says first, cut where it gets long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def is_out_of_memory(error: BaseException) -> bool:
    """True for what a library raises when memory cannot be had."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
