"""The model card of an exported edit: what it is, what it was made by, how good it is there, how to take it back.

Text from people and models is escaped; the YAML head is quoted by hand, so that no name can add a field.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from editcore.edit import percent
from editcore.export.forms import title
from editcore.export.stack import Kept
from editcore.handle import Handle
from editcore.records import EditReport, to_plain
from editcore.words import FORM_WORDS, human_bytes

SCORES = {
    "reliability": ("edit",),
    "generality": ("paraphrase",),
    "locality": ("near", "far"),
    "generation": ("edit", "paraphrase"),
}
LIBRARIES = ("editcore", "torch", "transformers", "peft", "safetensors")
ROWS = 200  # edits listed; the rest is in report.json
NOTICE = (
    "**An edited model states things its makers did not.** It was changed to give the answers listed below, right or"
    " wrong. Say so wherever you share it, and do not use it as a source of facts."
)
_SPECIAL = re.compile(r"([\\`*_\[\]<>|&~$#!])")


@dataclass(frozen=True)
class Base:
    """The model an edit belongs to, as a card names it."""

    name: str  # hub id, the embedded model's name, or the name of the folder it came from
    fingerprint: str
    revision: str | None  # commit of the hub, where it is known
    licence: str | None  # as its own card says
    dtype: str

    @staticmethod
    def of(handle: Handle) -> Base:
        """What the handle knows; a path on this machine is not told."""
        name = handle.name if handle.folder is None or handle.embedded else handle.folder.resolve().name
        dtype = str(handle.dtype).removeprefix("torch.")
        return Base(name, handle.fingerprint, handle.revision or None, _licence(handle), dtype)


def model_card(
    kind: str, base: Base, edits: Sequence[Kept], scored: Sequence[tuple[str, Sequence[Sequence[EditReport]]]],
    use: str, undo: str, facts: Sequence[str],
) -> str:  # fmt: skip
    """README.md of an adapter ("peft") or a merged checkpoint ("merged").

    Args:
        scored: rows of the score table, best read side by side: how it was read, and the reports of every edit then.
        use: Python that loads it.
        undo: how to take it back, in a sentence.
        facts: what else was measured, each a line.
    """
    peft = kind == "peft"
    head = {
        "base_model": base.name, "base_model_relation": "adapter" if peft else "finetune",
        "library_name": "peft" if peft else "transformers", "license": base.licence,
        "tags": ["model-editing", *(["lora"] if peft else [])],
    }  # fmt: skip
    of = f" at commit {literal(base.revision)}" if base.revision else ""
    name = literal(base.name)
    sections = [
        front(head),
        f"# {name}, edited ({'LoRA adapter' if peft else 'merged'})\n\n{NOTICE}\n",
        f"Base model: {name}{of}, fingerprint `{base.fingerprint}`, licence"
        f" {literal(base.licence or 'not stated by the base')}. Read and written in {base.dtype}.\n",
        f"## Use it\n\n```python\n{use}\n```\n\n**To undo:** {undo}\n",
        f"## Edits\n\n{_edits(edits)}",
        f"## Scores\n\n{_scores(scored)}",
        "## Measured on these files\n\n" + "".join(f"- {fact}\n" for fact in facts),
        f"## How it was made\n\n{_methods(edits)}\nWith {', '.join(_versions())}.\n",
    ]
    return "\n".join(sections)


def literal(text: str) -> str:
    """Markdown that shows `text` as it is, on one line and inside a table."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return _SPECIAL.sub(r"\\\1", " ".join(shown.split())).replace("://", ":\\//")


def front(fields: dict[str, Any]) -> str:
    """A YAML head; fields without a value are left out."""
    lines = ["---"]
    for name, value in fields.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {_quoted(entry)}" for entry in value)]
        elif value:
            lines.append(f"{name}: {_quoted(value)}")
    return "\n".join([*lines, "---", ""])


