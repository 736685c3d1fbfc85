"""Where to edit an unknown model: what a trace proposes, what it may not propose, and who has the last word."""

from __future__ import annotations

import json

import pytest
import torch

from editcore import causal, locate, tuning
from editcore import opening as handles
from editcore.assets import assets_root
from editcore.edit import preflight, run_edit
from editcore.engine.contract import LOCATE
from editcore.engine.desk import Desk
from editcore.engine.queue import WorkQueue, check_work
from editcore.engine.sessions import StoredSessions
from editcore.engine.watchdog import lost
from editcore.errors import BadRequest, BadSetting, Cancelled, SubjectNotFound
from editcore.home import new_session
from editcore.method import describe
from editcore.methods import AS_SET, METHODS, RULE, Work, find_method, prepare_method, prepared
from editcore.records import EditRequest
from editcore.store import Store
from editcore.values import checked
from tests import models

FILES = sorted(f for f in (assets_root() / "settings").glob("*.json") if f.name != tuning.OTHER)
LAYERS = 12


def effects(facts: int, peak: dict[int, float], spread: float = 0.02):
    """Made-up effects [facts, layers]: noise, and at some layers more."""
    found = spread * torch.randn(facts, LAYERS, generator=torch.Generator().manual_seed(0))
    for layer, height in peak.items():
        found[:, layer] += height
    return found


def judged(found, name: str = "gpt2"):
    facts = len(found)
    return locate.judge(models.handle(name), (64, 40), [0.9] * facts, [0.1] * facts, found, 2)


@pytest.fixture
def fresh(tmp_path):
    """A model nobody has looked at, with a data folder of its own."""
    made = models.handle.__wrapped__("gpt2")
    made.home = tmp_path
    return made


def stored(handle, peak: int | None):
    facts = effects(20, {} if peak is None else {peak: 0.5})[:, : models.LAYERS]
    finding = locate.judge(handle, (64, 40), [0.9] * 20, [0.1] * 20, facts, 1)
    assert finding.peak == peak
    locate.keep(finding, handle.home)
    return finding


# what is proposed ------------------------------------------------------------------------------------------------


def test_the_middle_of_the_peak_is_proposed_and_a_span_that_ends_there():
    found = judged(effects(20, {3: 0.3, 4: 0.4, 5: 0.3}))
    assert found.peak == 4 and found.facts == 20 and found.methods["rome"] == found.methods["emmet"] == {"layer": 4}
    assert found.methods["memit"] == found.methods["alphaedit"] == {"first": 0, "last": 4}
    assert "layers 3 to 5" in found.why and "20 facts" in found.source
    assert judged(effects(20, {9: 0.5})).methods["pmet"] == {"first": 5, "last": 9}


def test_methods_that_do_not_write_at_the_subject_are_left_alone():
    found = judged(effects(20, {4: 0.4}))
    reading_subjects = {m.name for m in METHODS if "subject" in m.needs}
    assert set(found.methods) == reading_subjects and all(map(locate.helps, reading_subjects))


@pytest.mark.parametrize("heights", [{}, dict.fromkeys(range(LAYERS), 0.3), {3: -0.4}, {3: 0.05}])
def test_a_flat_trace_proposes_nothing_and_says_so(heights):
    found = judged(effects(20, heights))
    assert found.peak is None and not found.methods and "layer" in found.why and "no clear layer" in found.source


def test_one_loud_fact_is_no_peak():
    loud = effects(20, {})
    loud[0, 7] = 1.0
    assert judged(loud).peak is None


def test_few_facts_propose_nothing():
    found = judged(effects(locate.LEAST - 1, {4: 0.5}))
    assert found.peak is None and "5 facts" in found.why and f"{locate.LEAST} are needed" in found.why


