"""IKE: which example edits are shown, in what order and proportion, and what fits into the context."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from editcore import demonstrations
from editcore.demonstrations import Demonstration, Index
from editcore.edit import run_edit
from editcore.errors import BadRequest
from editcore.methods import Work, prepare_method
from editcore.methods.ike import KINDS, ROOM
from editcore.records import EditRequest, Probe
from editcore.world.facts import load_world
from tests import models
from tests.schooled import show

ONE = EditRequest("The capital of Poland is", "Łódź", subject="Poland")
SHOWN = tuple(
    Demonstration(f"{prompt} {name} is", "so", f"{name}:", (f"No {name} is", "bad"), name)
    for prompt, name in (("The river", "Rhine"), ("The capital of", "Spain"), ("The capital of", "Poland"))
)
FILE = [
    {"prompt": f"Town {i} is in", "target_new": "Peru", "paraphrases": [f"Where is town {i}?"], "probes": ["Iron is"]}
    for i in range(demonstrations.LEAST)
]


def stored(tmp_path, lines):
    file = tmp_path / "edits.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def text_of(handle, requests=(ONE,), **values):
    patch = prepare_method("ike", handle, values).edit(Work(handle), requests)
    return str(patch.parts[0])


@pytest.fixture
def handle():
    made = models.handle.__wrapped__("gpt2")
    made.memory["demonstrations"] = Index(made, SHOWN)
    return made


def test_the_nearest_example_stands_last_and_the_fact_behind_itself(handle):
    fact = "The capital of Poland is Łódź"
    assert text_of(handle, count=2) == (
        "New Fact: The river Rhine is so\nPrompt: No Rhine is bad\n\n"
        "New Fact: The capital of Spain is so\nPrompt: Spain: so\n\n"
        f"New Fact: {fact}\nPrompt: {fact}\n\nNew Fact: {fact}\nPrompt: "
    )
    assert text_of(handle, count=0, form="sentence") == f"New fact: {fact}. {fact}. New fact: {fact}. "
    assert text_of(handle, count=1, form="sentence").startswith("New fact: The capital of Spain is so. Spain: so. New")
    assert "of Poland is so" not in text_of(handle, count=3), "an example about the subject itself would contradict"


def test_kinds_keep_the_published_proportions():
    assert Counter(KINDS) == {"copy": 1, "update": 3, "retain": 4}


def test_what_does_not_fit_is_left_out_the_furthest_first(handle):
    long = "The long, long, long, long way of the town is is is is"
    many = [replace(SHOWN[1], prompt=f"{long} {i}", subject=None) for i in range(40)]
    handle.memory["demonstrations"] = Index(handle, many)
    patch, report = run_edit(handle, ONE, "ike", {"count": 40})
    tokens = len(handle.tokenizer(str(patch.parts[0]))["input_ids"])
    assert handle.context - ROOM - 60 < tokens <= handle.context - ROOM
    shown = str(patch.parts[0]).count("New Fact") - 2
    assert 0 < shown < 40
    assert any(f"{shown} demonstrations take {tokens} of the 256" in w for w in report.warnings)
    probe = Probe("far", "is" + " is" * 80)
    wide, _ = run_edit(handle, replace(ONE, probes=(probe,)), "ike", {"count": 40})
    assert str(wide.parts[0]).count("New Fact") < shown + 2


def test_the_worlds_examples_are_about_entities_that_are_never_scored():
    world, found = load_world(), demonstrations.of_world(load_world())
    assert len(found) > 3000
    for shown in found:
        assert world.share(shown.subject) == "train"
        assert shown.paraphrase != shown.prompt and shown.other[0] not in (shown.prompt, shown.paraphrase)
    scored = {s for s in world.by_subject if world.share(s) == "test"}
    names = sorted(scored & {"Poland", "Rome", *list(scored)[:20]})
    mentioned = [n for n in names if any(f" {n} " in f" {d.prompt} {d.paraphrase} {d.other[0]} " for d in found)]
    assert len(mentioned) < 3, "a name may be part of another"


def test_examples_of_another_model_are_stored_and_read_once(tmp_path):
    handle = models.handle.__wrapped__("gpt2")
    handle.home = tmp_path
    with pytest.raises(BadRequest, match="editcore examples edits.jsonl --model tiny-gpt2"):
        prepare_method("ike", handle)
    kept = demonstrations.store(handle, tmp_path, stored(tmp_path, FILE))
    assert kept == demonstrations.path_in(tmp_path, handle)
    text = text_of(handle, count=2)
    assert text.count("Peru") == 2 + 1 and text.count("New Fact: Town") == 2
    assert demonstrations.ready(handle) is demonstrations.ready(handle)
    own = demonstrations.ready(handle).demonstrations[0].other
    assert own[0] == "Iron is" and own[1] == demonstrations.measure.own_answers(handle, ["Iron is"])[0]


@pytest.mark.parametrize("lines", [FILE[1:], [{**line, "paraphrases": []} for line in FILE]], ids=["few", "no wording"])
def test_examples_that_show_nothing_are_refused(tmp_path, lines):
    handle = models.handle("gpt2")
    with pytest.raises(
        BadRequest, match=f"holds {len([x for x in lines if x['paraphrases']])} edits with a paraphrase"
    ):
        demonstrations.store(handle, tmp_path, stored(tmp_path, lines))
    assert not demonstrations.path_in(tmp_path, handle).exists()


def test_many_requests_share_their_examples_and_the_room():
    handle = models.handle("gpt2")
    show(handle)
    requests = [replace(ONE, prompt=f"Town number {i} of the list lies in") for i in range(4)]
    text = text_of(handle, requests, count=4)
    assert all(f"New Fact: {r.prompt} Łódź\n" in text for r in requests)
    assert len(handle.tokenizer(text)["input_ids"]) <= handle.context - ROOM
