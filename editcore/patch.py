"""The edit as a value: parts that change the outputs of modules. The shared weights are never written.

A patch can attach (and detach: the logits are then bit-identical to the base), scale, stack, weigh itself, save and
load. A low-rank part stores read [r, d_in] and write [r, d_out]: y += strength * (x read^T) write. A dense part stores
the full change of a matrix and of its bias. All arithmetic is fp32, cast once to the module's dtype. Parts that are no
change of a matrix are in `memory`. On one module, first everything is added, then what a codebook knows replaces it:
the order of a stack matters between codebooks only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editcore.errors import Diverged, PatchError, WrongModel
from editcore.memory import Codebook, Gate, Header, Shelf, Side
from editcore.prompts import being_read
from editcore.records import PatchInfo
from editcore.scope import EditMemory, Router

FORMAT = 1


@dataclass(frozen=True)
class LowRank:
    """y += (x read^T) write: rank r change of one module."""

    path: str
    read: Tensor  # [r, d_in], fp32
    write: Tensor  # [r, d_out], fp32

    @property
    def rank(self) -> int:
        return int(self.read.shape[0])

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"read": self.read, "write": self.write}

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """What each tensor must measure on a module of that size."""
        return {"read": (self.rank, d_in), "write": (self.rank, d_out)}

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """The addition to y [..., d_out] for input x [..., d_in], fp32."""
        return (x.float() @ self.read.T) @ self.write

    def delta(self) -> Tensor:
        """The same as a full matrix [d_out, d_in], fp32."""
        return self.write.T @ self.read

    def norm(self) -> float:
        """Frobenius norm of the full matrix, without forming it."""
        gram = (self.read.double() @ self.read.double().T) * (self.write.double() @ self.write.double().T)
        return math.sqrt(max(0.0, float(gram.sum())))

    def to(self, device: torch.device) -> LowRank:
        return replace(self, read=self.read.to(device), write=self.write.to(device))


@dataclass(frozen=True)
class Dense:
    """y += x weight^T + bias: any change of one module."""

    path: str
    weight: Tensor  # [d_out, d_in], fp32
    bias: Tensor | None = None  # [d_out], fp32

    @property
    def rank(self) -> None:
        return None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """What each tensor must measure on a module of that size."""
        return {"weight": (d_out, d_in)} | ({} if self.bias is None else {"bias": (d_out,)})

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """The addition to y [..., d_out] for input x [..., d_in], fp32."""
        return torch.nn.functional.linear(x.float(), self.weight, self.bias)

    def delta(self) -> Tensor:
        """The change of the matrix [d_out, d_in], fp32."""
        return self.weight

    def norm(self) -> float:
        """Frobenius norm over matrix and bias."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))

    def to(self, device: torch.device) -> Dense:
        return replace(self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))


Part = LowRank | Dense | Codebook | Side | Header | EditMemory
KINDS: dict[str, type[Part]] = {
    "low_rank": LowRank, "dense": Dense, "codebook": Codebook, "side": Side, "header": Header,
    "edit_memory": EditMemory,
}  # fmt: skip
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
BESIDE = (Header, EditMemory)  # change no module's output by themselves


@dataclass(frozen=True)
class Patch:
    """One edit of one model."""

    parts: tuple[Part, ...]
    model: str  # name of the base
    fingerprint: str  # of the base
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    requests: tuple[dict[str, Any], ...] = ()  # what was asked, as plain data
    strength: float = 1.0  # 0: off, 1: as computed; a header is there or not

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(t.numel() * t.element_size() for part in self.parts for t in part.tensors.values())

    def scaled(self, strength: float) -> Patch:
        """The same edit, weaker or stronger."""
        return replace(self, strength=strength)

    def check_finite(self) -> None:
        """Raises Diverged when a number is NaN or infinite."""
        for part in self.parts:
            for name, tensor in part.tensors.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise Diverged(
                        f"The edit of {part.path} diverged: {name} holds a number that is not finite.",
                        "Nothing was kept.",
                        "Lower the learning rate or the number of steps.",
                    )

    def info(self, model: nn.Module, path: str | None = None) -> PatchInfo:
        """Bytes, modules, rank, norms (relative to the edited matrices)."""
        ranks = [part.rank for part in self.parts]
        norm = math.hypot(*(part.norm() for part in self.parts)) * abs(self.strength)
        paths = tuple(dict.fromkeys(part.path for part in self.parts if not isinstance(part, BESIDE)))
        base = math.hypot(*(float(model.get_submodule(path).weight.float().norm()) for path in paths))  # type: ignore[operator]
        return PatchInfo(
            bytes=self.bytes,
            modules=paths,
            rank=None if None in ranks else max((r for r in ranks if r is not None), default=0),
            norm=norm,
            relative_norm=norm / base if base else 0.0,
            path=path,
        )

    def save(self, folder: Path) -> None:
        """Writes `patch.safetensors` and `patch.json`; the folder appears complete or not at all."""
        part_folder = folder.with_name(folder.name + ".part")
        part_folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{i}.{name}": tensor.detach().cpu().contiguous()
            for i, part in enumerate(self.parts)
            for name, tensor in part.tensors.items()
        }
        save_file(tensors, part_folder / "patch.safetensors")
        kinds = {cls: kind for kind, cls in KINDS.items()}
        head = {
            "format": FORMAT,
            **{k: v for k, v in asdict(replace(self, parts=())).items() if k != "parts"},
            "parts": [{"kind": kinds[type(part)], "path": part.path} for part in self.parts],
        }
        (part_folder / "patch.json").write_text(json.dumps(head, indent=1, default=str) + "\n", encoding="utf-8")
        part_folder.rename(folder)


