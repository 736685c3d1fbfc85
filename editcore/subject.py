"""Where the locate-and-edit family looks: the prompt in running text, the subject in other sentences, and its keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from editcore import algebra
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.records import EditRequest, Form
from editcore.spans import Row
from editcore.trace import capture

PLACES = ("prompt", "subject")
PLACES_HELP = (
    "Where the subject's mean key is read: the prompt behind each context, or short sentences about the subject"
)
ONE_STACK = (
    "It writes at the subject's last token in blocks that go on to say the answer; in an encoder-decoder another stack"
    " says it."
)
AT_ONCE = 64  # rows in one forward pass
# Short sentences about a subject that ask nothing in particular: where else its name may stand.
FRAMES = (
    "{}", "{} is", "The story of {}", "What about {}", "I heard of {}", "{}'s", "Q: Tell me about {}",
    "A book about {}",
    "When people think of {}", "Which of these is {}", "In the world of {}", "Q: What is {}", "The name {}",
    "Everybody knows {}", "On {}", "Facts about {}",
)  # fmt: skip


def prompts(handle: Handle, request: EditRequest, contexts: int) -> list[Row]:
    """The prompt with its answer, bare and behind `contexts` texts the model wrote; the bare one first."""
    return in_text(handle, request, contexts, request.subject or "")


def in_text(handle: Handle, request: EditRequest, contexts: int, subject: str | None = None) -> list[Row]:
    """`prompts`, for methods that need no subject. In a chat the texts open the turn the prompt stands in."""
    bare = handle.row(request.prompt, request.target, subject, request.form)
    spaced = handle.row(request.prompt, request.target, subject, request.form, spaced=True)
    return algebra.behind(algebra.contexts(handle, contexts), bare, spaced)


def essence(handle: Handle, subject: str, form: Form = "raw") -> Row:
    """The sentence on which a value search keeps what else is said about the subject."""
    return handle.row(f"{subject} is a", "", subject, form)


def sentences(handle: Handle, subject: str, form: Form = "raw") -> list[Row]:
    """`FRAMES` about the subject."""
    return [handle.row(frame.format(subject), "", subject, form) for frame in FRAMES]


def keys(handle: Handle, site: Site, rows: Sequence[Row]) -> Tensor:
    """The site's input at each row's subject [rows, d_in], fp32."""
    return _at_subjects(handle, rows, site.module, inputs=True)


@torch.no_grad()
def every_key(handle: Handle, site: Site, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The site's inputs at every token of the rows [tokens, d_in], and 1 at a subject's last token, else 0 [tokens].

    The subject's last token, where it stands a second time, is left out. Both fp64.
    """
    ids, mask = handle.batch([row.ids for row in rows])
    with capture({"keys": site.module}, inputs=True, stop=True) as seen:
        handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
    line = torch.arange(len(rows), device=ids.device)
    at = torch.tensor([row.subject for row in rows], device=ids.device)
    wanted = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    wanted[line, at] = 1.0
    kept = mask.bool() & ((ids != ids[line, at][:, None]) | (wanted > 0))
    keys = seen["keys"].reshape(*ids.shape, -1)
    return keys[kept.to(keys.device)].double(), wanted[kept].to(keys.device)


def outputs(handle: Handle, layer: int, rows: Sequence[Row], inside: bool = False) -> Tensor:
    """The residual stream behind block `layer` at each row's subject [rows, d], fp32.

    The output of the block's site instead, where that does not enter the residual stream unchanged, and with `inside`.
    """
    anatomy = handle.anatomy
    behind = anatomy.additive[layer] and not inside
    module = anatomy.blocks[layer] if behind else anatomy.site(layer).module
    return _at_subjects(handle, rows, module, inputs=False)


@torch.no_grad()
def _at_subjects(handle: Handle, rows: Sequence[Row], module: nn.Module, *, inputs: bool) -> Tensor:
    # Nothing above the module runs.
    found = []
    for begin in range(0, len(rows), AT_ONCE):
        part = rows[begin : begin + AT_ONCE]
        # ... and what stands behind a subject changes nothing at it.
        ids, mask = handle.batch([row.ids[: (row.subject or 0) + 1] for row in part])
        with capture({"wanted": module}, inputs=inputs, stop=True) as seen:
            handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
        values = seen["wanted"].reshape(*ids.shape, -1)
        line = torch.arange(len(part), device=values.device)
        at = torch.tensor([row.subject for row in part], device=values.device)
        found.append(values[line, at].float())
    return torch.cat(found)
