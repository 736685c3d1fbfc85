"""What stands against a model is told from names and shapes alone, as it would be once its weights were read."""

from __future__ import annotations

import pytest
import torch
import transformers

from editcore import checkpoint, weights
from editcore.errors import ModelError
from editcore.opening import look
from tests import models, pairs


@pytest.mark.parametrize("name", [*models.DENSE, *models.REFUSED])
def test_a_model_made_of_shapes_alone_is_judged_as_one_that_is_read(name, tmp_path):
    made = models.model(name)
    made.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    found = checkpoint.find(str(tmp_path))
    _, model = weights.rehearse(weights.auto_class(found), found)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    assert all(p.is_meta for p in model.parameters())
    if models.REFUSED.get(name, ("", {}, ""))[2] == "three or more dimensions":
        with pytest.raises(ModelError, match="three or more dimensions"):
            look(str(tmp_path), device="cpu")
    else:
        look(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", pairs.TWO_STACKS)
def test_so_is_an_encoder_decoder(name, tmp_path):
    pairs.model(name).save_pretrained(tmp_path)
    pairs.tokenizer(name in pairs.BEGINS).save_pretrained(tmp_path)
    look(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma3", "opt", "bloom", "falcon", "phi3"])
def test_a_head_that_is_the_embedding_table_is_not_missed(name, tmp_path):
    kind, arguments, _ = models.DENSE[name]
    tied = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    config = getattr(transformers, kind)(**{**arguments, **tied})
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    assert not any("lm_head" in n for n in checkpoint.read_weights(name, tmp_path).shapes)
    look(str(tmp_path), device="cpu")