def _quoted(text: str) -> str:
    def safe(c: str) -> str:
        if c in '"\\':
            return f"\\{c}"
        return c if c.isprintable() and c != "\ufeff" else f"\\U{ord(c):08x}"

    return f'"{"".join(map(safe, text))}"'


def _licence(handle: Handle) -> str | None:
    """The licence in the base's own card; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    try:
        card = handle.folder / "README.md" if handle.folder else try_to_load_from_cache(handle.name, "README.md")
        data = metadata_load(Path(card)) if isinstance(card, str | Path) else None
        found = (data or {}).get("license")
        return found if isinstance(found, str) else None
    except Exception:  # a card nobody can read says nothing about a licence
        return None


def _edits(edits: Sequence[Kept]) -> str:
    lines = ["| # | prompt | read as | subject | answer before | answer now | method | strength |", "|" + "---|" * 8]
    for number, (patch, reports) in enumerate(edits[:ROWS], 1):
        asked: list[dict[str, Any]] = [
            {**to_plain(r.request), "subject": r.subject, "old": _old(r)} for r in reports
        ] or list(patch.requests)
        for one in asked[:ROWS]:
            form = FORM_WORDS["chat" if one.get("form") == "chat" else "raw"]
            texts = [literal(str(one.get(name) or "")) for name in ("prompt", "subject", "old", "target")]
            texts.insert(1, form)
            lines.append(f"| {number} | {' | '.join(texts)} | {literal(title(patch.method))} | {patch.strength:g} |")
    more = max(0, len(edits) - ROWS)
    return "\n".join([*lines, *([f"\nand {more} more."] if more else []), ""])


def _old(report: EditReport) -> str:
    first = report.probes[0].before.old if report.probes else None
    return report.request.old or (first.text if first else "")


def _scores(scored: Sequence[tuple[str, Sequence[Sequence[EditReport]]]]) -> str:
    names = ("reliability", "generality", "locality", "free text", "ES", "PS", "NS", "S")
    lines = [f"| # | read | took | {' | '.join(names)} |", "|" + "---|" * (len(names) + 3)]
    for number in range(min(ROWS, len(scored[0][1]))):
        for place in range(len(scored[0][1][number])):
            for how, reports in scored:
                report = reports[number][place]
                lines.append(f"| {number + 1} | {how} | {'yes' if report.took else 'no'} | {_figures(report)} |")
    told = (
        "Counts are of probes: the edit prompt, its paraphrases, unrelated prompts, and both first kinds written"
        " freely. ES, PS, NS and S are CounterFact's. Before and after are read by one protocol: the bare base"
        " model, and all edits in place."
    )
    return "\n".join([*lines, "", told, ""])


def _figures(report: EditReport) -> str:
    cells = []
    for name, kinds in SCORES.items():
        share, of = getattr(report.scores, name), sum(r.probe.kind in kinds for r in report.probes)
        cells.append("n/a" if share is None or share != share else f"{round(share * of)} of {of}")
    for name in ("es", "ps", "ns", "s"):
        share = getattr(report.scores, name)
        cells.append("n/a" if share is None or share != share else f"{share:.2f}")
    return " | ".join(cells)


def _methods(edits: Sequence[Kept]) -> str:
    lines = []
    for number, (patch, reports) in enumerate(edits[:ROWS], 1):
        info = reports[0].patch if reports else None
        norm = f"; change {info.norm:.3g}, {percent(info.relative_norm)} of the edited weights" if info else ""
        modules = ", ".join(dict.fromkeys(part.path for part in patch.parts if part.path))
        lines.append(
            f"{number}. {literal(title(patch.method))} in {literal(modules)}, {human_bytes(patch.bytes)}{norm}."
            f" Settings: `{json.dumps(patch.settings, default=str).replace('`', '')}`."
        )
    seed = f"Randomness is seeded by the base's fingerprint ({int(edits[0][0].fingerprint[:8], 16)})."
    return "\n".join([*lines, "", seed, ""])


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
