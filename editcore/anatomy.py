"""Where a model keeps its blocks and which matrix of each block is edited: found by structure, never by name.

The blocks are the one module list as long as the number of layers; of an encoder-decoder, the one outermost list of
the encoder and then that of the decoder, numbered on. The edited matrix of a block (its *site*) is the last linear map
the block executes whose output is as wide as the embedding. A block that holds a parameter of three or more dimensions
is refused: mixtures of experts and state-space layers keep their weights so, and would be edited silently in the wrong
place. So is a single stack that reads both ways: what stands behind a token must not change it. What cannot be proved
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editcore.errors import BadSetting, ModelError

LINEAR = (nn.Linear, Conv1D)
MOVED = 1e-3  # relative change of an input that is no rounding


@dataclass(frozen=True)
class Site:
    """The edited matrix of one block: y = W x + b."""

    layer: int  # 0-based
    path: str  # full module path
    module: nn.Module
    d_in: int
    d_out: int
    transposed: bool  # the weight is stored [d_in, d_out] (Conv1D) instead of [d_out, d_in]
    encoder: bool = False  # its block reads the prompts alone, in front of a decoder

    def weight(self) -> Tensor:
        """W as [d_out, d_in], a view of the model's own parameter."""
        stored: Tensor = self.module.weight  # type: ignore[assignment]
        return stored.T if self.transposed else stored

    @property
    def device(self) -> torch.device:
        """Where the matrix lies: of a model on several devices, not always where its first tokens are read."""
        return self.weight().device

    def bias(self) -> Tensor | None:
        """b [d_out], or None."""
        found = getattr(self.module, "bias", None)
        return found if isinstance(found, Tensor) else None


@dataclass(frozen=True)
class Anatomy:
    """A model's blocks and sites, in order."""

    path: str  # of the block list that says the answers
    holder: nn.Module  # the module that owns this list
    attribute: str  # its name there
    blocks: tuple[nn.Module, ...]
    sites: tuple[Site, ...]
    additive: tuple[bool, ...]  # the site's output enters the block's output unchanged (no norm behind it)
    split: int = 0  # number of the first block that says answers; those before it, if any, are an encoder's

    @property
    def said_by(self) -> range:
        """The blocks that say answers: a decoder's, or all of them."""
        return range(self.split, len(self.blocks))

    def site(self, layer: int) -> Site:
        """The site of block `layer`.

        Raises:
            BadSetting: there is no such layer.
        """
        if not 0 <= layer < len(self.sites):
            last = len(self.sites) - 1
            parts = f": the encoder's to {self.split - 1}, the decoder's from {self.split}" if self.split else ""
            raise BadSetting(
                f"Layer {layer} does not exist.",
                f"This model has layers 0 to {last}{parts}.",
                "Choose one of them.",
            )
        return self.sites[layer]


def study(model: Any) -> Anatomy:
    """Finds blocks and sites by running four tokens through the model.

    Raises:
        ModelError: the structure cannot be proved; the message says which rule failed.
    """
    config, lists = _text_config(model), stacks(model)
    for path, blocks in lists:
        _refuse_absent(blocks, path)
    width = model.get_input_embeddings().weight.shape[-1]
    width = getattr(config, "hidden_size", width) or width
    if not two_stacks(model):
        _refuse_both_ways(model, lists[0][1][-1])
    split = sum(len(blocks) for _, blocks in lists[:-1])
    named = [(f"{path}.{i}", block) for path, blocks in lists for i, block in enumerate(blocks)]
    sites = _sites(model, named, int(width), split)
    path = lists[-1][0]
    holder, attribute = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    additive = tuple(_adds(model, block, site) for (_, block), site in zip(named, sites, strict=True))
    return Anatomy(path, holder, attribute, tuple(block for _, block in named), sites, additive, split)


def stacks(model: Any) -> list[tuple[str, tuple[nn.Module, ...]]]:
    """Path and blocks of each list of blocks, an encoder's first; no weight is looked at, only names and shapes.

    Raises:
        ModelError: as `study` does, as far as that tells.
    """
    lists = _both_lists(model) if two_stacks(model) else [_block_list(model, _text_config(model))]
    for path, blocks in lists:
        _refuse_odd(blocks, path)
    return lists


