"""The recipe: tables -> text -> tokenizer -> weights. Reproducible from a seed, resumable, CPU or GPU."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editcore import corpus, halves, moments, statistics
from editcore.assets import WORLD_NAME
from editcore.methods import METHODS, prepare_method
from editcore.opening import load
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
    steps: int = 3600  # optimiser steps
    polish: int = 2000  # further steps, at `polish_rate` and falling: for facts that are hard to remember
    tokens: int = 2048  # tokens a step
    rate: float = 1e-3  # AdamW peak learning rate
    polish_rate: float = 3e-4
    warmup: int = 60  # steps
    decay: float = 0.35  # last share of the steps, in which the rate falls linearly to zero
    weight_decay: float = 0.1  # on matrices
    wording_weight: float = 0.25  # loss weight of tokens that are not part of an answer
    alone: float = 0.7  # share of sentences whose subject's name is read without what stands in front of it
    seed: int = 2019

    @property
    def total(self) -> int:
        """All optimiser steps."""
        return self.steps + self.polish


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


@dataclass(slots=True)
class Row:
    """Packed documents: per token its id, its loss weight, and the first position it may look back to."""

    ids: list[int]
    weights: list[float]
    floors: list[int]

    def add(self, ids: Sequence[int], weights: Sequence[float], floors: Sequence[int]) -> None:
        self.ids += ids
        self.weights += weights
        self.floors += floors


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sentence in tokens."""

    ids: list[int]
    weights: list[float]
    name: range  # tokens of the subject's name


class Batches:
    """Batches of rows: ids, loss weights and floors (see `Row`), each [rows, length].

    In a share of the sentences the tokens of the subject's name do not see what stands in front of it. What the model
    knows about a subject then has to hang on the name itself, whatever the wording: the property of large language
    models that lets an edit at the subject reach every paraphrase.
    """

    LENGTHS = (32, 64, 128, 256)
    SHARES = (0.25, 0.45, 0.22, 0.08)

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self._rng = random.Random(recipe.seed)
        self._documents = documents(world, self._rng)
        self._tokenizer, self._recipe = tokenizer, recipe
        self._cache: dict[tuple[Sentence, bool], Encoded] = {}
        assert tokenizer.eos_token_id is not None
        self._end = int(tokenizer.eos_token_id)

    def _encode(self, piece: Sentence, first: bool) -> Encoded:
        # Words keep their leading space in this tokenizer, so pieces cut at spaces encode to the same tokens.
        key = (piece, first)
        if key not in self._cache:
            lead = "" if first else " "
            prompt = self._tokenizer(lead + piece.prompt, return_offsets_mapping=True)
            begin, end = (at + len(lead) for at in piece.name)
            inside = [i for i, (a, b) in enumerate(prompt["offset_mapping"]) if a < end and b > begin]
            answer = self._tokenizer.encode(f" {piece.answer}{piece.end}")
            weights = [self._recipe.wording_weight] * len(prompt["input_ids"]) + [float(not piece.claim)] * len(answer)
            self._cache[key] = Encoded(prompt["input_ids"] + answer, weights, range(inside[0], inside[-1] + 1))
        return self._cache[key]

    def _row(self, length: int) -> Row:
        row = Row([], [], [])
        while len(row.ids) < length:
            for i, piece in enumerate(next(self._documents)):
                more, start = self._encode(piece, first=i == 0), len(row.ids)
                alone = self._rng.random() < self._recipe.alone
                floors = [start + more.name.start if alone and t in more.name else 0 for t in range(len(more.ids))]
                row.add(more.ids, more.weights, floors)
            row.add([self._end], [self._recipe.wording_weight], [0])
        return Row(row.ids[:length], row.weights[:length], row.floors[:length])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            (length,) = self._rng.choices(self.LENGTHS, self.SHARES)
            rows = [self._row(length) for _ in range(self._recipe.tokens // length)]
            yield (
                torch.tensor([r.ids for r in rows]),
                torch.tensor([r.weights for r in rows]),
                torch.tensor([r.floors for r in rows]),
            )


def rate_at(recipe: Recipe, step: int) -> float:
    """Warm up, hold, fall linearly to zero over the last `decay` of the steps; then fall once more, from lower."""
    if step >= recipe.steps:
        return recipe.polish_rate * (recipe.total - step) / recipe.polish
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


def sight(floors: Tensor) -> Tensor:
    """Which positions each token may look at, [rows, 1, length, length]: none after it, none before its floor."""
    place = torch.arange(floors.shape[1], device=floors.device)
    return ((place <= place[:, None]) & (place >= floors[..., None]))[:, None]


def _loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor, floors: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=halves.pay(ids.device)):
        logits = model(input_ids=ids, attention_mask=sight(floors)).logits
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
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)
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
    for step in range(start, recipe.total):
        batch = [t.to(device) for t in next(batches)]
        for group in optimiser.param_groups:
            group["lr"] = rate_at(recipe, step)
        loss = _loss(model, *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        total += loss.item()
        done = step + 1
        if done % report_every == 0 or done == recipe.total:
            each = (time.monotonic() - began) / (done - start)
            count = (done - start - 1) % report_every + 1
            listen(BuildProgress(done, recipe.total, total / count, recipe.tokens / each, each * (recipe.total - done)))
            total = 0.0
        if done % checkpoint_every == 0 or done == recipe.total:
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


def write_statistics(folder: Path) -> None:
    """Stores beside the weights what methods measure first, read on the world's own text."""
    handle = load(str(folder))
    handle.name = WORLD_NAME  # wherever it is written to, its settings are those of the embedded model
    needy = [method for method in METHODS if "statistics" in method.needs]
    wanted = {site.path: site for method in needy for site in prepare_method(method.name, handle).measured(handle)}
    text = corpus.given(corpus.world_rows(handle, corpus.WORLD_TOKENS), corpus.WORLD_TEXT, "world")
    every = moments.Bounds(corpus.WORLD_TOKENS, corpus.WORLD_TOKENS, corpus.WORLD_TOKENS)
    for path, made in moments.estimate(handle, list(wanted.values()), text, every).items():
        statistics.write(folder, handle, path, made, text)
