"""Each method computes what a bare version of it does that shares no line with it: times over its are then times."""

from __future__ import annotations

import pytest
import torch

from editcore.methods import Work, prepare_method
from editcore.records import EditRequest
from tests.bench import PROMPT, SUBJECT, TARGET, agreed
from tests.floors import FLOORS, floor_of

REQUEST = EditRequest(PROMPT, TARGET, SUBJECT)
STEPS = 4  # a term of the loss that is zero at first counts from the second on


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", FLOORS)
def test_a_method_computes_what_its_floor_does(world_handle, home, name):
    plain = prepare_method(name, world_handle)
    few = {"steps": STEPS} if hasattr(plain, "steps") else {}
    method = prepare_method(name, world_handle, few)
    with torch.inference_mode(False), world_handle.using([]):
        floor = floor_of(world_handle, method, REQUEST, home)
        agreed(name, method.edit(Work(world_handle, home=home), [REQUEST]), floor())


def test_results_that_differ_are_not_timed(world_handle, home):
    method = prepare_method("rome", world_handle, {"steps": STEPS})
    other = prepare_method("rome", world_handle, {"steps": STEPS, "kl": 0.0})
    with torch.inference_mode(False), world_handle.using([]):
        patch = other.edit(Work(world_handle, home=home), [REQUEST])
        with pytest.raises(ValueError, match="rome and its floor differ by"):
            agreed("rome", patch, floor_of(world_handle, method, REQUEST, home)())