def _text_config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def two_stacks(model: Any) -> bool:
    """True for an encoder-decoder: one stack of blocks reads the prompt, another says the answer."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _both_lists(model: Any) -> list[tuple[str, tuple[nn.Module, ...]]]:
    """Path and blocks of the encoder's list, and of the decoder's."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        inside = {id(module) for module in stack.modules()} if stack is not model else set()
        lists = _outermost(
            (path, m) for path, m in model.named_modules() if id(m) in inside and isinstance(m, nn.ModuleList)
        )
        if len(lists) != 1 or any(lists[0][1] is other for _, other in found):
            raise ModelError(
                f"The {name} of {type(model).__name__} has {len(lists)} lists of blocks of its own{_names(lists)}.",
                "Exactly one was wanted: a plain stack of blocks.",
                "This model family cannot be edited here.",
            )
        found += lists
    return [(path, tuple(blocks)) for path, blocks in found]


def _block_list(model: Any, config: Any) -> tuple[str, tuple[nn.Module, ...]]:
    count = getattr(config, "num_hidden_layers", None)
    found = _outermost(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} lists of {count} blocks{_names(found)}.",
            "Exactly one was wanted: a plain stack of decoder blocks.",
            "This model family cannot be edited here.",
        )
    name, blocks = found[0]
    return name, tuple(blocks)


def _outermost(lists: Iterable[tuple[str, nn.ModuleList]]) -> list[tuple[str, nn.ModuleList]]:
    """Those that hold parameters and are not nested inside another: such a list belongs to one block."""
    found = [(n, m) for n, m in lists if any(p.numel() for p in m.parameters())]
    return [(n, m) for n, m in found if not any(n.startswith(f"{other}.") for other, _ in found)]


def _names(found: list[tuple[str, nn.ModuleList]]) -> str:
    return f" ({', '.join(name for name, _ in found)})" if found else ""


def _refuse_odd(blocks: tuple[nn.Module, ...], path: str) -> None:
    for i, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            if parameter.dim() >= 3:
                raise ModelError(
                    f"Block {path}.{i} holds {name} of shape {list(parameter.shape)}.",
                    "Weights of three or more dimensions mean experts or state-space layers: a fact has no one place.",
                    "Use a dense decoder model (GPT, Llama, Qwen, Mistral, Gemma, Phi, ...).",
                )
            if parameter.dim() == 2 and not parameter.dtype.is_floating_point:
                raise ModelError(
                    f"{path}.{i}.{name} is stored as {parameter.dtype}.",
                    "Quantised weights cannot be edited exactly.",
                    "Load the model in float32, bfloat16 or float16.",
                )


def _refuse_absent(blocks: tuple[nn.Module, ...], path: str) -> None:
    for i, block in enumerate(blocks):
        if any(parameter.is_meta for parameter in block.parameters()):
            raise ModelError(
                f"The weights of {path}.{i} are not in memory (offloaded).",
                "An edit there would silently change nothing.",
                "Load the model without CPU or disk offload.",
            )


def _shape(module: nn.Module) -> tuple[int, int]:
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(module, Conv1D) else (int(columns), int(rows))


def _sites(model: Any, named: list[tuple[str, nn.Module]], width: int, split: int) -> tuple[Site, ...]:
    order: list[tuple[int, str, nn.Module]] = []
    hooks = []
    for i, (_, block) in enumerate(named):
        for name, module in block.named_modules():
            if isinstance(module, LINEAR):

                def note(m: nn.Module, _i: Any, _o: Any, i: int = i, name: str = name) -> None:
                    order.append((i, name, m))

                hooks.append(module.register_forward_hook(note))
    try:
        _run(model)
    finally:
        for hook in hooks:
            hook.remove()
    sites = []
    for i, (path, _) in enumerate(named):
        fitting = [(name, m) for at, name, m in order if at == i and _shape(m)[1] == width]
        if not fitting:
            raise ModelError(
                f"Block {path} executes no linear map of output width {width}.",
                "The edited matrix writes into the residual stream, so one is needed.",
                "This model family cannot be edited here.",
            )
        name, module = fitting[-1]
        d_in, d_out = _shape(module)
        sites.append(Site(i, f"{path}.{name}", module, d_in, d_out, isinstance(module, Conv1D), i < split))
    return tuple(sites)


