"""Two pretended GPUs: tensors carry a place of their own, and what would stop on real ones stops here.

Numbers are computed on the processor. Inside `two_devices`, `tensor.device` tells the place, `.to(...)` and factories
with `device=` give it, results take that of what they were made from, and tensors of different places do not meet,
with the exceptions torch makes: a number without dimensions that lies on the processor goes anywhere, and so do indices
that lie there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


def place(tensor: Tensor) -> torch.device:
    """Where it pretends to be."""
    return getattr(tensor, "_place", CPU)


def put(value: Any, where: torch.device) -> Any:
    """Marks every tensor in `value`."""
    return tree_map(lambda t: _marked(t, where) if isinstance(t, Tensor) else t, value)


def _marked(tensor: Tensor, where: torch.device) -> Tensor:
    tensor._place = where
    return tensor


def _named(value: Any) -> torch.device | None:
    if isinstance(value, Tensor):
        return place(value)
    if isinstance(value, torch.device):
        return FIRST if str(value) == "cuda" else value
    return torch.device(value) if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda") else None


class _Pretend(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return place(args[0])
        if func == Tensor.is_cuda.__get__:
            return place(args[0]).type == "cuda"
        if func is Tensor.get_device:
            return place(args[0]).index if place(args[0]).type == "cuda" else -1
        if func == Tensor.grad.__get__:
            found = func(*args)
            return found if found is None else _marked(found, place(args[0]))
        if func == Tensor.to:
            return self._moved(args, kwargs)
        if func in (Tensor.cpu, Tensor.cuda):
            return self._moved((args[0], CPU if func is Tensor.cpu else FIRST), {})
        if func in (Tensor.numpy, Tensor.tolist, Tensor.item) and func is Tensor.numpy and place(args[0]) != CPU:
            raise TypeError(f"can't convert {place(args[0])} device type tensor to numpy")
        if func == Tensor.data.__set__:
            func(*args)
            _marked(args[0], place(args[1]))
            return None
        wanted = _named(kwargs.pop("device", None)) if "device" in kwargs else None
        where = self._met(func, name, args, kwargs)
        found = func(*args, **kwargs)
        if name in ("grad",):  # gradients lie where what they are of lies
            inputs = args[1] if isinstance(args[1], list | tuple) else (args[1],)
            for gradient, of in zip(found, inputs, strict=True):
                if gradient is not None:
                    _marked(gradient, place(of))
            return found
        return put(found, wanted or where or CPU)

    def _moved(self, args: Any, kwargs: Any) -> Tensor:
        tensor, *rest = args
        targets = [t for t in (*rest, *kwargs.values()) if _named(t) is not None]
        kinds = [t.dtype if isinstance(t, Tensor) else t for t in (*rest, *kwargs.values())]
        dtype = next((k for k in kinds if isinstance(k, torch.dtype)), tensor.dtype)
        where = _named(targets[0]) if targets else place(tensor)
        same = where == place(tensor) and dtype == tensor.dtype
        return tensor if same else _marked(tensor.to(dtype) if dtype != tensor.dtype else tensor.clone(), where)

    def _met(self, func: Any, name: str, args: Any, kwargs: Any) -> torch.device | None:
        if name in ("grad", "backward", "__set__", "_has_compatible_shallow_copy_type", "_pack_padded_sequence"):
            return None
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if name == "lstm":  # lengths of packed rows stay on the processor; its first state has no place here
            tensors = [t for t in tensors if t.is_floating_point() and place(t) != CPU]
        if func in INDEXING and tensors:
            own, others = place(tensors[0]), [t for t in tensors[1:] if place(t) != CPU]
        else:
            strong = [t for t in tensors if t.dim() or place(t) != CPU]
            own, others = place(strong[0]) if strong else CPU, strong[1:]
        if any(place(t) != own for t in others):
            places = sorted({str(place(t)) for t in tensors})
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {places} in {name}")
        return own if tensors else None


@contextmanager
def two_devices() -> Iterator[None]:
    """While the block runs, tensors have places."""
    forked = torch.random.fork_rng
    torch.random.fork_rng = lambda devices=None, **more: forked(devices=[], **more)
    try:
        with _Pretend():
            yield
    finally:
        torch.random.fork_rng = forked


def halved(model: Any, blocks: Any) -> None:
    """Puts the second half of the blocks and all that is no block but the embeddings on the second device.

    As accelerate does it, what a block is given is brought to it inside its forward, and what the model gives back is
    brought to the first.
    """
    for parameter in (*model.parameters(), *model.buffers()):
        parameter._place = SECOND
    front = [model.get_input_embeddings(), *blocks[: len(blocks) // 2]]
    for module in front:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor._place = FIRST
    for module in model.modules():  # rotary tables and positions are read beside the embeddings
        name = type(module).__name__.lower()
        if "rotary" in name or ("embedding" in name and module is not model.get_output_embeddings()):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor._place = FIRST
    inside = {id(m) for block in blocks for m in block.modules()}
    last = [m for m in model.modules() if not list(m.children()) and id(m) not in inside and list(m.parameters())]
    for module in (*blocks, *last):
        _bring(module)
    _bring(model, FIRST)


def _bring(module: Any, home: torch.device | None = None) -> None:
    inner = module.forward
    own = home or next((place(p) for p in module.parameters()), FIRST)

    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda t: t.to(own) if isinstance(t, Tensor) else t, (args, kwargs))
        found = inner(*args, **kwargs)
        if home is not None:
            found.logits = found.logits.to(home)
        return found

    module.forward = forward
