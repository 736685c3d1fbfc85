"""Causal tracing: at which tokens and layers an answer hangs on its subject (Meng et al. 2022, section 2).

    p        = P(o | x)                       o: the model's own likeliest next token
    p*       = P(o | x), noise on the embeddings of the subject's tokens
    IE(t, l) = P(o | x), the same noise, one state at token t and layer l put back to what it was without, minus p*

A state is the output of a block, or the outputs of the MLPs or of the attentions of a window of blocks around l.
Probabilities are means over draws of the noise, which are the same for every state and every fact.

Exact, and run once what does not change: the clean states of all layers; the blurred states, from which each pass
begins at the lowest block of its window; of the tokens, only those from t on (`resume`). Knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from editcore import algebra, spans
from editcore.errors import Cancelled
from editcore.handle import Handle
from editcore.resume import Upper
from editcore.spans import Row
from editcore.trace import capture

Kind = Literal["block", "mlp", "attention"]
AT_ONCE = 80  # rows in one pass
SHARE_OF_DEPTH = 10 / 48  # blocks of a window: ten of GPT-2 XL's, as in the paper


@dataclass(frozen=True)
class Dials:
    """How the subject is blurred."""

    samples: int = 10  # draws of the noise
    noise: float = 3.0  # in standard deviations of the subjects' embeddings
    seed: int = 0


@dataclass(frozen=True)
class Belief:
    """What a model says next after a prompt."""

    prompt: str
    subject: str
    row: Row  # the prompt's tokens, with the subject's
    answer: int  # id of the likeliest next token
    clean: float  # its probability

    @property
    def subject_tokens(self) -> range:
        """Indices of the subject's tokens."""
        assert self.row.subject is not None and self.row.subject_start is not None
        return range(self.row.subject_start, self.row.subject + 1)


@dataclass(frozen=True)
class Trace:
    """The whole picture for one prompt."""

    prompt: str
    subject: str
    answer: str  # the token whose probability is traced
    kind: Kind
    window: int  # blocks put back at once
    tokens: tuple[str, ...]  # from the subject's first to the prompt's last
    roles: tuple[str, ...]  # of these; see `role`
    clean: float  # p
    blurred: float  # p*
    effects: tuple[tuple[float, ...], ...]  # IE [tokens, layers]; no token before the subject has any


def window_of(handle: Handle) -> int:
    """How many blocks a window covers."""
    return max(1, round(SHARE_OF_DEPTH * len(handle.anatomy.blocks)))


def believe(handle: Handle, prompts: Sequence[tuple[str, str]]) -> list[Belief]:
    """What the model says next after each of (prompt, subject in it).

    Raises:
        SubjectNotFound, BadRequest, ModelError: see `Handle.row`.
    """
    rows = [handle.row(prompt, "", subject) for prompt, subject in prompts]
    found = []
    with handle.using([]):
        for (prompt, subject), row, logits in zip(prompts, rows, handle.logits(rows), strict=True):
            chance, token = torch.softmax(logits[-1], -1).max(0)
            found.append(Belief(prompt, subject, row, int(token), float(chance)))
    return found


def trace(
    handle: Handle, prompt: str, subject: str, kind: Kind = "block", window: int | None = None,
    dials: Dials | None = None,
) -> Trace:  # fmt: skip
    """Every token from the subject's first on, and every layer.

    Args:
        window: blocks put back at once; None: one for "block", else `window_of`.
    """
    (belief,) = believe(handle, [(prompt, subject)])
    width = window or (1 if kind == "block" else window_of(handle))
    start = belief.subject_tokens.start
    places = [(belief, token) for token in range(start, len(belief.row.ids))]
    blurred, effects = indirect_effects(handle, places, kind, width, dials or Dials())
    return Trace(
        prompt=prompt,
        subject=subject,
        answer=spans.pieces(handle.tokenizer, (belief.answer,))[0],
        kind=kind,
        window=width,
        tokens=spans.pieces(handle.tokenizer, belief.row.ids[start:]),
        roles=tuple(role(belief, token) for _, token in places),
        clean=belief.clean,
        blurred=float(blurred[0]),
        effects=tuple(map(tuple, effects.tolist())),
    )


