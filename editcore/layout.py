"""Rows of tokens as one pass of a model: read by one stack, or the prompts by an encoder and the answers by a decoder.

A row is a prompt followed by an answer, whatever the model; the logits wanted are those in front of the answer's
tokens. A decoder reads its opening, the automatic first tokens of everything it says, in the place of the prompt. What
it says ends with a closing mark, which is part of the answer: nothing else says where the answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editcore.errors import ModelError

# Settings of `generate` that checkpoints of encoder-decoders bring, as if they brought none: what is written must come
# from the distribution that is read.
PLAIN: dict[str, Any] = {
    "num_beams": 1, "min_length": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "forced_bos_token_id": None, "forced_eos_token_id": None, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Rows as right-padded batches; right padding is exact at every real token."""

    ids: Tensor  # [rows, longest]: whole rows, or the prompts alone where an encoder reads them
    mask: Tensor  # the same: 1 where a token is real
    shift: Tensor  # [rows]: what a position in the row is moved by to be the place in what says the answers
    said: Tensor | None = None  # [rows, longest]: opening and answers, where a decoder says them
    said_mask: Tensor | None = None

    def inputs(self, encoded: Any = None) -> dict[str, Any]:
        """The arguments of the pass.

        Args:
            encoded: what the encoder gave for these prompts, so that it need not run.
        """
        if self.said is None:
            return {"input_ids": self.ids, "attention_mask": self.mask}
        read = {"input_ids": self.ids} if encoded is None else {"encoder_outputs": encoded}
        decoder = {"decoder_input_ids": self.said, "decoder_attention_mask": self.said_mask}
        return {**read, "attention_mask": self.mask, **decoder}

    def real(self, encoder: bool) -> Tensor:
        """Which tokens are real, among those the encoder sees or those that what says the answers sees."""
        return self.mask if encoder or self.said_mask is None else self.said_mask

    def next(self, line: Tensor, place: Tensor) -> Tensor:
        """The tokens that follow some places."""
        return (self.ids if self.said is None else self.said)[line, place + 1]


def opening(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """What the decoder of `model` reads in front of every answer.

    Raises:
        ModelError: the model does not say with which token its decoder starts.
    """
    for settings in (getattr(model, "generation_config", None), model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return (int(start), *automatic(tokenizer, answer=True)[0])
    raise ModelError(
        f"{type(model).__name__} does not say with which token its decoder starts.",
        "A decoder_start_token_id in its configuration was wanted.",
        "Add it to config.json.",
    )


def closing(tokenizer: Any) -> tuple[int, ...]:
    """What ends everything a decoder says; empty where the tokenizer has no end mark."""
    _, last = automatic(tokenizer, answer=True)
    end = tokenizer.eos_token_id
    return last or (() if end is None else (int(end),))


def automatic(tokenizer: Any, answer: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens put in front of and behind every text, or every answer."""
    bare: Sequence[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    full: Sequence[int] = (tokenizer(text_target="a") if answer else tokenizer("a"))["input_ids"]
    starts = range(len(full) - len(bare) + 1)
    at = next((i for i in starts if list(full[i : i + len(bare)]) == list(bare)), 0)
    return tuple(full[:at]), tuple(full[at + len(bare) :])


def logits_at(model: Any, layout: Layout, line: Tensor, place: Tensor, encoded: Any = None) -> Tensor:
    """Logits [positions, vocabulary] at some places of a pass; the head runs nowhere else.

    Args:
        line, place: [positions]: which row, and where in what says the answers.
        encoded: see `Layout.inputs`.
    """

    def pick(_m: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        where = args[0].device
        return (args[0][line.to(where), place.to(where)][None], *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        out: Tensor = model(**layout.inputs(encoded), use_cache=False).logits[0]
        return out
    finally:
        hook.remove()


@torch.no_grad()
def sampled(
    model: Any, ids: Tensor, mask: Tensor, opening: tuple[int, ...], pad: int, tokens: int, least: int = 0, **how: Any
) -> Tensor:
    """What a decoder says to an encoder's prompts, without its opening: ids [rows, at most `tokens`].

    Args:
        ids, mask: the prompts, right-padded.
        pad: fills rows that ended earlier.
        least: the closing mark is not said before so many tokens.
        how: further arguments of `generate`.
    """
    begin = torch.tensor([opening], device=ids.device).expand(len(ids), -1)
    out: Tensor = model.generate(
        input_ids=ids, attention_mask=mask, decoder_input_ids=begin, decoder_start_token_id=opening[0],
        max_new_tokens=tokens, min_new_tokens=least or None, pad_token_id=pad, **PLAIN, **how,
    )  # fmt: skip
    return out[:, len(opening) :]
