"""From a model's files to tokenizer and model in memory: which class reads them, and what is refused on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from editcore.checkpoint import EMBEDDED, Checkpoint, read_weights
from editcore.devices import DeviceMap, free_memory, short
from editcore.errors import ModelError, first_line
from editcore.spans import require_offsets

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
NOTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both are judged here
STRETCH = 1.5  # times as many rows as tokens: tables are made longer than the vocabulary, but not by that much


def auto_class(found: Checkpoint) -> Any:
    """The class of transformers that makes this model: the one place that decides which kinds can be opened.

    Raises:
        ModelError: it is of a kind that cannot be edited here, or that nothing installed knows.
    """
    kind, name = found.config.get("model_type"), found.name
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and found.config.get("is_encoder_decoder", True):
        return AutoModelForSeq2SeqLM
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not found.config.get("is_encoder_decoder"):
        return AutoModelForCausalLM
    if kind not in CONFIG_MAPPING_NAMES:
        if found.config.get("auto_map"):
            raise ModelError(
                f"{name!r} brings code of its own ({kind!r}).", "Code that comes with a model never runs here.",
                "Use a model whose architecture is part of transformers.",
            )  # fmt: skip
        raise ModelError(
            f"{name!r} is of the architecture {str(kind)!r}, which transformers {transformers_version} does not know.",
            "A causal language model was wanted.", "If it is a new one, upgrade transformers.",
        )  # fmt: skip
    raise ModelError(
        f"{name!r} ({kind}) does not continue text.",
        "A language model was wanted.",
        "Use a GPT, Llama, Qwen, Gemma, T5 ...",
    )


def check_room(
    found: Checkpoint, kind: torch.dtype, device: torch.device, spread: bool, returned: int = 0
) -> None:  # fmt: skip
    """Raises ModelError when the weights alone are larger than the memory that is free, and `returned` bytes more."""
    needed = read_weights(found.name, found.files).parameters * kind.itemsize
    free = free_memory(device, spread) + returned
    if needed > free:
        raise ModelError(
            f"{found.name!r} takes {needed / 1e9:.1f} GB in {short(kind)}.",
            f"{free / 1e9:.1f} GB are free on {device}.",
            "Free memory, use --dtype bfloat16, or spread it over several GPUs with --device-map auto.",
        )


def read(maker: Any, found: Checkpoint, kind: torch.dtype, spread: DeviceMap | None) -> tuple[Any, Any]:
    """Tokenizer and model from files that were checked.

    Raises:
        ModelError: they cannot be read after all, or the weights are not those of the architecture.
    """
    more: dict[str, Any] = {} if spread is None else {"device_map": spread}
    tokenizer = _tokenizer(found)
    with _understood(repr(found.name)):
        model, notes = maker.from_pretrained(
            str(found.files), dtype=kind, use_safetensors=True, **LOCAL, **NOTED, **more
        )
    _check_whole(found, model, notes)
    return tokenizer, model


def rehearse(maker: Any, found: Checkpoint) -> tuple[Any, Any]:
    """What `read` gives, but that a model of names and shapes is made, on torch's meta device: no weight is read.

    Raises:
        ModelError: as `read` does.
    """
    shapes = read_weights(found.name, found.files).shapes
    tokenizer = _tokenizer(found)
    with _understood(repr(found.name)):
        config = AutoConfig.from_pretrained(str(found.files), **LOCAL)
        with torch.device("meta"):
            kind = type(maker.from_config(config))
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        model, notes = kind.from_pretrained(None, config=config, state_dict=state, device_map="meta", **NOTED)
    _check_whole(found, model, notes)
    return tokenizer, model


def _tokenizer(found: Checkpoint) -> Any:
    with _understood(f"The tokenizer of {found.name!r}"):
        return AutoTokenizer.from_pretrained(str(found.files), **LOCAL)


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """Raises ModelError for whatever a library raises over a model's files while the block runs.

    What the library warns of meanwhile is not shown: `_check_whole` judges it, in one message.
    """
    transformers_logging.disable_progress_bar()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(max(before, transformers_logging.ERROR))
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"A weight file of {what} is damaged ({error}).", "", "Download or copy the model again."
        ) from error
    except MemoryError as error:
        raise ModelError(f"There is not enough memory for {what}.", "", "Use --dtype bfloat16.") from error
    except Exception as error:  # libraries raise anything over files that are odd
        raise ModelError(
            f"{what} could not be loaded ({type(error).__name__}: {first_line(error)}).",
            "A reachable or cached hub id, or a folder with config.json, tokenizer and safetensors, was wanted.",
            EMBEDDED,
        ) from error
    finally:
        transformers_logging.set_verbosity(before)


def _check_whole(found: Checkpoint, model: Any, notes: Mapping[str, Any]) -> None:
    """Raises ModelError unless the files hold every weight of the model in its shape."""
    kind = f"The weights of {found.name!r} are not those of its architecture ({type(model).__name__})"
    remedy = "Put the weights beside the config.json they belong to."
    if lacking := sorted(notes["missing_keys"]):
        more = f" and {len(lacking) - 3} more are" if len(lacking) > 3 else (" are" if len(lacking) > 1 else " is")
        raise ModelError(
            f"{kind}: {', '.join(lacking[:3])}{more} missing.", "What is missing would be made up at random.", remedy
        )
    if wrong := sorted(notes["mismatched_keys"]):
        name, there, wanted = wrong[0]
        raise ModelError(f"{kind}: {name} is {_sizes(there)} numbers.", f"{_sizes(wanted)} were wanted.", remedy)


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Raises ModelError unless the tokenizer says where its tokens stand, gives a text back, and is of this model."""
    remedy = "Put the model's own tokenizer files beside its weights."
    require_offsets(tokenizer)
    sample = "The capital of France"
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    rows, known = int(model.get_input_embeddings().weight.shape[0]), int(tokenizer.vocab_size)
    if not ids or tokenizer.decode(ids).strip().casefold() != sample.casefold() or max(ids) >= rows:
        raise ModelError(
            f"The tokenizer of {name!r} does not fit its model: {sample!r} became {tokenizer.decode(ids)!r}.",
            "A tokenizer that gives the text back, with ids inside the embedding table, was wanted.",
            remedy,
        )
    if known > rows or rows > STRETCH * len(tokenizer):
        raise ModelError(
            f"The tokenizer of {name!r} does not fit its model: it knows {len(tokenizer):,} tokens, and the embedding"
            f" table has {rows:,} rows.",
            "A table about as long as the vocabulary was wanted.",
            remedy,
        )
