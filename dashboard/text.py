"""Words on the page. Makes other people's text harmless and numbers readable; knows no widget and no record.

Everything a person typed or a model said passes through `plain` (markdown) or `chart_text` (plotly) before it
reaches a place that interprets markup.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from difflib import SequenceMatcher

from editcore import words

NOT_AVAILABLE = "n/a"
_JOINER = "\u2060"  # invisible: keeps ":word:" and "->" from being read as shortcodes after unescaping
_PUNCTUATION = frozenset(string.punctuation)
_SHORTCODE = frozenset(":<>-=")
_NAMES = {"\n": " ⏎ ", "\r": "", "\t": " ⇥ "}


def visible(text: str) -> str:
    """One line, every character showable: line ends and tabs as glyphs, control characters and lone surrogates as �."""
    if text.isascii() and text.isprintable():  # nearly always
        return text
    shown = "".join(_NAMES.get(c, "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c) for c in text)
    right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL", "RLE", "RLO", "RLI") for c in shown)
    return f"\u2068{shown}\u2069" if right_to_left else shown


def plain(text: str) -> str:
    """Markdown that shows `text` literally: no emphasis, links, images, colours, formulas, icons or HTML."""
    shown = visible(text).strip()
    return "".join(_literal(c, after) for c, after in zip(shown, f"{shown[1:]} ", strict=False))


def message(text: str) -> str:
    """`plain`, but what stands between two backticks in a message of ours is a command and shown as one."""
    parts = re.split(r"`([^`\n]+)`", text)
    return "".join(f"`{visible(part)}`" if number % 2 else _keep_ends(part) for number, part in enumerate(parts))


def _keep_ends(text: str) -> str:
    """`plain` without stripping: the text has neighbours."""
    start, end = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{start}{plain(text)}{end if text.strip() else ''}"


def _literal(letter: str, after: str) -> str:
    escaped = f"\\{letter}" if letter in _PUNCTUATION else letter
    joined = letter in ":<" or (letter in _SHORTCODE and after in _SHORTCODE)
    return escaped + _JOINER * joined


def chart_text(text: str) -> str:
    """Plotly label that shows `text` literally: plotly reads `<b>`, `<a>` and entities in labels and hovers."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the middle replaced by an ellipsis: prompts differ at both ends."""
    if len(text) <= width:
        return text
    tail = max(1, (width - 1) // 3)
    return f"{text[: width - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage; very small ones stay visible; nothing or NaN is n/a."""
    if share is None or math.isnan(share):
        return NOT_AVAILABLE
    if 0 < share < 0.001:
        return "< 0.1 %"
    value = 100 * share
    return f"{value:.1f} %" if value < 10 and round(value, 1) != round(value) else f"{value:.0f} %"


def duration(seconds: float | None) -> str:
    """See `words.duration`; nothing is n/a."""
    return NOT_AVAILABLE if seconds is None else words.duration(seconds)


def size(count: float | None) -> str:
    """Bytes with a decimal unit."""
    if count is None:
        return NOT_AVAILABLE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return NOT_AVAILABLE


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 probe", "3 probes"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def token(text: str) -> str:
    """A token with its spaces visible."""
    return visible(text).replace(" ", "·") or "∅"


def reading(text: str, answer: str) -> str:
    """What a model reads up to its answer, line by line: line ends marked and kept, a bar where the answer begins.

    A space in front of the answer is a dot.
    """
    said = f"·{answer[1:]}" if answer.startswith(" ") else answer
    return "⏎\n".join(visible(line) for line in f"{text}▏{said}".split("\n"))


def changed_words(before: str, after: str) -> tuple[tuple[tuple[str, bool], ...], tuple[tuple[str, bool], ...]]:
    """Both texts as words, each with True when it is not shared with the other text in the same order."""
    left, right = re.findall(r"\S+", before), re.findall(r"\S+", after)
    kept_left: set[int] = set()
    kept_right: set[int] = set()
    for block in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        kept_left.update(range(block.a, block.a + block.size))
        kept_right.update(range(block.b, block.b + block.size))
    return (
        tuple((word, i not in kept_left) for i, word in enumerate(left)),
        tuple((word, i not in kept_right) for i, word in enumerate(right)),
    )


def marked(words: tuple[tuple[str, bool], ...], colour: str) -> str:
    """Markdown of `changed_words`: changed runs in bold on a coloured ground, the rest literal.

    Args:
        words: pairs (word, changed).
        colour: a name the page's theme knows ("gray", "orange"); a constant, never user text.
    """
    parts: list[str] = []
    run: list[str] = []
    for word, changed in (*words, ("", False)):
        if changed:
            run.append(plain(word))
            continue
        if run:
            parts.append(f":{colour}-background[**{' '.join(run)}**]")
            run = []
        if word:
            parts.append(plain(word))
    return " ".join(parts) or "*nothing*"
