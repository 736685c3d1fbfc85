"""What the work thread asks of whoever holds the model: the desk. Knows no queue, no session, no model library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from editcore.records import Checkup, EditReport, EditRequest, Form, ModelInfo, Opening, Progress

Standing = Sequence[tuple[Path, float]]  # folders of the patches in place, with their strength, oldest first
Taken = tuple[Path, float, Sequence[EditReport]]  # folder, strength and reports of an edit to be taken away


class Trial(Protocol):
    """One request, tried with any method."""

    def __call__(
        self, method: str, settings: dict[str, Any], report: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> EditReport:
        """Run one edit and keep nothing of it; raises Cancelled soon after stop()."""
        ...


class DeskLike(Protocol):
    """Where the work is done: one loaded model and its methods. Only the work thread touches it."""

    def info(self) -> ModelInfo:
        """The loaded model, described."""
        ...

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        """Answer a short question in plain data."""
        ...

    def edit(
        self,
        standing: Standing,
        requests: Sequence[EditRequest],
        method: str,
        settings: dict[str, Any],
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
        folder: Path,
    ) -> tuple[EditReport, ...]:
        """Make the edits on top of what is standing, write their patch into `folder`, and report on each.

        Several requests without paraphrases or probes are given proposed ones.

        Raises Cancelled soon after stop().
        """
        ...

    def trial(self, standing: Standing, request: EditRequest) -> Trial:
        """The request, ready to be tried with several methods: what they share is done once."""
        ...

    def probe(self, standing: Standing, prompts: list[str], form: Form) -> Any:
        """Read the prompts with the base model and with what is standing."""
        ...

    def view(self, standing: Standing, report: EditReport) -> EditReport:
        """The report with its probes read by the base model and with what is standing."""
        ...

    def measure(
        self, standing: Standing, folder: Path, requests: Sequence[EditRequest], stop: Callable[[], bool]
    ) -> tuple[EditReport, ...]:
        """What the patch in `folder` does at full strength on top of what is standing, one report a request."""
        ...

    def check_up(self, standing: Standing, reports: Sequence[EditReport], stop: Callable[[], bool]) -> Checkup:
        """How the model is with these edits standing."""
        ...

    def adopt(
        self,
        standing: Standing,
        source: Path,
        request: EditRequest | None,
        folder: Callable[[int], Path],
        stop: Callable[[], bool],
    ) -> Sequence[tuple[tuple[EditReport, ...], float]]:
        """Read what somebody took away, and measure each edit on top of those before.

        Args:
            folder: number of an edit, from 1 -> where its patch is written.

        Returns:
            Reports and strength of each edit.
        """
        ...

    def export(
        self,
        format: str,
        edits: Sequence[Taken],
        options: dict[str, Any],
        folder: Path,
        report: Callable[[Progress], None],
    ) -> None:
        """Write edits into `folder`, to be taken away."""
        ...

    def prepare(
        self, method: str, examples: dict[str, Any], report: Callable[[Progress], None], stop: Callable[[], bool]
    ) -> None:
        """Train a method and keep what it learned; raises Cancelled soon after stop()."""
        ...

    def lent(self) -> AbstractContextManager[None]:
        """While the block runs, between two steps of an edit, questions are answered as if there were no edit."""

    def free(self) -> None:
        """Give memory back that nothing needs any more."""

    def memory(self) -> int:
        """Bytes held by the model and its patches."""


OpenDesk = Callable[[Opening, Path, Callable[[str], None]], DeskLike]  # from an opening and home; says how far it is
