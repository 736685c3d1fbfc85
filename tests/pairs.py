"""Tiny random encoder-decoders of several families, with tokenizers like theirs. Nothing is downloaded."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from editcore.handle import Handle
from editcore.opening import wrap
from tests.cases import EIGHT
from tests.models import VOCABULARY, WIDTH, phrases

ENCODER, DECODER = 3, 4  # blocks
PAD, END, UNKNOWN, BEGIN = "<pad>", "</s>", "<unk>", "<s>"
SPECIAL = [PAD, END, UNKNOWN, BEGIN, "<extra_id_0>", "<extra_id_1>"]

T5 = dict(
    d_model=WIDTH, d_kv=8, d_ff=48, num_layers=ENCODER, num_decoder_layers=DECODER, num_heads=4, vocab_size=VOCABULARY,
    pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0,
)  # fmt: skip
BART = dict(
    d_model=WIDTH, encoder_layers=ENCODER, decoder_layers=DECODER, encoder_ffn_dim=48, decoder_ffn_dim=64,
    encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=VOCABULARY, max_position_embeddings=512,
    pad_token_id=0, eos_token_id=1, bos_token_id=3, decoder_start_token_id=1, forced_eos_token_id=1,
)  # fmt: skip

# name -> (configuration class, its arguments, the edited matrices of block 0 of each stack)
TWO_STACKS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "t5": ("T5Config", T5, "encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo"),
    **{
        name: (
            f"{kind}Config", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": tied},
            "encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo",
        )
        for name, kind, tied in (
            ("t5-gated", "T5", True), ("t5-untied", "T5", False), ("mt5", "MT5", False), ("umt5", "UMT5", False),
            ("longt5", "LongT5", False),
        )
    },
    **{
        name: (f"{kind}Config", BART, "model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2")
        for name, kind in (("bart", "Bart"), ("mbart", "MBart"), ("pegasus", "Pegasus"), ("m2m", "M2M100"))
    },
}  # fmt: skip
BEGINS = ("bart",)  # their tokenizers put a mark in front of every text, too


@lru_cache(maxsize=16)
def model(name: str, seed: int = 0) -> Any:
    """A random model of the family, in eval mode; the same object each time: nobody may change it."""
    kind, arguments, *_ = TWO_STACKS[name]
    config = getattr(transformers, kind)(**arguments)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    built = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    if name == "t5-untied":
        built.lm_head.weight = torch.nn.Parameter(built.lm_head.weight.clone())
    with torch.no_grad():  # larger than usual, so that attention and norms matter in comparisons
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.random.set_rng_state(state)
    return built.requires_grad_(False)


def pieces() -> list[tuple[str, float]]:
    """Words of the world's phrasings as often as they stand there, and every letter, rarely."""
    words = Counter(word for line in phrases() for word in line.replace("?", " ?").split())
    letters = {*map(chr, range(33, 127)), *(c for r in EIGHT for c in r.prompt + r.target if c != " ")}
    rare = [("▁", -6.0), *((letter, -10.0) for letter in sorted(letters))]
    usual = sorted(words.items(), key=lambda item: (-item[1], item[0]))[: VOCABULARY - len(SPECIAL) - len(rare)]
    common = [(f"▁{word}", math.log(count / words.total())) for word, count in usual]
    return [*((mark, 0.0) for mark in SPECIAL), *rare, *common]


@lru_cache(maxsize=2)
def tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """A unigram tokenizer that puts an end mark behind every text; with `begins`, a mark in front of it, too."""
    inner = Tokenizer(models.Unigram(pieces(), unk_id=SPECIAL.index(UNKNOWN)))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}" if begins else f"$A {END}", special_tokens=[(BEGIN, 3), (END, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, bos_token=BEGIN,
        additional_special_tokens=SPECIAL[4:],
    )  # fmt: skip


@lru_cache(maxsize=16)
def handle(name: str) -> Handle:
    """A handle over the family's tiny model."""
    return wrap(model(name), tokenizer(name in BEGINS), f"tiny-{name}")
