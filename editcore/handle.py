"""One loaded model with its tokenizer, device, dtype (each with a reason a person can read) and a lock.

It tokenizes, runs and generates. It knows no method and no page.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcore import checkpoint, weights
from editcore.anatomy import Anatomy, study
from editcore.assets import WORLD_NAME, world_dir
from editcore.devices import DeviceMap, choose_device, choose_dtype, spread_over
from editcore.errors import BadRequest, ModelError
from editcore.memory import Codebook, Header, Side
from editcore.patch import Patch, attached, bared
from editcore.prompts import reading, unread
from editcore.records import ModelInfo
from editcore.scope import EditMemory
from editcore.spans import Row, encode


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
    def context(self) -> int:
        """Most tokens the model can read."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 0) or 2048)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table: ids from here on are none."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def devices(self) -> tuple[str, ...]:
        """Where the weights lie, in the order they are met."""
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
            revision=self.revision,
        )

    @contextmanager
    def using(self, patches: Sequence[Patch]) -> Iterator[None]:
        """The model answers with `patches` in place while the block runs; nobody else can use it meanwhile."""
        with self.lock, attached(self.model, patches):
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

    def row(self, prompt: str, answer: str = "", subject: str | None = None) -> Row:
        """Prompt and answer in tokens, as the model is to read them now: behind the header in place.

        A space in front of the prompt stands in front of the header too: the row is to follow some other text.

        Raises:
            SubjectNotFound, BadRequest, ModelError: see `spans.encode`.
            BadRequest: the header does not leave room for the row.
        """
        header = self.header
        space = " " if prompt.startswith(" ") else ""
        row = encode(self.tokenizer, f"{space}{header}{prompt.removeprefix(' ')}", answer, subject)
        if header and len(row.ids) > self.context:
            raise BadRequest(
                f"Prompt and answer with the text in front of them are {len(row.ids)} tokens long.",
                f"This model reads at most {self.context} tokens, and the text in front takes"
                f" {len(self.tokenizer(header)['input_ids'])}.",
                "Shorten the prompt or the answer, or take an edit away.",
            )
        return row

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
        for group in _by_length([len(r.ids) for r in rows], whole_batch):
            ids, mask = self.batch([rows[i].ids for i in group])
            wanted = sorted({p for i in group for p in _positions(rows[i])})
            keep = self.kept(wanted)
            starts = torch.tensor([rows[i].start for i in group], device=ids.device)
            with reading(torch.arange(ids.shape[1], device=ids.device) < starts[:, None]):
                out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
            out = out.float()
            where = {p: j for j, p in enumerate(wanted)}
            for b, i in enumerate(group):
                results[i] = out[b, [where[p] for p in _positions(rows[i])]]
        return [r for r in results if r is not None]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, least: int = 0) -> list[str]:
        """Greedy continuations of at most `tokens` and at least `least` tokens, as text without the prompt."""
        self._check_ids(prompts)
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
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in out]


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


def load(
    name: str = WORLD_NAME,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    device_map: DeviceMap | None = None,
) -> Handle:
    """Loads a model by the embedded model's name, a local folder, or a hub id.

    Args:
        device: "cpu", "cuda", "cuda:0" ...; None: a GPU where there is one.
        dtype: "float32", "bfloat16" or "float16"; None or "auto": what suits the device.
        revision: branch, tag or commit of a hub id.
        device_map: instead of a device: spread over several, "auto", "balanced", "balanced_low_0", "sequential" or a
            device per module.

    Raises:
        ModelError: it cannot be found, read or safely edited; the message says what to do.
    """
    spread = spread_over(device_map, device)
    chosen, why_device = choose_device(device)
    kind, why_dtype = choose_dtype(chosen, dtype)
    found = checkpoint.find(name, revision)
    maker = weights.auto_class(found)
    weights.check_room(found, kind, chosen, spread is not None)
    tokenizer, model = weights.read(maker, found, kind, spread)
    if found.folder is None:
        model.config._name_or_path = name
    if spread is not None:
        why_device = f"spread as {device_map!r} says" if isinstance(device_map, str) else "spread as asked for"
        chosen = model.get_input_embeddings().weight.device
    return wrap(model, tokenizer, name, chosen, why_device, kind, why_dtype, found.folder, found.revision)


def wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    device: torch.device | None = None,
    device_reason: str = "where it was",
    dtype: torch.dtype | None = None,
    dtype_reason: str = "as it was",
    folder: Path | None = None,
    revision: str = "",
) -> Handle:
    """A handle over a model that is already in memory; checks tokenizer and structure.

    Raises:
        ModelError: the tokenizer does not fit, or the structure cannot be proved.
    """
    if away := [path for path, parameter in model.named_parameters() if parameter.is_meta]:
        raise ModelError(
            f"{len(away)} weights of {name!r} are not in memory (offloaded), the first is {away[0]}.",
            "An edit there would silently change nothing.",
            "Load the model without CPU or disk offload.",
        )
    weights.check_tokenizer(tokenizer, model, name)
    device = device or model.get_input_embeddings().weight.device
    if len({parameter.device for parameter in model.parameters()}) == 1:
        model = model.to(device)
    model = model.eval().requires_grad_(False)
    return Handle(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=device,
        device_reason=device_reason,
        dtype=dtype or next(model.parameters()).dtype,
        dtype_reason=dtype_reason,
        fingerprint=fingerprint(model),
        anatomy=study(model),
        folder=folder,
        revision=revision,
    )


def fingerprint(model: Any) -> str:
    """A short hash of the weights: names, shapes and up to 1,024 spread values of each parameter.

    Values are rounded to bfloat16 first, so the same checkpoint loaded in another precision has the same fingerprint.
    """
    digest = hashlib.sha256()
    for path, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        stride = max(1, flat.numel() // 1024)
        sample = flat[::stride][:1024].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{path}{tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]
