"""The recipe: tables -> text -> tokenizer -> weights. Reproducible from a seed, resumable, CPU or GPU."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editcore.world.facts import World
from editcore.world.text import Sentence, documents

END_OF_TEXT = "<|endoftext|>"
POSITIONS = 256


@dataclass(frozen=True)
class Recipe:
    """Every dial of the embedded model."""

    layers: int = 6
    width: int = 256
    heads: int = 4
    vocabulary: int = 6144
    steps: int = 3000  # optimiser steps
    tokens: int = 2048  # tokens a step
    rate: float = 1.5e-3  # AdamW peak learning rate
    warmup: int = 60  # steps
    decay: float = 0.35  # last share of the steps, in which the rate falls linearly to zero
    weight_decay: float = 0.01
    wording_weight: float = 0.25  # loss weight of tokens that are not part of an answer
    seed: int = 2019


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What a listener hears."""

    step: int
    steps: int
    loss: float  # mean weighted loss since the last report, nats
    tokens_per_second: float
    seconds_left: float


def train_tokenizer(world: World, vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocabulary` entries learned from the world's own text."""
    stream = documents(world, random.Random(seed))
    texts = (" ".join(map(str, next(stream))) for _ in range(20_000))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


class Batches:
    """Packed rows of documents: token ids and loss weights of the *next* token, both [rows, length]."""

    LENGTHS = (32, 64, 128, 256)
    SHARES = (0.25, 0.45, 0.22, 0.08)

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self._rng = random.Random(recipe.seed)
        self._documents = documents(world, self._rng)
        self._tokenizer, self._recipe = tokenizer, recipe
        self._cache: dict[tuple[Sentence, bool], tuple[list[int], list[float]]] = {}
        assert tokenizer.eos_token_id is not None
        self._end = int(tokenizer.eos_token_id)

    def _encode(self, piece: Sentence, first: bool) -> tuple[list[int], list[float]]:
        # Words keep their leading space in this tokenizer, so pieces cut at spaces encode to the same tokens.
        key = (piece, first)
        if key not in self._cache:
            prompt = self._tokenizer.encode(("" if first else " ") + piece.prompt)
            answer = self._tokenizer.encode(f" {piece.answer}{piece.end}")
            self._cache[key] = prompt + answer, [self._recipe.wording_weight] * len(prompt) + [1.0] * len(answer)
        return self._cache[key]

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            for i, piece in enumerate(next(self._documents)):
                more, heavy = self._encode(piece, first=i == 0)
                ids += more
                weights += heavy
            ids.append(self._end)
            weights.append(self._recipe.wording_weight)
        return ids[:length], weights[:length]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            (length,) = self._rng.choices(self.LENGTHS, self.SHARES)
            rows = [self._row(length) for _ in range(self._recipe.tokens // length)]
            yield torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])


def rate_at(recipe: Recipe, step: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay` of the steps."""
    left = (recipe.steps - step) / max(1, round(recipe.decay * recipe.steps))
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup, left)


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> GPT2LMHeadModel:
    """A fresh GPT-2-architecture model of the recipe's shape."""
    torch.manual_seed(recipe.seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=end, eos_token_id=end,
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model(input_ids=ids).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    heavy = weights[:, 1:].flatten()
    return (losses * heavy).sum() / heavy.sum()


def build(
    world: World,
    recipe: Recipe,
    work: Path,
    *,
    device: str = "cpu",
    checkpoint_every: int = 100,
    report_every: int = 20,
    listen: Callable[[BuildProgress], Any] = lambda progress: None,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Trains the embedded model; continues from `work/checkpoint.pt` when there is one.

    Args:
        work: a folder for the tokenizer and the checkpoint; removed by nobody.
        listen: called every `report_every` steps.
    """
    work.mkdir(parents=True, exist_ok=True)
    words = work / "tokenizer"
    if not (words / "tokenizer.json").exists():
        train_tokenizer(world, recipe.vocabulary, recipe.seed).save_pretrained(words)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
    model = new_model(tokenizer, recipe).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)
    batches = iter(Batches(world, tokenizer, recipe))
    checkpoint, start = work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = int(state["step"])
        for _ in range(start):  # the text continues where it stopped
            next(batches)
    began, total = time.monotonic(), 0.0
    for step in range(start, recipe.steps):
        ids, weights = (t.to(device) for t in next(batches))
        for group in optimiser.param_groups:
            group["lr"] = rate_at(recipe, step)
        loss = _loss(model, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        total += loss.item()
        done = step + 1
        if done % report_every == 0 or done == recipe.steps:
            each = (time.monotonic() - began) / (done - start)
            count = (done - start - 1) % report_every + 1
            listen(BuildProgress(done, recipe.steps, total / count, recipe.tokens / each, each * (recipe.steps - done)))
            total = 0.0
        if done % checkpoint_every == 0 or done == recipe.steps:
            part = checkpoint.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": done}, part)
            part.replace(checkpoint)
    return model.eval(), tokenizer


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, folder: Path) -> None:
    """Writes weights (fp16 safetensors), tokenizer, configs and `recipe.json` as a plain model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