def role(belief: Belief, token: int) -> str:
    """What a token is to the fact, as the paper sorts them; a subject of one token is its last."""
    inside, end = belief.subject_tokens, len(belief.row.ids) - 1
    if token in inside:
        named = {inside[0]: "first subject", inside[-1]: "last subject"}
        return named.get(token, "middle subject")
    if token < inside[0]:
        return "before"
    return "last" if token == end else "first after" if token == inside[-1] + 1 else "further"


def indirect_effects(
    handle: Handle,
    places: Sequence[tuple[Belief, int]],
    kind: Kind,
    window: int,
    dials: Dials,
    blur: float | None = None,
    listen: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """p* [places] and IE [places, layers] at (fact, token), fp32 on the CPU.

    Args:
        window: blocks put back at once.
        blur: standard deviation of the noise; None: `deviation` of these facts.
        listen: called with (places done, all of them) after each group.

    Raises:
        Cancelled: `stop()` became true.
    """
    blur = deviation(handle, [belief for belief, _ in places], dials) if blur is None else blur
    blurred, effects, done = torch.zeros(len(places)), torch.zeros(len(places), len(handle.anatomy.blocks)), 0
    for group in _groups(places, dials, stop):
        blurred[group], effects[group] = _effects(handle, [places[i] for i in group], kind, window, dials, blur)
        done += len(group)
        listen(done, len(places))
    return blurred, effects


def blurred_chances(
    handle: Handle, beliefs: Sequence[Belief], dials: Dials, blur: float, stop: Callable[[], bool] = lambda: False
) -> Tensor:
    """p* of each fact [facts], fp32 on the CPU; see `indirect_effects`."""
    places, found = [(belief, belief.subject_tokens[-1]) for belief in beliefs], torch.zeros(len(beliefs))
    for group in _groups(places, dials, stop):
        one = Blurred(handle, [places[i] for i in group], dials, blur, len(handle.anatomy.blocks) - 1)
        found[group] = one.read(one.lowest, {}).cpu()
    return found


def _groups(places: Sequence[tuple[Belief, int]], dials: Dials, stop: Callable[[], bool]) -> Iterator[list[int]]:
    """Indices of places that are read together, those with as many tokens behind them side by side."""
    order = sorted(range(len(places)), key=lambda i: (len(places[i][0].row.ids) - places[i][1], i))
    size = max(1, AT_ONCE // dials.samples)
    for begin in range(0, len(order), size):
        if stop():
            raise Cancelled("The causal trace was stopped on request.", "Nothing was kept.")
        yield order[begin : begin + size]


def _effects(
    handle: Handle, places: Sequence[tuple[Belief, int]], kind: Kind, window: int, dials: Dials, blur: float
) -> tuple[Tensor, Tensor]:
    modules, layers = parts(handle, kind), len(handle.anatomy.blocks)
    clean = states(handle, [belief for belief, _ in places], modules)
    at = torch.tensor([token for _, token in places], device=handle.device)
    line = torch.arange(len(places), device=handle.device)
    kept = [state[line, at][:, None] for state in clean]
    blurred = Blurred(handle, places, dials, blur)
    plain = blurred.read(layers - 1, {})
    found = []
    for layer in range(layers):
        first = max(0, layer - window // 2)
        inside = range(first, max(first + 1, min(layers, layer - window // 2 + window)))
        found.append(blurred.read(first, {modules[i]: kept[i] for i in inside}) - plain)
    return plain.cpu(), torch.stack(found, 1).cpu()


def parts(handle: Handle, kind: Kind) -> tuple[nn.Module, ...]:
    """For each block, the module whose output is the state.

    Raises:
        ModelError: "attention", and a block has none that could be found.
    """
    anatomy = handle.anatomy
    if kind == "block":
        return anatomy.blocks
    if kind == "mlp":
        return tuple(site.module for site in anatomy.sites)
    return tuple(algebra.attention_end(handle, site) for site in anatomy.sites)


@torch.no_grad()
def states(handle: Handle, beliefs: Sequence[Belief], modules: Sequence[nn.Module]) -> list[Tensor]:
    """What each module puts out while the model reads the prompts as they are [facts, tokens, width]."""
    ids, mask = handle.batch([belief.row.ids for belief in beliefs])
    names = {str(number): module for number, module in enumerate(modules)}
    with handle.using([]), capture(names, stop=True) as seen:
        handle.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return [seen[name].reshape(*ids.shape, -1) for name in names]


def deviation(handle: Handle, beliefs: Sequence[Belief], dials: Dials) -> float:
    """The noise's standard deviation: so many times that of all entries of the embeddings of the subjects' tokens."""
    beliefs = list(dict.fromkeys(beliefs))
    (read,) = states(handle, beliefs, [handle.model.get_input_embeddings()])
    inside = torch.cat([read[i, list(b.subject_tokens)].flatten() for i, b in enumerate(beliefs)])
    return dials.noise * float(inside.float().std())


@dataclass(eq=False)
class Blurred:
    """Facts whose subjects are blurred, at one token each, ready to be read again with states put back."""

    handle: Handle
    places: Sequence[tuple[Belief, int]]
    dials: Dials
    blur: float  # standard deviation of the noise
    lowest: int = 0  # states in blocks below this one are not put back
    upper: Upper = field(init=False)

    def __post_init__(self) -> None:
        times, rows = self.dials.samples, [belief.row.ids for belief, _ in self.places]
        self._ids = tuple(row for row in rows for _ in range(times))
        self._starts = tuple(token for _, token in self.places for _ in range(times))
        self._noise = self._drawn()
        with self._run():
            self.upper = Upper(
                self.handle, self.handle.anatomy.site(self.lowest), self._ids, self._starts,
                tuple((len(row) - 1,) for row in self._ids), whole_block=True,
            )  # fmt: skip
            self._inputs = self.upper.inputs()

    def _drawn(self) -> Tensor:
        """The noise [rows, tokens, width of the embeddings], fp32; zero outside the subjects."""
        width = int(self.handle.model.get_input_embeddings().weight.shape[1])
        spans_ = [belief.subject_tokens for belief, _ in self.places]
        source = torch.Generator().manual_seed(self.dials.seed)
        drawn = self.blur * torch.randn(max(map(len, spans_)), self.dials.samples, width, generator=source)
        noise = torch.zeros(len(self.places), self.dials.samples, max(map(len, self._ids)), width)
        for i, span in enumerate(spans_):
            noise[i, :, span.start : span.stop] = drawn[: len(span)].transpose(0, 1)
        return noise.flatten(0, 1).to(self.handle.device)

    def read(self, layer: int, put_back: dict[nn.Module, Tensor]) -> Tensor:
        """Mean probability of each fact's answer [places], fp32.

        Args:
            layer: no module to be put back is in a block below it; at least `lowest`.
            put_back: module -> what it puts out from the place's token on [places, tokens, width].
        """
        answers = torch.tensor([belief.answer for belief, _ in self.places], device=self.handle.device)
        values = {m: v.repeat_interleave(self.dials.samples, 0) for m, v in put_back.items()}
        with self._run(), self._putting(values):
            out = self.upper.run_from(layer, self._inputs)
        chances = out.reshape(len(self.places), self.dials.samples, -1)
        index = answers[:, None, None].expand(-1, self.dials.samples, 1)
        return chances.gather(2, index)[..., 0].exp().mean(1)

    @contextmanager
    def _run(self) -> Iterator[None]:
        """A pass over whole rows reads them with the noise; one that begins higher has no use for it."""

        def blur(_m: nn.Module, _args: Any, out: Tensor) -> Tensor:
            return out + self._noise.to(out) if out.shape[:2] == self._noise.shape[:2] else out

        with torch.no_grad(), self.handle.using([]):
            hook = self.handle.model.get_input_embeddings().register_forward_hook(blur)
            try:
                yield
            finally:
                hook.remove()

    @contextmanager
    def _putting(self, values: dict[nn.Module, Tensor]) -> Iterator[None]:
        rows = torch.arange(len(self._ids), device=self.handle.device)[:, None]
        start = torch.tensor(self._starts, device=self.handle.device)[:, None]
        begin = torch.zeros_like(start) if self.upper.shortened else start

        def replaced(value: Tensor) -> Any:
            index = begin + torch.arange(value.shape[1], device=value.device)

            def replace(_m: nn.Module, _args: Any, out: Any) -> Any:
                y = out[0] if isinstance(out, tuple) else out
                wide = y.reshape(len(rows), -1, y.shape[-1])
                new = wide.index_put((rows, index), value.to(y.dtype)).reshape(y.shape)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            return replace

        hooks = [module.register_forward_hook(replaced(value)) for module, value in values.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