def computes(model: Any) -> bool:
    """True when the logits of four tokens are finite."""
    return bool(torch.isfinite(_run(model).logits).all())


@torch.no_grad()
def _run(model: Any, last: int = 3) -> Any:
    """Four tokens through the model, the last of them of this id."""
    table = model.get_input_embeddings().weight
    ids = torch.tensor([[0, 1, 2, last]], device=table.device) % table.shape[0]
    more = {"decoder_input_ids": ids} if two_stacks(model) else {}
    return model(input_ids=ids, use_cache=False, **more)


def _refuse_both_ways(model: Any, block: nn.Module) -> None:
    """Raises ModelError when another last token changes what `block` makes of those before it."""
    seen: list[Tensor] = []

    def keep(_m: nn.Module, _i: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out).reshape(4, -1)[:3].float())

    hook = block.register_forward_hook(keep)
    try:
        for last in (3, 4):
            _run(model, last)
    finally:
        hook.remove()
    if (seen[1] - seen[0]).abs().max() > MOVED * seen[0].abs().max():
        raise ModelError(
            f"{type(model).__name__} reads both ways: a token depends on those behind it.",
            "A model that continues a text token by token was wanted.",
            "Use a decoder (GPT, Llama, Qwen, Mistral, Gemma, Phi, ...).",
        )


def _adds(model: Any, block: nn.Module, site: Site) -> bool:
    """True when a vector added to the site's output appears unchanged in the block's output."""
    seen: list[Tensor] = []
    push = torch.linspace(-1, 1, site.d_out)

    def add(_m: nn.Module, _i: Any, out: Tensor) -> Tensor:
        return out + push.to(out)

    def keep(_m: nn.Module, _i: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out).float())

    hook = block.register_forward_hook(keep)
    try:
        _run(model)
        pushed = site.module.register_forward_hook(add)
        try:
            _run(model)
        finally:
            pushed.remove()
    finally:
        hook.remove()
    moved = seen[1] - seen[0]
    slack = 1e-3 if moved.dtype == torch.float32 and next(block.parameters()).dtype == torch.float32 else 0.05
    return bool((moved - push.to(moved)).abs().max() <= slack * max(1.0, float(seen[0].abs().max())))


def attention_output(model: Any, block: nn.Module, width: int) -> nn.Module:
    """The last linear map of a block's attention, whose output is what attention adds.

    It is the first linear map of the block with an output of `width` whose input at one token depends on what the
    block reads at another: queries, keys and values do not, and what comes later is no longer attention. Blocks where
    attention and MLP stand side by side are no exception. Four tokens are run through the model twice.

    Raises:
        ModelError: the block holds no such map.
    """
    read: list[list[tuple[nn.Module, Tensor]]] = []

    def note(m: nn.Module, args: tuple[Tensor, ...], _o: Any) -> None:
        if _shape(m)[1] == width:
            read[-1].append((m, args[0].reshape(-1, args[0].shape[-1])[-1].float()))

    def push(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, 0] += torch.linspace(-1, 1, hidden.shape[-1]).to(hidden) * hidden.abs().max()
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    hooks = [m.register_forward_hook(note) for m in block.modules() if isinstance(m, LINEAR)]
    try:
        for pushed in (False, True):
            if pushed:
                hooks.append(block.register_forward_pre_hook(push, with_kwargs=True))
            read.append([])
            _run(model)
    finally:
        for hook in hooks:
            hook.remove()
    for (module, plain), (_, moved) in zip(*read, strict=True):
        if (moved - plain).abs().max() > MOVED * plain.abs().max():
            found: nn.Module = module
            return found
    raise ModelError(
        f"No linear map of output width {width} in {type(block).__name__} sees other tokens.",
        "The output of the block's attention was wanted.",
        "Use a method that edits without it, such as memit.",
    )
