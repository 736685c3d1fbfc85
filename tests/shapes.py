"""Random models of the shapes people edit, with made-up statistics and editors: an edit takes as long with those.

Nothing is downloaded, and a model for a GPU is built on it directly. The tokenizer is the embedded model's, with
made-up tokens behind its own until there is one for each row of the embedding table: ids matter here, words do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from editcore import corpus, statistics, trained
from editcore.assets import assets_root, world_dir
from editcore.factors import RIDGE
from editcore.handle import Handle
from editcore.methods import METHODS
from editcore.moments import Estimate
from editcore.opening import wrap
from editcore.trained import GradientMethod

GPT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
# name -> (configuration class, its arguments)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT),
    "gpt2-medium": ("GPT2Config", {**GPT, "n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-xl": ("GPT2Config", {**GPT, "n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gpt-j-6b": (
        "GPTJConfig",
        {**GPT, "vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
         "tie_word_embeddings": False},
    ),
    "llama-3-8b": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
         "rope_theta": 500000.0, "tie_word_embeddings": False},
    ),
}  # fmt: skip
ON_CPU = ("gpt2", "gpt2-medium")
ON_GPU = ("gpt2-xl", "gpt-j-6b", "llama-3-8b")
MADE_UP = 512  # keys a made-up second moment is the mean of


def build(name: str, home: Path, device: torch.device | None = None, editors: Sequence[str] | None = None) -> Handle:
    """A random model of that shape, ready for every method that needs no example texts; its files go into `home`.

    Args:
        editors: make those of these methods only.
    """
    device = device or torch.device("cuda" if name in ON_GPU else "cpu")
    kind, arguments = SHAPES[name]
    handle = of_config(getattr(transformers, kind)(**{**arguments, "pad_token_id": 0}), name, device)
    handle.home = home
    _text(handle, home)
    _editors(handle, home, editors)
    return handle


def of_config(config: Any, name: str, device: torch.device) -> Handle:
    """A random model of that configuration, in bfloat16 on a GPU and in float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = _tokenizer(int(model.get_input_embeddings().weight.shape[0]))
    return wrap(model, tokenizer, name, device, "of this bench", dtype, "of this bench")


def _tokenizer(size: int) -> Any:
    """The embedded model's, with made-up tokens behind its own until there are `size`."""
    own = transformers.AutoTokenizer.from_pretrained(world_dir(), local_files_only=True)
    parts = json.loads(own.backend_tokenizer.to_str())
    parts["model"]["vocab"] |= {f"<made up {i}>": i for i in range(len(own), size)}
    whole = Tokenizer.from_str(json.dumps(parts))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **own.special_tokens_map)


def _text(handle: Handle, home: Path) -> None:
    """Running text for what replays or samples it."""
    lines = (assets_root() / "neutral.txt").read_text(encoding="utf-8").split(". ")
    file = home / "text.txt"
    file.write_text("\n".join(lines * (1 + 4000 // len(lines))), encoding="utf-8")
    corpus.store(handle, home, file)


def _editors(handle: Handle, home: Path, wanted: Sequence[str] | None) -> None:
    """Editors as they are before training; their steps are 1, so that nothing they do vanishes in rounding."""
    for method in METHODS:
        learns = issubclass(method, GradientMethod) or method.name == "serac"
        if not learns or (wanted is not None and method.name not in wanted):
            continue
        kind: Any = method.editor  # type: ignore[attr-defined]
        editor = kind([handle.anatomy.site(layer) for layer in kind.usual(handle.anatomy)])
        if hasattr(editor, "log_step"):
            editor.log_step.data.fill_(-4.0)
        for matrix in getattr(editor, "matrices", ()):
            matrix.data.normal_(std=1e-3)
        trained.save(trained.path_in(home, handle, method.name), handle, method.name, editor, {"moved": 0.0})


def measured(handle: Handle, home: Path, method: Any) -> None:
    """Statistics of every matrix a method reads them of, and for AlphaEdit which directions are unused."""
    for site in method.measured(handle):
        if not statistics.ready(handle, site, home):
            second = _second_moment(site.d_in, handle.device)
            made = Estimate(second, MADE_UP, RIDGE, None)
            text = replace(corpus.text_of(handle, MADE_UP, home), source="made up")
            statistics.write(home, handle, site.path, made, text)
        statistics.moment(handle, site, home)
        if method.name == "alphaedit":
            values = torch.linspace(0, 2 * method.cut, site.d_in, dtype=torch.float64, device=handle.device)
            vectors = torch.eye(site.d_in, dtype=torch.float64, device=handle.device)
            handle.memory["spectrum", site.path] = values, vectors


def _second_moment(width: int, device: torch.device) -> Tensor:
    keys = torch.randn(MADE_UP, width, generator=torch.Generator(device).manual_seed(0), device=device)
    return keys.T @ keys / MADE_UP