def load_patch(folder: Path, fingerprint: str | None = None, device: torch.device | None = None) -> Patch:
    """Reads a patch; refuses one that was made for another model.

    Args:
        fingerprint: of the model it is to be used on; None skips the check.

    Raises:
        PatchError: the folder is not a complete patch, or its numbers are not finite.
        WrongModel: the fingerprints differ.
    """
    try:
        head = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
        parts = []
        with safe_open(folder / "patch.safetensors", framework="pt") as file:
            names = set(file.keys())
            for i, entry in enumerate(head.pop("parts")):
                own = {n.partition(".")[2]: file.get_tensor(n) for n in sorted(names) if n.partition(".")[0] == str(i)}
                parts.append(KINDS[entry["kind"]](entry["path"], **own))
        if head.pop("format") != FORMAT:
            raise PatchError(f"The patch in {folder.name} has another format.", f"Format {FORMAT} was wanted.")
        patch = Patch(tuple(parts), **{**head, "requests": tuple(head["requests"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise PatchError(
            f"The patch in {folder.name!r} is damaged or incomplete ({type(error).__name__}: {error}).",
            "A folder with patch.json and patch.safetensors was wanted.",
            "Save it again from the model it was made on.",
        ) from error
    if fingerprint is not None and patch.fingerprint != fingerprint:
        raise WrongModel(
            f"This patch was made for {patch.model} with fingerprint {patch.fingerprint}.",
            f"The loaded model has fingerprint {fingerprint}.",
            "Load the model the patch was made for.",
        )
    try:
        patch.check_finite()
    except Diverged as error:
        raise PatchError(
            f"The patch in {folder.name!r} holds a number that is not finite.", "", "Save it again from the edit."
        ) from error
    return replace(patch, parts=tuple(part.to(device) for part in patch.parts)) if device else patch


@contextmanager
def attached(model: nn.Module, patches: Sequence[Patch]) -> Iterator[None]:
    """While the block runs, `model` answers with all `patches` in place; afterwards, bit-identical to the base.

    Raises:
        PatchError: a patch names a module the model does not have, or has another shape.
    """
    grouped: dict[str, list[tuple[LowRank | Dense | Codebook | Side, float]]] = {}
    for patch in patches:
        for part in patch.parts:
            if not isinstance(part, BESIDE):  # a text in front is put there by `Handle.row`
                grouped.setdefault(part.path, []).append((part, patch.strength))
    memories = [(part, p.strength) for p in patches for part in p.parts if isinstance(part, EditMemory)]
    hooks = []
    try:
        for path, parts in grouped.items():
            module = _module(model, path)
            for part, _ in parts:
                _check_shape(module, part)
            device = module.weight.device
            hook = _hook(module, [(p.to(device), s) for p, s in parts])  # type: ignore[arg-type]
            hooks.append(module.register_forward_hook(hook))
        hooks += Router(model, memories).hooks()
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def bared(model: nn.Module) -> Iterator[None]:
    """While the block runs, `model` has no forward hook; afterwards those it had are back, and new ones stay.

    The hooks themselves are not touched: whoever put one there can remove it as ever.
    """
    kept = [(m, name, m.__dict__[name]) for m in model.modules() for name in _HOOKS if m.__dict__.get(name)]
    for module, name, hooks in kept:
        module.__dict__[name] = type(hooks)()
    try:
        yield
    finally:
        for module, name, hooks in kept:
            hooks.update(module.__dict__[name])
            module.__dict__[name] = hooks


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PatchError(f"The patch edits {path!r}.", f"{type(model).__name__} has no such module.") from error


def _size(module: nn.Module) -> tuple[int, int]:
    rows, columns = (int(n) for n in module.weight.shape)  # type: ignore[union-attr]
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _check_shape(module: nn.Module, part: LowRank | Dense | Codebook | Side) -> None:
    wanted = part.shapes(*_size(module))
    for name, tensor in part.tensors.items():
        if tuple(tensor.shape) != wanted[name]:
            raise PatchError(
                f"The patch holds {name} of shape {list(tensor.shape)} for {part.path!r}.",
                f"Shape {list(wanted[name])} was wanted.",
                "Use it on the model it was made for.",
            )


def _hook(module: nn.Module, parts: Sequence[tuple[Part, float]]) -> Any:
    added = [(p, s) for p, s in parts if isinstance(p, LowRank | Dense) and s != 0.0]
    gate = Gate([(p, s) for p, s in parts if isinstance(p, Side)], *_size(module))
    shelf = Shelf([(p, s) for p, s in parts if isinstance(p, Codebook)])

    def change(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x, prompts = args[0], being_read()
        prompts = None if prompts is None else prompts.at(x.device)
        more = [part.apply(x, out) if s == 1.0 else part.apply(x, out) * s for part, s in added]
        if prompts is not None and (routed := gate.addition(x, prompts)) is not None:
            more.append(routed)
        if more:
            out = (out.float() + sum(more[1:], more[0])).to(out.dtype)
        return out if prompts is None else shelf.answer(x, out, prompts)

    return change
