"""One loaded model with its tokenizer, device, dtype (each with a reason a person can read) and a lock.

It tokenizes, runs and generates. It knows no method and no page.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcore.anatomy import Anatomy
from editcore.assets import world_dir
from editcore.chat import RAW, Envelope, chat, enclosed
from editcore.devices import ready_attention
from editcore.errors import BadRequest
from editcore.gate import check_form
from editcore.layout import Layout, automatic, logits_at, sampled
from editcore.memory import Codebook, Header, Side
from editcore.patch import Patch, attached, bared
from editcore.prompts import reading, unread
from editcore.records import EditRequest, Form, ModelInfo
from editcore.scope import EditMemory
from editcore.spans import Row, encode, encode_apart

ROWS, LONG = 512, 2_000  # texts whose tokens are remembered, and characters from which a text is not


@dataclass(eq=False)
class Handle:
    """A model ready to be read and edited."""

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    device_reason: str
    dtype: torch.dtype
    dtype_reason: str
    fingerprint: str
    anatomy: Anatomy
    folder: Path | None = None  # where it was loaded from, when that is a local folder
    home: Path | None = None  # the data folder, for what is made for this model
    opening: tuple[int, ...] = ()  # of everything a decoder says to an encoder's prompt; empty: there is one stack
    closing: tuple[int, ...] = ()  # ends everything it says
    revision: str = ""  # commit of the hub it was loaded from
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)  # results that hold for this model only
    standing: tuple[Patch, ...] = ()  # what is in place now, the last on top: set by `using`
    away: float = 0.0  # seconds in which it was lent
    peak: int = 0  # most bytes on the GPU since `start_peak`, before it was lent last

    @property
    def embedded(self) -> bool:
        """True for the model that ships with the product."""
        return self.folder is not None and self.folder.resolve() == world_dir().resolve()

    @property
    def encoder_decoder(self) -> bool:
        """True where an encoder reads the prompt and a decoder says the answer."""
        return bool(self.opening)

    @property
    def auto(self) -> str:
        """The name of what loads such a model in transformers."""
        return "AutoModelForSeq2SeqLM" if self.encoder_decoder else "AutoModelForCausalLM"

    @property
    def context(self) -> int:
        """Most tokens the model can read."""
        config = self.model.config.get_text_config()
        limits = (f"max_{part}position_embeddings" for part in ("", "encoder_", "decoder_"))
        return int(min((n for name in limits if (n := getattr(config, name, 0))), default=2048))

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table: ids from here on are none."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Where the weights lie, in the order they are met; they stay there."""
        return tuple(dict.fromkeys(str(p.device) for p in self.model.parameters()))

    @property
    def seed(self) -> int:
        """A seed that depends on nothing but the model."""
        return int(self.fingerprint[:8], 16)

    @property
    def pad(self) -> int:
        """An id for positions nobody reads, inside the embedding table."""
        for found in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if found is not None and 0 <= found < self.vocabulary:
                return int(found)
        return 0

    def info(self) -> ModelInfo:
        """What there is to say about the model."""
        parameters = list(self.model.parameters())
        return ModelInfo(
            name=self.name,
            fingerprint=self.fingerprint,
            architecture=type(self.model).__name__,
            parameters=sum(p.numel() for p in parameters),
            layers=len(self.anatomy.blocks),
            device=" and ".join(self.devices) if len(self.devices) > 1 else str(self.device),
            device_reason=self.device_reason,
            dtype=str(self.dtype).removeprefix("torch."),
            dtype_reason=self.dtype_reason,
            embedded=self.embedded,
            bytes=sum(p.numel() * p.element_size() for p in parameters),
            chat=self.chats,
            revision=self.revision,
        )

    @contextmanager
    def using(self, patches: Sequence[Patch]) -> Iterator[None]:
        """The model answers with `patches` in place while the block runs; nobody else can use it meanwhile."""
        with self.lock, attached(self.model, patches), ready_attention(self.device):
            before, self.standing = self.standing, (*self.standing, *patches)
            try:
                yield
            finally:
                self.standing = before

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The bare model for a short question, between two steps of an edit on the same thread.

        While the block runs nothing of the edit is in place: no hook, no patch, no announced prompt, no autocast, no
        block left out (see `resume`), and random numbers are drawn from a copy of the generators. Afterwards the edit
        goes on as if nothing had been; neither its `clock` nor its `peak` has seen the block.
        """
        began, devices = time.monotonic(), [self.device] if self.device.type == "cuda" else []
        standing, self.standing = self.standing, ()
        holder, name = self.anatomy.holder, self.anatomy.attribute
        inside = getattr(holder, name)
        self.peak = self.peak_memory() if devices else 0
        try:
            if any(a is not b for a, b in zip(inside, self.anatomy.blocks, strict=True)):
                setattr(holder, name, torch.nn.ModuleList(self.anatomy.blocks))
            with (
                bared(self.model), unread(), torch.random.fork_rng(devices), torch.enable_grad(),
                torch.autocast(self.device.type, enabled=False),
            ):  # fmt: skip
                yield
        finally:
            setattr(holder, name, inside)
            self.standing = standing
            if devices:
                torch.cuda.reset_peak_memory_stats(self.device)
            self.away += time.monotonic() - began

    def clock(self) -> float:
        """Monotonic seconds without those in which it was lent: what an edit is timed by."""
        return time.monotonic() - self.away

    def start_peak(self) -> None:
        """Measure memory from now on; on a GPU only."""
        self.peak = 0
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int:
        """Most bytes in use on the GPU since `start_peak`."""
        return max(self.peak, int(torch.cuda.max_memory_allocated(self.device)))

    @property
    def header(self) -> str:
        """What the patches in place put in front of every prompt."""
        return "".join(str(part) for p in self.standing if p.strength for part in p.parts if isinstance(part, Header))

    @property
    def remembers(self) -> bool:
        """True while a patch is in place that looks at whole prompts."""
        return any(isinstance(part, Codebook | Side | EditMemory) for p in self.standing for part in p.parts)

    @property
    def chats(self) -> bool:
        """True when the model has a chat template that can be used."""
        try:
            return self.envelope("chat").form == "chat"
        except BadRequest:
            return False

    @property
    def usual_form(self) -> Form:
        """How prompts are read where nobody says: as a chat, if the model has a template for it."""
        return "chat" if self.chats else "raw"

    def envelope(self, form: Form) -> Envelope:
        """What stands around a prompt of this form. A template that tells the date tells that of the first use.

        Raises:
            BadRequest: there is no such form, or this model has no template for it.
        """
        check_form(form)
        if form == "raw":
            return RAW
        if self.encoder_decoder:
            raise BadRequest("An encoder-decoder was asked to chat.", "Its prompts are read as they are.", "Use raw.")
        if "envelope" not in self.memory:
            try:
                self.memory["envelope"] = chat(self.tokenizer)
            except BadRequest as error:
                self.memory["envelope"] = error
        found: Envelope | BadRequest = self.memory["envelope"]
        if isinstance(found, BadRequest):
            raise BadRequest(found.seen, found.wanted, found.try_)
        return found

    def row(
        self, prompt: str, answer: str = "", subject: str | None = None, form: Form = "raw", spaced: bool = False
    ) -> Row:
        """Prompt and answer in tokens, as the model is to read them now: behind the header in place.

        In a chat the header stands in the same turn as the prompt.

        Args:
            spaced: a space in front, of the header too: the row is to follow some other text.

        Raises:
            SubjectNotFound, BadRequest, ModelError: see `spans.encode`.
            BadRequest: the header does not leave room for the row, or the model has no such form.
        """
        header = self.header
        row = self.plain_row(header + prompt, answer, subject, form, spaced)
        if header and len(row.ids) > self.context:
            raise BadRequest(
                f"Prompt and answer with the text in front of them are {len(row.ids)} tokens long.",
                f"This model reads at most {self.context} tokens, and the text in front takes"
                f" {len(self.tokenizer(header)['input_ids'])}.",
                "Shorten the prompt or the answer, or take an edit away.",
            )
        return row

    def plain_row(
        self, prompt: str, answer: str = "", subject: str | None = None, form: Form = "raw", spaced: bool = False
    ) -> Row:
        """`row`, whatever stands in front of prompts now; remembered, for it is asked before and after an edit."""
        if len(prompt) + len(answer) > LONG:
            return self._coded(prompt, answer, subject, form, spaced)
        if "rows" not in self.memory:
            self.memory["rows"] = lru_cache(ROWS)(self._coded)
        found: Row = self.memory["rows"](prompt, answer, subject, form, spaced)
        return found

    def _coded(self, prompt: str, answer: str, subject: str | None, form: Form, spaced: bool) -> Row:
        envelope = self.envelope(form)
        if self.encoder_decoder:
            return encode_apart(self.tokenizer, prompt, answer, subject, self.closing)
        return encode(self.tokenizer, prompt, answer, subject, envelope, spaced)

    def row_of(self, request: EditRequest) -> Row:
        """The edit's prompt with its corrected answer, as `row`."""
        return self.row(request.prompt, request.target, form=request.form)

    def text(self, prompt: str, form: Form = "raw") -> str:
        """All that the model reads in front of its answer now, with its control tokens spelled out.

        Raises:
            BadRequest, ModelError: as in `row`.
        """
        row = self.row(prompt, form=form)
        first = self.tokenizer.convert_ids_to_tokens(list(row.ids[: row.lead])) if form == "raw" else []
        return "".join(first) + enclosed(self.tokenizer, self.envelope(form), self.header + prompt)

    def text_row(self, ids: Sequence[int]) -> Row:
        """Running text: all but its first token said, or its second half where an encoder reads the first."""
        if not self.encoder_decoder:
            return Row(tuple(ids), 1)
        first, last = automatic(self.tokenizer)
        prompt = (*first, *ids[: len(ids) // 2], *last)
        return Row((*prompt, *ids[len(ids) // 2 :]), len(prompt))

    def layout(self, rows: Sequence[Row]) -> Layout:
        """Rows as one pass of this model; see `batch` for what it raises."""
        ids, mask = self.batch([row.ids[: row.start] if self.encoder_decoder else row.ids for row in rows])
        if not self.encoder_decoder:
            return Layout(ids, mask, torch.zeros(len(rows), dtype=torch.long, device=self.device))
        shift = torch.tensor([len(self.opening) - row.start for row in rows], device=self.device)
        return Layout(ids, mask, shift, *self.batch([(*self.opening, *row.answer) for row in rows]))

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, both [rows, longest]. Right padding is exact at every real token."""
        self._check_ids(rows)
        longest = max(map(len, rows))
        self.check_length(longest)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

    def kept(self, positions: Sequence[int]) -> Any:
        """Positions whose logits are wanted, as a model takes them.

        Of a model on several devices the head lies elsewhere than the ids: a plain list is taken everywhere.
        """
        several = len(self.devices) > 1
        return list(positions) if several else torch.tensor(list(positions), device=self.device)

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Raises BadRequest for what would break the process on a GPU: no tokens, ids past the table."""
        if not rows or not all(rows):
            raise BadRequest("A text without tokens was to be read.", "At least one token was wanted.", "Write more.")
        low, high = min(map(min, rows)), max(map(max, rows))
        if low < 0 or high >= self.vocabulary:
            raise BadRequest(
                f"A text has the token {low if low < 0 else high}.",
                f"This model has tokens 0 to {self.vocabulary - 1}.",
                "Put the model's own tokenizer files beside its weights.",
            )

    def check_length(self, tokens: int) -> None:
        """Raises BadRequest when a row is longer than the model's context."""
        if tokens > self.context:
            raise BadRequest(
                f"Prompt and answer together are {tokens} tokens long.",
                f"This model reads at most {self.context} tokens.",
                "Shorten the prompt or the answer.",
            )

    @torch.no_grad()
    def logits(self, rows: Sequence[Row], *, whole_batch: int = 4096) -> list[Tensor]:
        """For each row, logits [answer tokens or 1, vocabulary], fp32, and nothing that is not needed for them.

        Row i yields the distributions that predict its answer tokens; for a row without answer, the next token's.
        Rows are batched by length, at most `whole_batch` tokens at a time.
        """
        results: list[Tensor | None] = [None] * len(rows)
        read = self._said if self.encoder_decoder else self._read
        for group in _by_length([len(r.ids) for r in rows], whole_batch):
            for i, found in zip(group, read([rows[i] for i in group]), strict=True):
                results[i] = found
        return [r for r in results if r is not None]

    def _read(self, rows: Sequence[Row]) -> list[Tensor]:
        ids, mask = self.batch([row.ids for row in rows])
        wanted = sorted({p for row in rows for p in _positions(row)})
        keep = self.kept(wanted)
        starts = torch.tensor([row.start for row in rows], device=ids.device)
        with reading(torch.arange(ids.shape[1], device=ids.device) < starts[:, None]):
            out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        where = {p: j for j, p in enumerate(wanted)}
        picked = [(b, where[p]) for b, row in enumerate(rows) for p in _positions(row)]
        line, place = torch.tensor(picked, device=out.device).T
        return list(torch.split(out[line, place].float(), [len(_positions(row)) for row in rows]))

    def _said(self, rows: Sequence[Row]) -> list[Tensor]:
        layout, counts = self.layout(rows), [len(_positions(row)) for row in rows]
        at = [(i, p) for i, row in enumerate(rows) for p in _positions(row)]
        line, position = (torch.tensor([pair[j] for pair in at], device=self.device) for j in (0, 1))
        found = logits_at(self.model, layout, line, position + layout.shift[line]).float()
        return list(torch.split(found, counts))

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, least: int = 0) -> list[str]:
        """Greedy continuations of at most `tokens` and at least `least` tokens, as text without the prompt."""
        self._check_ids(prompts)
        if self.encoder_decoder:
            said = self.say(prompts, tokens, least, do_sample=False)
            return [self.tokenizer.decode(row, skip_special_tokens=True) for row in said]
        longest = max(map(len, prompts))
        room = min(tokens, self.context - longest)
        if room < 1:
            return ["" for _ in prompts]
        ids = torch.full((len(prompts), longest), self.pad)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, row in enumerate(prompts):  # generation wants its padding on the left
            ids[i, longest - len(row) :] = torch.tensor(list(row))
            mask[i, longest - len(row) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with reading(mask.bool()):
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=room, min_new_tokens=min(least, room) or None,
                do_sample=False, pad_token_id=self.pad,
            )  # fmt: skip
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in out.tolist()]

    def say(self, prompts: Sequence[Sequence[int]], tokens: int, least: int = 0, **how: Any) -> Tensor:
        """What a decoder says to prompts that an encoder reads; see `layout.sampled`."""
        room, anatomy = min(tokens, self.context - len(self.opening)), self.anatomy
        kept = len(anatomy.said_by) <= anatomy.split  # transformers makes a T5's cache as deep as its encoder
        return sampled(self.model, *self.batch(prompts), self.opening, self.pad, room, least, use_cache=kept, **how)


def _positions(row: Row) -> range:
    return (
        range(row.start - 1, max(row.start, len(row.ids) - 1)) if row.answer else range(len(row.ids) - 1, len(row.ids))
    )


def _by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