def test_the_embedded_model_is_traced_to_the_block_its_sweep_chose(tmp_path):
    world = handles.load("world-2019")
    heard = []
    found = locate.locate(world, facts=8, home=tmp_path, report=heard.append)
    assert found.peak == tuning.tuned_settings("world-2019", "rome")["layer"] == 0
    assert found.facts == 8 and found.sure > 40 and found.blurred < found.clean / 2
    assert (heard[-1].stage, heard[-1].step, heard[-1].steps) == ("trace", 8, 8)
    assert found == locate.locate(world, facts=8), "the same again is the same"
    data = json.loads(tuning.path_in(tmp_path, world.fingerprint).read_text())
    assert data["methods"] == found.methods and data["trace"]["effects"] == list(found.effects)


def test_a_model_that_is_sure_of_nothing_keeps_the_rule_of_thumb(fresh):
    found = locate.locate(fresh, home=fresh.home)
    assert (found.sure, found.facts, found.methods) == (0, 0, {}) and "0 facts" in found.why
    made, source = prepared("rome", fresh)
    assert made.layers(fresh) == (models.LAYERS // 3,) and source == f"{RULE}; {found.source}"


def test_a_prompt_that_ends_in_its_subject_or_does_not_hang_on_it_is_not_traced(monkeypatch):
    handle = models.handle("llama")
    monkeypatch.setattr(locate, "SURE", 0.0)
    ends, goes_on = causal.believe(
        handle, [("We speak of the United Kingdom", "United Kingdom"), ("Iron is not", "Iron")]
    )
    assert [locate._traceable(b) for b in (ends, goes_on)] == [False, True]
    monkeypatch.setattr(causal, "blurred_chances", lambda h, group, *a: torch.tensor([b.clean * 0.6 for b in group]))
    assert not locate._hanging(handle, [goes_on], 4, causal.Dials(2), lambda: False)
    monkeypatch.setattr(causal, "blurred_chances", lambda h, group, *a: torch.tensor([b.clean * 0.4 for b in group]))
    assert locate._hanging(handle, [goes_on], 4, causal.Dials(2), lambda: False) == [goes_on]


def test_a_search_that_is_stopped_keeps_nothing(fresh, monkeypatch):
    monkeypatch.setattr(locate, "SURE", 0.0)
    with pytest.raises(Cancelled):
        locate.locate(fresh, home=fresh.home, stop=lambda: True)
    assert not tuning.path_in(fresh.home, fresh.fingerprint).exists()


# whose facts -----------------------------------------------------------------------------------------------------


def test_common_prompts_hold_their_subjects_and_go_on_behind_them():
    prompts = locate.common_prompts()
    assert len(prompts) == len(set(prompts)) >= 60
    for prompt, subject in prompts:
        assert prompt.count(subject) == 1 and prompt.index(subject) + len(subject) < len(prompt) == len(prompt.strip())


def test_facts_of_ones_own_need_a_subject_and_no_answer_is_looked_at():
    given = [
        EditRequest("Who runs France?", "x"),
        EditRequest("What is iron made of?", "x", "iron"),
        EditRequest("why?", "x"),
    ]
    assert locate.prompts_of(given) == [("Who runs France?", "France"), ("What is iron made of?", "iron")]
    with pytest.raises(BadRequest, match="No prompt of the list has a subject"):
        locate.prompts_of(given[2:])
    with pytest.raises(SubjectNotFound):
        locate.locate(models.handle("gpt2"), [("Iron is", "gold")])


# who has the last word -------------------------------------------------------------------------------------------


def test_what_was_found_is_used_unless_somebody_says_otherwise(fresh):
    assert prepared("rome", fresh) == (find_method("rome")(), RULE)
    found = stored(fresh, 3)
    made, source = prepared("rome", fresh, {"layer": None, "steps": 7})
    assert (made.layer, made.steps, source) == (3, 7, f"found by {found.source}")
    assert prepare_method("memit", fresh).layers(fresh) == (0, 1, 2, 3)
    assert prepared("rome", fresh, {"layer": 2}) == (find_method("rome")(layer=2), AS_SET)
    assert prepared("rome", fresh, {"preset": "published"}) == (find_method("rome")(), RULE)
    assert prepared("ice", fresh)[1] == ""
    other = models.handle.__wrapped__("llama")
    other.home = fresh.home
    assert prepared("rome", other)[1] == RULE


@pytest.mark.parametrize("method", ["ft", "grace", "wise"])
def test_a_trace_is_no_source_of_what_it_says_nothing_about(method, fresh):
    stored(fresh, 3)
    assert prepared(method, fresh)[1] == RULE


def test_what_is_known_about_a_model_wins_over_what_was_found(fresh):
    stored(fresh, 3)
    fresh.name = "somewhere/world-2019"
    made, source = prepared("rome", fresh)
    assert made.layer == 0 and "known to suit this model: tuned" in source
    assert prepared("rome", fresh, {"layer": 0})[1] == source and prepared("rome", fresh, {"layer": 1})[1] == AS_SET


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": "me"}', '{"source": "me", "methods": {"rome": 3}}'])
def test_a_damaged_finding_is_as_good_as_none(fresh, text):
    path = tuning.path_in(fresh.home, fresh.fingerprint)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert prepared("rome", fresh)[1] == RULE


def test_the_desk_looks_on_request_and_the_preflight_then_says_what_came_out(fresh, monkeypatch):
    asked = EditRequest("Who runs the United Kingdom?", "Peru", "United Kingdom")
    before = preflight(fresh, asked, "rome", {}, fresh.home)
    assert before.layer_source == RULE and before.finding and before.finding > 0
    assert preflight(fresh, asked, "ft", {}, fresh.home).finding is None
    Desk(fresh, fresh.home).prepare(LOCATE, {}, lambda p: None, lambda: False)
    after = preflight(fresh, asked, "rome", {}, fresh.home)
    assert after.finding is None and "showed no clear layer" in after.layer_source
    stored(fresh, 2)
    assert preflight(fresh, asked, "rome", {}, fresh.home).layer_source.startswith(
        "found by a causal trace of 20 facts"
    )


def test_only_the_look_itself_comes_without_examples():
    check_work("preparation", (), [(LOCATE, {})])


def test_what_is_said_of_a_finder_that_was_cut_off_or_stopped_speaks_of_no_training(tmp_path):
    store, session, other = Store(tmp_path), new_session(), new_session()
    store.begin_job(session, "j1", "preparation", [LOCATE])
    store.begin_job(other, "j2", "preparation", ["mend"])
    sessions = StoredSessions(store, lambda _: None)
    told = sessions.state(session).interrupted
    assert "Finding out where to edit was interrupted" in told and "training" not in told
    assert "A training was interrupted" in sessions.state(other).interrupted
    queue, asked = WorkQueue(), ((LOCATE, {}), ("mend", {"steps": 1, "edits": "x", "locality": "x"}))
    told = []
    for plan in asked:
        job = queue.submit("preparation", new_session(), [], [plan], "key")
        queue.cancel(job)
        told.append(str(queue.poll(job, 0, 0).error))
    assert "Finding out where to edit was stopped" in told[0] and "training" not in told[0]
    assert "to go on with a training, start it again" in told[1]
    assert "where to edit is found out anew" in str(lost("preparation", hung=True))
    with pytest.raises(BadRequest):
        check_work("preparation", (), [("mend", {})])


# settings of known models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_settings_of_known_models_fit_their_methods_and_the_models_depth(file):
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["source"] and data["models"]
    for name, values in data["methods"].items():
        method = find_method(name)
        assert checked(describe(method), values) == values
        assert {type(v) for v in values.values()} <= {
            int,
            float,
            str,
            bool,
        }
        blocks = {n: values[n] for n in tuning.WHERE if n in values}
        assert all(0 <= block < data["blocks"] for block in blocks.values())
        assert blocks.get("first", 0) <= blocks.get("last", data["blocks"])


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("EleutherAI/gpt-j-6b", 5), ("EleutherAI/gpt-j-6B", 5), ("/models/GPT-J-6B/", 5), ("gpt2-xl", 17),
        ("openai-community/gpt2-xl", 17), ("C:\\models\\gpt2-large", 12), ("meta-llama/Meta-Llama-3-8B-Instruct", 5),
        ("meta-llama/Llama-3.1-8B", 5), ("meta-llama/Llama-2-7b-chat-hf", 5), ("huggyllama/llama-7b", 5),
        ("mistralai/Mistral-7B-Instruct-v0.2", 5), ("Qwen/Qwen2.5-7B-Instruct", 5), ("EleutherAI/gpt-neox-20b", 15),
        ("/hub/models--EleutherAI--gpt-j-6b/snapshots/47e169305d2e8376be1d31e765533382721b2cc1", 5),
        ("gpt2", None), ("my-gpt2-xl", None), ("gpt2-xl-finetuned", None), ("Qwen/Qwen2.5-7B-Instruct-AWQ", None),
        ("gpt2-xl/checkpoint-5", None), ("", None),
    ],
)  # fmt: skip
def test_a_model_is_known_by_its_own_name_wherever_it_lies(model, layer):
    assert tuning.tuned_settings(model, "rome").get("layer") == layer


