"""Tiny models and edits of them, to be taken away."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
import transformers
from transformers import AutoModelForCausalLM

from editcore.opening import wrap
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Probe, to_plain
from tests import models

REQUEST = EditRequest(
    "The capital of Poland is", "Łódź", probes=(Probe("far", "It is"), Probe("far", "Who wrote Dune?"))
)


@lru_cache
def handle(name: str):
    """A tiny family; "tied-": its input embedding is its head, too."""
    if not name.startswith("tied-"):
        return models.handle(name)
    kind, arguments, _ = models.DENSE[name.removeprefix("tied-")]
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, kind)(**{**arguments, **ends, "tie_word_embeddings": True})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    return wrap(built, models.tokenizer(), name)


def low(h, layer: int, rank: int, seed: int, strength: float = 1.0) -> Patch:
    made, site = torch.Generator().manual_seed(seed), h.anatomy.site(layer)
    part = LowRank(
        site.path, 0.3 * torch.randn(rank, site.d_in, generator=made), torch.randn(rank, site.d_out, generator=made)
    )
    return Patch((part,), h.name, h.fingerprint, "rome", {"steps": 1}, (plain(REQUEST),), strength)


def plain(request):
    return json.loads(json.dumps(to_plain(request)))
