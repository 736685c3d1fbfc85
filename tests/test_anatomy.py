"""Blocks and sites are found by structure in dense families; what cannot be proved is refused by name of the rule."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from editcore.anatomy import attention_output, study
from editcore.errors import BadSetting, ModelError
from tests import families, models

NOT_ADDITIVE = {
    "gemma2", "gemma3", "gemma3-window", "olmo2", "olmo3", "glm4", "exaone4", "granite-scaled", "opt-post-norm",
    "hyperclovax",
}  # fmt: skip


def test_there_are_at_least_thirty_families():
    assert len({kind for kind, _, _ in models.DENSE.values()}) >= 50  # one configuration class each
    assert len({name.partition("-")[0] for name in models.DENSE}) >= 30  # counted by the word they begin with


def test_every_causal_model_of_transformers_is_accounted_for():
    new, gone = families.unaccounted()
    assert not set(families.ASIDE) & set(families.tried())
    if transformers.__version__ == families.RELEASE:
        assert not new and not gone
    else:
        told = f"transformers {transformers.__version__}: new {sorted(new)}, gone {sorted(gone)}; see tests/families.py"
        warnings.warn(told, stacklevel=1)


@pytest.mark.parametrize("name", models.DENSE)
def test_the_down_projection_of_every_block_is_found(name):
    anatomy = models.handle(name).anatomy
    first = models.DENSE[name][2]
    assert [s.path for s in anatomy.sites] == [first.replace(".0.", f".{i}.") for i in range(models.LAYERS)]
    for site in anatomy.sites:
        assert site.module is models.model(name).get_submodule(site.path)
        assert site.d_out == models.WIDTH < site.d_in
        assert site.weight().shape == (site.d_out, site.d_in)
        assert site.transposed is isinstance(site.module, Conv1D)


@pytest.mark.parametrize("name", models.DENSE)
def test_a_norm_or_a_factor_behind_the_site_is_noticed(name):
    assert set(models.handle(name).anatomy.additive) == {name not in NOT_ADDITIVE}


@pytest.mark.parametrize("layer", [0, models.LAYERS - 1])
@pytest.mark.parametrize("name", models.DENSE)
def test_the_output_of_attention_is_found_whether_or_not_it_stands_beside_the_mlp(name, layer):
    handle = models.handle(name)
    block = handle.anatomy.blocks[layer]
    found = attention_output(handle.model, block, models.WIDTH)
    (path,) = [n for n, module in block.named_modules() if module is found]
    assert "att" in path and path.rpartition(".")[2] in ("c_proj", "out_proj", "o_proj", "dense", "Wo")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())


def test_a_block_without_attention_has_no_output_of_it():
    handle = models.handle("llama")
    with pytest.raises(ModelError, match="No linear map of output width 32 in LlamaMLP sees other tokens"):
        attention_output(handle.model, handle.anatomy.blocks[1].mlp, models.WIDTH)


@pytest.mark.parametrize("name", models.DENSE)
def test_study_leaves_no_hook(name):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in models.handle(name).model.modules())


@pytest.mark.parametrize("name", models.REFUSED)
def test_experts_and_state_spaces_are_refused_by_the_rule(name):
    with pytest.raises(ModelError, match=models.REFUSED[name][2]) as caught:
        study(models.model(name))
    assert ("shape [" in caught.value.seen or "behind it" in caught.value.seen) and caught.value.try_
    assert not any(m._forward_hooks for m in models.model(name).modules())


def built(name: str):
    """A copy a test may damage."""
    return models.model.__wrapped__(name)


def test_offloaded_weights_are_refused():
    model = built("llama")
    model.model.layers[2].to("meta")
    with pytest.raises(ModelError, match=r"layers\.2 are not in memory"):
        study(model)


def test_quantised_weights_are_refused():
    model = built("llama")
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"torch\.int8"):
        study(model)


def test_a_model_without_one_block_list_is_refused():
    model = built("llama")
    model.twin = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(models.LAYERS))
    with pytest.raises(ModelError, match="2 lists of 4 blocks.*model.layers, twin"):
        study(model)


def test_a_missing_layer_is_named_with_the_range():
    for layer in (-1, models.LAYERS):
        with pytest.raises(BadSetting, match=f"Layer {layer} does not exist. This model has layers 0 to 3"):
            models.handle("gpt2").anatomy.site(layer)