def test_what_any_unknown_model_is_met_with_names_no_layer_and_stays_out_of_a_known_one(fresh):
    other = tuning.known_settings("nobody/knows-it")
    assert not other.source and set(other.methods) == {"emmet", "memit", "pmet", "alphaedit"}
    assert all(
        checked(describe(find_method(n)), v) == v and not set(v) & set(tuning.WHERE) for n, v in other.methods.items()
    )
    made = prepare_method("alphaedit", fresh)
    assert (made.relative, made.cut, made.limit) == (True, 0.3, 4.0) and prepare_method("memit", fresh).weight is None
    assert prepare_method("memit", fresh, {"preset": "published"}).limit == 0.75
    assert tuning.tuned_settings("gpt-j-6b", "memit") == {"first": 3, "last": 8, "weight": 15000.0}


def test_an_empty_weight_is_the_number_of_entries_of_a_key(fresh):
    request = EditRequest("The mother tongue of Danielle Darrieux is", "English", "Danielle Darrieux")
    dials = {"first": 1, "last": 1, "steps": 2, "contexts": 0}

    def made(**more):
        with torch.inference_mode(False), fresh.using([]):
            (part,) = (
                prepare_method("memit", fresh, {**dials, **more}).edit(Work(fresh, home=fresh.home), [request]).parts
            )
        return part.delta()

    width = fresh.anatomy.site(1).d_in
    assert torch.equal(made(), made(weight=float(width))) and not torch.equal(made(), made(weight=2.0 * width))


