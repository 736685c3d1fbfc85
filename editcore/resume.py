"""Running only what an edit can change: the blocks above it, the tokens from it on, the head where a loss reads.

Nothing below an edited block depends on the edit, and no position before the first changed token does: both are run
once and kept. This is exact arithmetic, not an approximation. Whether a model can be run so is not assumed: the first
shortened pass of a block, and every one that is longer than those before, is compared with the plain one, and where
they differ the plain one is used from then on.

A model does much around its blocks. Where that is seen to make no difference, later passes call the blocks directly,
with what the model gave them the first time, and then the norm and the head behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from editcore.anatomy import Site
from editcore.errors import is_out_of_memory
from editcore.handle import Handle
from editcore.prompts import reading
from editcore.spans import Row
from editcore.standins import Give, Keys, Note, Prefix, Skip, cache_name
from editcore.trace import Stop

Change = Callable[[Tensor, Tensor], Tensor]  # input and output of a module -> its new output
TOLERANCE = 2e-3  # largest difference of log-probabilities between the shortened and the plain pass, nats


@dataclass(eq=False)
class Upper:
    """Fixed rows of tokens, ready to be run again and again with a changed output of one site, or of its block.

    `change(x, y)` below gets the site's input x and the output y, both [rows, tail, width], where the tail of each row
    starts at its own `starts` index, and returns the new output y. Padding stands at the end of each tail.
    """

    handle: Handle
    site: Site
    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]  # per row: the first position the change can touch
    reads: tuple[tuple[int, ...], ...]  # per row: positions whose next-token logits are wanted
    block: bool = False  # y is the output of the whole block, the residual stream, instead of the site's
    beside: nn.Module | None = None  # a linear map earlier in the same block whose output may be changed as well
    whole_block: bool = False  # a shortened pass begins with the site's own block, whatever the site adds to
    x: Tensor = field(init=False)  # site input at the tail [rows, tail, d_in], model dtype
    y: Tensor = field(init=False)  # output at the tail [rows, tail, d_out]
    y_beside: Tensor | None = field(init=False, default=None)  # output of `beside` at the tail [rows, tail, its width]
    shortened: bool = field(init=False, default=False)
    direct: bool = field(init=False, default=False)  # a shortened pass that follows another calls the blocks itself
    _calls: list[tuple[Any, ...]] | None = field(init=False, default=None)  # what blocks were given beside the state

    def __post_init__(self) -> None:
        self._layout()
        if self.handle.remembers:  # what recognises prompts wants to see them whole
            self._first_pass()
            return
        memory, refuted = self.handle.memory, ("whole", self.first)
        proven, direct = ((what, self.first, self._prefix > 0) for what in ("proven", "direct"))
        length = self._ids.shape[1]
        if memory.get(refuted) or memory.get(proven, 0) >= length:
            self._first_pass()
            self.shortened, self.direct = not memory.get(refuted), memory.get(direct, False)
            if self.direct:
                self._calls = self._noted()
            return
        plain, moved = self._first_pass(check=True), self._tried(_louder)
        self.shortened = self._near(self._tried(_same), plain)
        self.direct = self.shortened and memory["behind the blocks"] is not None
        self.direct = self.direct and self._near(self._tried(_louder), moved)
        memory[proven if self.shortened else refuted], memory[direct] = length, self.direct

    def _layout(self) -> None:
        h = self.handle
        self._ids, self._mask = h.batch(self.rows)
        count, device = len(self.rows), h.device
        begin = torch.tensor(self.starts, device=device)
        tail = max(len(r) - s for r, s in zip(self.rows, self.starts, strict=True))
        self._prefix = max(self.starts)
        index = begin[:, None] + torch.arange(tail, device=device)
        lengths = torch.tensor([len(r) for r in self.rows], device=device)
        self._index = index.clamp(max=self._ids.shape[1] - 1)
        self._row = torch.arange(count, device=device)[:, None]
        self._tail_ids = self._ids[self._row, self._index]
        before = (torch.arange(self._prefix, device=device)[None] < begin[:, None])[:, None].expand(count, tail, -1)
        causal = torch.ones(tail, tail, dtype=torch.bool, device=device).tril()[None].expand(count, -1, -1)
        causal = causal & (index < lengths[:, None])[:, None, :] | torch.eye(tail, dtype=torch.bool, device=device)
        allowed = torch.cat([before, causal], 2)[:, None]
        mask = torch.zeros(allowed.shape, dtype=h.dtype, device=device)
        self._tail_mask = mask.masked_fill(~allowed, torch.finfo(h.dtype).min)
        real = [(b, t) for b, start in enumerate(self.starts) for t in range(len(self.rows[b]) - start)]
        self._real = tuple(torch.tensor(part, device=device) for part in zip(*real, strict=True))  # row, place in tail
        # Reads, flattened: which row, and where in the full row and in its tail.
        flat = [(b, p) for b, wanted in enumerate(self.reads) for p in wanted]
        places = [p - self.starts[b] for b, p in flat]
        self._read_row = torch.tensor([b for b, _ in flat], device=device)
        self._read_full, self._read_tail = self._wanted([p for _, p in flat]), self._wanted(places)
        self._reads = self._read_row, torch.tensor(places, device=device)

    def _wanted(self, places: Sequence[int]) -> tuple[Any, Tensor]:
        """Places whose logits a model is to keep, each once, and where each read is among them."""
        wanted = sorted(set(places))
        return self.handle.kept(wanted), torch.tensor([wanted.index(p) for p in places], device=self._ids.device)

    @cached_property
    def _prompts(self) -> Tensor:
        """Which tokens of the rows are their prompts' [rows, tokens]."""
        ends = torch.tensor([wanted[0] for wanted in self.reads], device=self._ids.device)
        return torch.arange(self._ids.shape[1], device=self._ids.device) <= ends[:, None]

    @property
    def way(self) -> str:
        """See `passes.Passes`."""
        return "direct" if self.direct else "shortened" if self.shortened else "whole"

    @property
    def first(self) -> int:
        """The first block that runs in a shortened pass."""
        adds = self.block or self.handle.anatomy.additive[self.site.layer]
        above = adds and self.beside is None and not self.whole_block
        return self.site.layer + 1 if above else self.site.layer

    @torch.no_grad()
    def _first_pass(self, check: bool = False) -> Tensor | None:
        """Keeps what later passes start from; with `check` gives the unchanged log-probabilities at the reads."""
        seen: dict[str, Tensor] = {}
        blocks = self.handle.anatomy.blocks

        def at_site(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen["x"], seen["y"] = args[0], out

        def at_beside(_m: nn.Module, _args: Any, out: Tensor) -> None:
            seen["beside"] = out

        def at_block(_m: nn.Module, _args: Any, out: Any) -> None:
            seen["out"] = out[0] if isinstance(out, tuple) else out

        def last(_m: nn.Module, _args: Any, out: Any) -> None:
            behind.clear()
            seen["last"] = out[0] if isinstance(out, tuple) else out

        def after(m: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            behind.append((m, *args[:1], out))

        def stop(*_: Any) -> None:
            raise Stop

        def into_block(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["in"] = args[0] if args else kwargs["hidden_states"]

        block = blocks[self.site.layer]
        hooks = [
            self.site.module.register_forward_hook(at_site),
            block.register_forward_hook(at_block),
            block.register_forward_pre_hook(into_block, with_kwargs=True),
        ]
        if self.beside is not None:
            hooks.append(self.beside.register_forward_hook(at_beside))
        behind: list[tuple[Any, ...]] = []
        if not check:  # keys and values of the blocks above are wanted only for what stands before the tails
            hooks.append((blocks[-1] if self._prefix else block).register_forward_hook(stop))
        else:
            hooks.append(blocks[-1].register_forward_hook(last))
            hooks += [m.register_forward_hook(after) for m in self._around()]
        plain, config = None, self.handle.model.config.get_text_config()
        ends = len(blocks) - 1 if not check and self.site.layer < len(blocks) - 1 else None
        cache = Keys(ends, config=config) if self._prefix else None
        try:
            plain = self._call(self._ids, self._mask, None, cache, self._read_full, use_cache=self._prefix > 0)
        except Stop:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        tail = self._tail(seen["x"].device)
        shape = (len(self.rows), self._ids.shape[1], -1)
        self.x = seen["x"].reshape(shape)[tail]
        self.y = seen["out" if self.block else "y"].reshape(shape)[tail]
        self.y_beside = None if self.beside is None else seen["beside"].reshape(shape)[tail]
        into = seen["out"] if self.first > self.site.layer else seen["in"]
        self._hidden = into.to(seen["x"].device)[tail]
        self._rest = self._hidden - self.y if self.first > self.site.layer else None
        self._kept = self._cut(cache) if self._prefix else {}
        if check:
            chained = plain is not None and self._chained(seen["last"], behind, plain)
            self.handle.memory["behind the blocks"] = [m for m, *_ in behind] if chained else None
        return plain

    def _chained(self, hidden: Tensor, behind: Sequence[tuple[Any, ...]], plain: Tensor) -> bool:
        """True where the modules behind the blocks, one after the other, are all there is up to the logits."""
        keep, at = self._read_full
        for entry in behind:
            if len(entry) < 3 or not isinstance(entry[2], Tensor):
                return False
            _, given, out = entry
            if not torch.equal(given, hidden) and not torch.equal(given, hidden[:, keep]):
                return False
            hidden = out
        found = torch.log_softmax(hidden.to(self._ids.device)[self._read_row, at].float(), -1)
        return found.shape == plain.shape and torch.equal(found, plain)

    def _tail(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index of every row's tail, for tensors on that device."""
        return self._row.to(device), self._index.to(device)

    def _around(self) -> list[nn.Module]:
        """The modules beside the block list and beside the modules that hold it."""
        anatomy = self.handle.anatomy
        blocks = getattr(anatomy.holder, anatomy.attribute)
        above = [m for m in self.handle.model.modules() if any(n is blocks for n in m.modules())]
        beside = [child for m in above if m is not blocks for child in m.children()]
        return [child for child in beside if not any(child is m for m in above)]

    def _cut(self, cache: Any) -> dict[int, tuple[Tensor, Tensor]]:
        kept = {}
        for i, layer in enumerate(getattr(cache, "layers", [])):
            if i >= self.first and getattr(layer, "keys", None) is not None:
                kept[i] = tuple(t[:, :, : self._prefix].contiguous() for t in (layer.keys, layer.values))
        return kept

    def _call(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor | None,
        cache: Any,
        reads: tuple[Any, Tensor],
        use_cache: bool = False,
    ) -> Tensor:
        keep, at = reads
        more = {} if positions is None else {"position_ids": positions}
        if cache is not None:
            more[cache_name(self.handle)] = cache
        with self._announced(ids):
            out = self.handle.model(
                input_ids=ids, attention_mask=mask, use_cache=use_cache, logits_to_keep=keep, **more
            )
        return torch.log_softmax(out.logits.to(ids.device)[self._read_row, at].float(), -1)

    def _announced(self, ids: Tensor) -> AbstractContextManager[None]:
        """Says where the prompts end, in a pass over whole rows: each where its first logits are wanted."""
        return reading(self._prompts) if ids is self._ids else nullcontext()

    def _tried(self, change: Change) -> Tensor | None:
        """What a shortened pass gives, if there can be one."""
        return self._attempt(lambda: self._shortened(change))

    def _attempt(self, one_pass: Callable[[], Tensor]) -> Tensor | None:
        try:
            with torch.no_grad():
                return one_pass()
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):  # which says nothing about the model
                raise
            return None

    def _near(self, found: Tensor | None, wanted: Tensor | None) -> bool:
        if found is None or wanted is None or found.shape != wanted.shape:
            return False
        likely = wanted > -12.0  # the far tail of a distribution is all rounding
        slack = TOLERANCE if self.handle.dtype == torch.float32 else 0.3
        return bool(likely.any() and (found - wanted).abs()[likely].max() < slack)

    def run(self, change: Change, beside: Change | None = None) -> Tensor:
        """Log-probabilities [reads, vocabulary] (fp32) with the site's output changed; differentiable in the changes.

        Args:
            beside: what becomes of the output of `self.beside`, in the same way.
        """
        return self._shortened(change, beside) if self.shortened else self._whole(change, beside)

    def _shortened(self, change: Change, beside: Change | None = None) -> Tensor:
        if self._rest is None:
            with self._hooked(self._unflattened(change), beside and self._unflattened(beside)):
                return self._from(self._hidden)
        return self._from(self._rest + change(self.x, self.y))

    @torch.no_grad()
    def inputs(self) -> tuple[Tensor, ...]:
        """What each block from `first` on is given at the tails while nothing is changed [rows, tail, width].

        Beginning a pass there is tried, once for a block.
        """
        given = [self._hidden]

        def note(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(args[0] if args else kwargs["hidden_states"])

        blocks = self.handle.anatomy.blocks[self.first + 1 :]
        hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
        try:
            plain = self.run(_same)
        finally:
            for hook in hooks:
                hook.remove()
        for layer in range(self.first + 1, self.first + len(given)) if self.shortened else ():
            if ("begins", layer) not in self.handle.memory:
                found = self._attempt(partial(self._from, given[layer - self.first], layer))
                self.handle.memory["begins", layer] = self._near(found, plain)
        return tuple(given)

    @torch.no_grad()
    def run_from(self, layer: int, inputs: Sequence[Tensor]) -> Tensor:
        """`run` that changes nothing itself, for hooks of the caller's at blocks from `layer` on.

        Args:
            inputs: as `inputs` gave them. Where a pass cannot begin with block `layer`, it begins where `run` does.
        """
        if not self.shortened or layer == self.first or not self.handle.memory.get(("begins", layer)):
            return self.run(_same)
        return self._from(inputs[layer - self.first], layer)

    def _from(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """Log-probabilities at the reads when block `first` gets `hidden` [rows, tail, width]."""
        first = self.first if first is None else first
        if self.direct:
            if self._calls is None:
                self._calls = self._noted()
            for block, args, kwargs in self._calls[first - self.first :]:
                out = block(hidden, *args, **kwargs)
                hidden = out[0] if isinstance(out, tuple) else out
            hidden = hidden[tuple(index.to(hidden.device) for index in self._reads)][None]
            for module in self.handle.memory["behind the blocks"]:
                hidden = module(hidden)
            return torch.log_softmax(hidden[0].to(self._ids.device).float(), -1)
        with self._standing_in(hidden, first):
            return self._call(self._tail_ids, self._tail_mask, self._index, self._cache(), self._read_tail)

    @torch.no_grad()
    def _noted(self) -> list[tuple[Any, ...]]:
        """Each block from `first` on, with what the model gives it beside the state; none of them is run."""
        anatomy, memory = self.handle.anatomy, self.handle.memory
        if ("notes", self.first) not in memory:
            taken: list[tuple[Any, ...]] = []
            above = anatomy.blocks[self.first :]
            noters = [Note(block, taken, block is above[-1]) for block in above]
            memory["notes", self.first] = nn.ModuleList([*map(Skip, anatomy.blocks[: self.first]), *noters]), taken
        others, calls = memory["notes", self.first]
        try:
            with self._in_place_of_blocks(others), suppress(Stop):
                self._call(self._tail_ids, self._tail_mask, self._index, self._cache(), self._read_tail)
            return list(calls)
        finally:
            calls.clear()  # what stands in for blocks is kept, what they were given is this pass's alone

    def _cache(self) -> Any:
        return Prefix(self._kept, self._prefix) if self._prefix else None

    def _unflattened(self, change: Change) -> Change:
        """`change` for a site that some families (OPT) run on [rows * tail, width]."""
        shape = (len(self.rows), self._index.shape[1], -1)
        return lambda x, y: change(x.reshape(shape), y.reshape(shape)).reshape(y.shape)

    def _whole(self, change: Change, beside: Change | None = None) -> Tensor:
        with self._hooked(self._at_tail(change), beside and self._at_tail(beside)):
            return self._call(self._ids, self._mask, None, None, self._read_full)

    def _at_tail(self, change: Change) -> Change:
        """`change` for whole rows, of which it sees the tails."""

        def at_tail(x: Tensor, y: Tensor) -> Tensor:
            shape = (len(self.rows), self._ids.shape[1], -1)
            wide = y.reshape(shape)
            row, index = self._tail(y.device)
            new = change(x.reshape(shape)[row, index], wide[row, index])
            b, t = (place.to(y.device) for place in self._real)
            return wide.index_put((b, index[b, t]), new[b, t]).reshape(y.shape)

        return at_tail

    @contextmanager
    def _hooked(self, change: Change, beside: Change | None) -> Iterator[None]:
        def replaced(change: Change, block: bool) -> Any:
            def replace(_m: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
                y = out[0] if isinstance(out, tuple) else out
                new = change(y if block else args[0], y)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            return replace

        module = self.handle.anatomy.blocks[self.site.layer] if self.block else self.site.module
        hooks = [module.register_forward_hook(replaced(change, self.block))]
        if beside is not None and self.beside is not None:
            hooks.append(self.beside.register_forward_hook(replaced(beside, False)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _standing_in(self, hidden: Tensor, first: int) -> Iterator[None]:
        """Blocks below `first` are skipped and block `first` reads `hidden`; the model is whole again afterwards."""
        anatomy, memory = self.handle.anatomy, self.handle.memory
        if ("stands", first) not in memory:
            stands = [Skip(b) for b in anatomy.blocks[:first]]
            memory[("stands", first)] = nn.ModuleList([*stands, *anatomy.blocks[first:]])
        short = memory[("stands", first)]

        def feed(
            _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

        if first == len(anatomy.blocks):  # nothing above: the last stand-in hands the state to the head
            short, hook = nn.ModuleList([*short[:-1], Give(hidden, anatomy.blocks[-1])]), None
        else:
            hook = anatomy.blocks[first].register_forward_pre_hook(feed, with_kwargs=True)
        try:
            with self._in_place_of_blocks(short):
                yield
        finally:
            if hook is not None:
                hook.remove()

    @contextmanager
    def _in_place_of_blocks(self, others: nn.ModuleList) -> Iterator[None]:
        anatomy = self.handle.anatomy
        whole = getattr(anatomy.holder, anatomy.attribute)
        setattr(anatomy.holder, anatomy.attribute, others)
        try:
            yield
        finally:
            setattr(anatomy.holder, anatomy.attribute, whole)


def _same(_x: Tensor, y: Tensor) -> Tensor:
    """No change."""
    return y


def _louder(_x: Tensor, y: Tensor) -> Tensor:
    """A change that every later block notices."""
    return 1.25 * y


def reads_of(row: Row) -> tuple[int, ...]:
    """Positions whose logits predict the row's answer tokens."""
    return tuple(range(row.start - 1, len(row.ids) - 1))
