"""One loaded model with its tokenizer, device, dtype (each with a reason a person can read) and a lock.

It tokenizes, runs and generates. It knows no method and no page.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from editcore.anatomy import Anatomy, study
from editcore.assets import WORLD_NAME, world_dir
from editcore.errors import BadRequest, ModelError
from editcore.loading import Loaded, told
from editcore.local import hub_answers
from editcore.memory import Codebook, Header, Side
from editcore.patch import Patch, attached
from editcore.prompts import reading
from editcore.records import ModelInfo
from editcore.scope import EditMemory
from editcore.spans import Row, encode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)  # results that hold for this model only
    standing: tuple[Patch, ...] = ()  # what is in place now, the last on top: set by `using`

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
    def seed(self) -> int:
        """A seed that depends on nothing but the model."""
        return int(self.fingerprint[:8], 16)

    @property
    def pad(self) -> int:
        """An id for positions nobody reads."""
        for found in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if found is not None:
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
            device=str(self.device),
            device_reason=self.device_reason,
            dtype=str(self.dtype).removeprefix("torch."),
            dtype_reason=self.dtype_reason,
            embedded=self.embedded,
            bytes=sum(p.numel() * p.element_size() for p in parameters),
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
        longest = max(map(len, rows))
        self.check_length(longest)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row))
            mask[i, : len(row)] = 1
        return ids.to(self.device), mask.to(self.device)

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
            keep = torch.tensor(wanted, device=ids.device)
            starts = torch.tensor([rows[i].start for i in group], device=ids.device)
            with reading(torch.arange(ids.shape[1], device=ids.device) < starts[:, None]):
                out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
            where = {p: j for j, p in enumerate(wanted)}
            picked = [(b, where[p]) for b, i in enumerate(group) for p in _positions(rows[i])]
            line, place = torch.tensor(picked, device=ids.device).T
            parts = torch.split(out[line, place].float(), [len(_positions(rows[i])) for i in group])
            for i, part in zip(group, parts, strict=True):
                results[i] = part
        return [r for r in results if r is not None]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, least: int = 0) -> list[str]:
        """Greedy continuations of at most `tokens` and at least `least` tokens, as text without the prompt."""
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


def choose_device(wanted: str | None = None) -> tuple[torch.device, str]:
    """A device and the reason for it.

    Raises:
        ModelError: the wanted device is not there.
    """
    if wanted:
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(
                f"Device {wanted!r} was asked for.", "No CUDA device is usable on this machine.", "Use --device cpu."
            )
        try:
            return torch.device(wanted), "asked for"
        except RuntimeError as error:
            raise ModelError(f"Device {wanted!r} is unknown.", "", "Use cpu, cuda or cuda:0.") from error
    if torch.cuda.is_available():
        return torch.device("cuda"), f"a GPU is present ({torch.cuda.get_device_name()})"
    return torch.device("cpu"), "no GPU was found"


def choose_dtype(device: torch.device, wanted: str | None = None) -> tuple[torch.dtype, str]:
    """A number format and the reason for it.

    Raises:
        ModelError: the name is unknown.
    """
    if wanted and wanted != "auto":
        if wanted not in DTYPES:
            raise ModelError(f"The number format {wanted!r} is unknown.", "", f"Use one of {', '.join(DTYPES)}.")
        return DTYPES[wanted], "asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "half the memory, and the GPU computes in it natively"
    return torch.float32, "exact, and the fastest format on a CPU"


def load(
    name: str = WORLD_NAME, *, device: str | None = None, dtype: str | None = None, revision: str | None = None,
    listen: Callable[[Loaded], None] = lambda loaded: None,
) -> Handle:  # fmt: skip
    """Loads a model by the embedded model's name, a local folder, or a hub id.

    Args:
        listen: hears how much of the weights has been read.

    Raises:
        ModelError: it cannot be found, read or safely edited; the message says what to do.
    """
    chosen, why_device = choose_device(device)
    kind, why_dtype = choose_dtype(chosen, dtype)
    source, folder = _locate(name)
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    away = folder is None and not hub_answers()
    if away or folder is not None:
        options["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        with told(source, revision, listen):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, use_safetensors=True, **options)
    except SafetensorError as error:
        raise ModelError(
            f"A weight file of {name!r} is damaged ({error}).", "", "Download or copy the model again."
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        if away and isinstance(error, OSError):
            raise ModelError(
                f"{name!r} is not on this machine, and the hub cannot be reached.",
                "",
                f"Connect to the network, or name a folder. The embedded model {WORLD_NAME!r} is always there.",
            ) from error
        raise ModelError(
            f"{name!r} could not be loaded ({type(error).__name__}: {_first_line(error)}).",
            "A reachable or cached hub id, or a folder with config.json, tokenizer and safetensors, was wanted.",
            f"The embedded model {WORLD_NAME!r} is always there.",
        ) from error
    return wrap(model, tokenizer, name, chosen, why_device, kind, why_dtype, folder)


def wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    device: torch.device | None = None,
    device_reason: str = "where it was",
    dtype: torch.dtype | None = None,
    dtype_reason: str = "as it was",
    folder: Path | None = None,
) -> Handle:
    """A handle over a model that is already in memory; checks tokenizer and structure.

    Raises:
        ModelError: the tokenizer does not fit, or the structure cannot be proved.
    """
    _check_tokenizer(tokenizer, model, name)
    device = device or next(model.parameters()).device
    model = model.to(device).eval().requires_grad_(False)
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
    )


def _locate(name: str) -> tuple[str, Path | None]:
    if name == WORLD_NAME:
        if not (world_dir() / "config.json").exists():
            raise ModelError(
                f"The embedded model {WORLD_NAME!r} is not in {world_dir().name}/.",
                "",
                "Run `editcore world build` to make it.",
            )
        return str(world_dir()), world_dir()
    looks_local = name.startswith((".", "/", "~")) or os.sep * 2 in name or Path(name).expanduser().is_dir()
    if not looks_local:
        return name, None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"There is no folder {name!r}.", "A hub id or a model folder was wanted.", "Check the path.")
    if not (folder / "config.json").exists():
        raise ModelError(f"{name!r} is not a model folder.", "A folder with config.json was wanted.", "Check the path.")
    return str(folder), folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    sample = "The capital of France"
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    rows = model.get_input_embeddings().weight.shape[0]
    if not ids or tokenizer.decode(ids).strip() != sample or max(ids) >= rows:
        raise ModelError(
            f"The tokenizer of {name!r} does not fit its model: {sample!r} became {tokenizer.decode(ids)!r}.",
            "A tokenizer that gives the text back, with ids inside the embedding table, was wanted.",
            "Put the model's own tokenizer files beside its weights.",
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