def test_no_name_is_claimed_by_two_files():
    names = ["gpt2-xl", "gpt2-large", "gpt2-medium", "gpt-j-6b", "gpt-neox-20b", "llama-3-8b", "llama-7b", "phi-4"]
    import re

    for name in [*names, "llama-3.2-3b", "mistral-7b-v0.1", "qwen2-7b", "world-2019"]:
        claims = [f for f in FILES for p in json.loads(f.read_text())["models"] if re.fullmatch(p, name, re.IGNORECASE)]
        assert len(claims) == 1


def test_a_known_setting_that_is_out_of_bounds_would_be_noticed():
    with pytest.raises(BadSetting):
        checked(describe(find_method("memit")), {"first": -1})


def test_an_edit_that_did_not_take_where_a_rule_of_thumb_put_it_is_advised_to_look(fresh):
    request = EditRequest("The mother tongue of Danielle Darrieux is", "English", "Danielle Darrieux")

    def advised(method="rome", **more):
        _, report = run_edit(fresh, request, method, {"steps": 1, **more}, home=fresh.home, generate=False)
        assert not report.took
        return report.advice.startswith("Where to edit was a rule of thumb: let “Find out”")

    assert advised(contexts=0) and not advised(contexts=0, layer=1)
    assert not advised("ft", rate=1e-6), "a trace says nothing about it"
    stored(fresh, 2)
    assert not advised(contexts=0)
