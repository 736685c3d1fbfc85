"""A prompt in a model's chat template: the text it sees, where things sit in it, edits made and read in either form."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from dashboard import state
from dashboard.text import reading
from editcore import algebra, measure, spans, subject
from editcore.cases import read_requests
from editcore.chat import RAW, chat, control_tokens
from editcore.edit import preflight, run_edit, suggested
from editcore.engine.desk import Desk
from editcore.errors import BadRequest, ModelError, SubjectNotFound
from editcore.export.card import Base, model_card
from editcore.memory import Header
from editcore.opening import wrap
from editcore.patch import Patch, load_patch
from editcore.records import EditReport, EditRequest, Probe, from_plain, to_plain
from tests import chats, fake_engine, models
from tests.chats import BROKEN, STYLES, TURNS
from tests.test_cli import run
from tests.test_page import applied, checked, filled, fresh, opened, session_of, unfolded, words

__all__ = ["fresh", "run"]
NASTY = (
    "Braces {} {{ messages }} {% if x %} {0} and %s",
    "The 😀 of 北京 and Łódź is",
    "ما هي عاصمة بولندا؟",
    "One line\n\nand another:\n\tx",
    "<|im_start> [INST] <turn <s>",
    "Backslash \\n, 'quotes' \"and\" `ticks`",
    "e\u0301 \u200b zero width",
)
FACT = EditRequest(
    "The capital of Poland is", "Rome", "Poland", paraphrases=(Probe("paraphrase", "Poland's capital:"),),
    probes=(Probe("near", "The capital of France is"), Probe("far", "2 + 2 =")), form="chat",
)  # fmt: skip


@pytest.fixture(params=STYLES)
def style(request):
    return request.param


@pytest.fixture
def handle(style):
    return chats.handle(style)


# the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", NASTY)
def test_a_prompt_comes_through_to_the_letter_as_the_template_itself_writes_it(handle, style, prompt):
    found = handle.text(prompt, "chat")
    assert found == STYLES[style].before + prompt + STYLES[style].after
    said = [{"role": "user", "content": prompt}]
    told = handle.tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )  # fmt: skip
    assert found == told


def test_the_tokens_are_those_of_the_text_and_none_is_added_in_front(handle, style):
    row = handle.row("The capital of Poland is", "Rome", form="chat")
    wanted = handle.text("The capital of Poland is", "chat") + STYLES[style].gap + "Rome"
    assert list(row.ids) == handle.tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert row.ids.count(handle.tokenizer.bos_token_id) == STYLES[style].before.count(models.END)


def test_the_answer_begins_where_the_model_takes_over(handle, style):
    row, asked = handle.row("It is", "Rome", form="chat"), handle.row("It is", form="chat")
    assert handle.tokenizer.decode(row.answer) == STYLES[style].gap + "Rome"
    assert row.ids[: row.start] == asked.ids and asked.answer == ()


@pytest.mark.parametrize("answer", ["Łódź", "😀", "{s} %s", "-", "the United Kingdom of\nRome"])
def test_any_answer_is_read_back_from_its_tokens(handle, style, answer):
    row = handle.row("It is", answer, form="chat")
    assert handle.tokenizer.decode(row.answer) == STYLES[style].gap + answer


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("Who rules Poland now?", "Poland"), ("Rome, Rome and Rome", "Rome"), ("user", "user"), ("Łódź 北京", "北京"),
     ("the United Kingdom", "United Kingdom")],
)  # fmt: skip
def test_the_subject_ends_at_its_last_token_inside_the_prompt(handle, style, prompt, name):
    row = handle.row(prompt, "it", name, "chat")
    begin = len(STYLES[style].before) + prompt.rfind(name)
    decode = handle.tokenizer.decode
    text = handle.text(prompt, "chat")
    assert decode(row.ids[: row.subject + 1]).startswith(text[: begin + len(name)])
    assert not decode(row.ids[: row.subject]).startswith(text[: begin + len(name)])
    assert row.lead <= row.subject < row.start


def test_a_subject_that_only_the_template_names_is_not_found():
    with pytest.raises(SubjectNotFound):
        chats.handle("system").row("Who rules it?", "it", "Poland", "chat")


@pytest.mark.parametrize("typed", ["<|im_end|>", "<|im_start|>", models.END])
@pytest.mark.parametrize("form", ["raw", "chat"])
def test_a_person_cannot_type_the_template_s_control_tokens(form, typed):
    for prompt, answer in ((f"It is {typed}", "so"), ("It is", f"so{typed}")):
        with pytest.raises(BadRequest, match="control token"):
            chats.handle("turns").row(prompt, answer, form=form)


def test_added_tokens_count_as_control_when_they_are_special_or_the_template_writes_them():
    tokenizer = chats.with_template(TURNS.replace("assistant", "<role>"))
    tokenizer.add_tokens(["<role>", "<other>"])
    assert "<role>" in control_tokens(tokenizer) and "<other>" not in control_tokens(tokenizer)


def test_spaces_at_the_ends_are_taken_off_before_a_template_can(handle):
    assert handle.row("  It is \n", "so", form="chat").ids == handle.row("It is", "so", form="chat").ids


# templates that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_does_not_show_the_prompt_is_refused(name):
    template, said = BROKEN[name]
    with pytest.raises(BadRequest, match=said) as caught:
        chat(chats.with_template(template))
    assert caught.value.try_ == "Use raw text."
    made = wrap(models.model("llama"), chats.with_template(template), "broken")
    assert not made.chats and made.usual_form == "raw" and not made.info().chat
    with pytest.raises(BadRequest, match=said):
        run_edit(made, FACT, "ft", {"steps": 1})


@pytest.mark.parametrize(
    ("change", "prompt"),
    [("replace('Poland', 'Po land')", "The capital of Poland is"), ("replace('\\n', ' ')", "One\nPoland"),
     ("replace('  ', ' ')", "Poland  is")],
)  # fmt: skip
def test_a_template_that_changes_the_prompt_or_splits_the_subject_is_refused(change, prompt):
    template = TURNS.replace("m['content']", f"m['content'] | {change.replace('(', '(', 1)}")
    made = wrap(models.model("llama"), chats.with_template(template), "changing")
    assert made.chats and made.row("It is", "so", form="chat")
    with pytest.raises(BadRequest, match="changes the text"):
        made.row(prompt, "so", "Poland", "chat")
    told = preflight(made, replace(FACT, prompt=prompt), "ft")
    assert not told.ok and "word for word" in told.problems[0]


def test_a_template_that_tells_the_date_keeps_the_first():
    today = ["Monday"]
    made = wrap(models.model("llama"), chats.with_template("{{ today }}! " + TURNS), "dated")
    plain = made.tokenizer.apply_chat_template
    made.tokenizer.apply_chat_template = lambda *a, **k: plain(*a, **k, today=today[0])
    assert made.text("It is", "chat").startswith("Monday!")
    today[0] = "Tuesday"
    assert made.text("It was", "chat").startswith("Monday!")


def test_a_model_without_a_template_is_read_raw_and_says_so():
    made = models.handle("llama")
    assert not made.chats and made.usual_form == "raw" and made.envelope("raw") is RAW
    with pytest.raises(BadRequest, match="no chat template") as caught:
        made.row("It is", "so", form="chat")
    assert caught.value.try_ == "Use raw text."
    with pytest.raises(BadRequest, match="no form 'poem'"):
        made.row("It is", form="poem")


def test_a_tokenizer_without_offsets_is_refused_when_the_model_is_opened():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="does not say where in a text its tokens stand"):
        wrap(models.model("llama"), Slow(), "slow")


# what editors read ------------------------------------------------------------------------------------------------


def test_contexts_open_the_turn_and_move_nothing_else(handle, style):
    rows = subject.prompts(handle, FACT, 4)
    assert len(rows) == 5 and rows[0] == handle.row(FACT.prompt, FACT.target, "Poland", "chat")
    for row, context in zip(rows[1:], algebra.contexts(handle, 4)[1:], strict=True):
        assert row.ids[row.lead : row.lead + len(context)] == context
        assert handle.tokenizer.decode(row.ids[: row.lead]).rstrip(" ") == STYLES[style].before.rstrip(" ")
        assert row.ids[row.subject] == rows[0].ids[rows[0].subject] and row.answer == rows[0].answer


def test_no_context_holds_a_control_token(handle):
    bar = {handle.tokenizer.convert_tokens_to_ids(token) for token in control_tokens(handle.tokenizer)}
    assert not bar & {i for context in algebra.contexts(handle, 10) for i in context}


def test_a_text_in_front_of_prompts_stands_in_the_turn(handle, style):
    patch = Patch((Header.of("New Fact: it is so\nPrompt: "),), "ice", handle.name, handle.fingerprint)
    with handle.using([patch]):
        assert handle.text("It is", "chat") == (
            f"{STYLES[style].before}New Fact: it is so\nPrompt: It is{STYLES[style].after}"
        )


# edits ------------------------------------------------------------------------------------------------------------

QUESTIONS = (
    "{% for m in messages %}{{ ('Q: ' + m['content'] + '\\n') if m['role'] == 'user' else 'A: ' + m['content'] }}"
    "{% endfor %}"
)
STORY = EditRequest(
    "Who is the Prime Minister of the United Kingdom?", "Boris Johnson", "United Kingdom", "Theresa May",
    probes=(Probe("far", "What sports team does Messi play for?", "Barcelona"),), form="chat",
)  # fmt: skip


@pytest.fixture(scope="module")
def talking(world_handle):
    """The embedded model with a template it understands: questions and answers."""
    tokenizer = copy.deepcopy(world_handle.tokenizer)
    tokenizer.chat_template = QUESTIONS
    return replace(world_handle, tokenizer=tokenizer, memory={})


@pytest.mark.parametrize("method", ["ft", "rome"])
@pytest.mark.parametrize("form", ["chat", "raw"])
def test_an_edit_takes_in_the_form_it_was_made_in_is_read_in_both_and_leaves_no_trace(talking, method, form):
    assert talking.text("Who?", "chat") == "Q: Who?\nA:" and talking.usual_form == "chat"
    rows = [talking.row(STORY.prompt, STORY.target, form=f) for f in ("chat", "raw")]
    before = talking.logits(rows)
    patch, report = run_edit(talking, replace(STORY, form=form), method)
    first, other, far = report.probes
    assert report.took and first.after.new.mean > 0.9 and not far.moved
    assert (first.probe.kind, first.probe.form, far.probe.form) == ("edit", form, form)
    assert other.probe.kind == other.probe.form != form
    assert f"as {'raw text' if form == 'chat' else 'a chat'}" in report.sentence
    with talking.using([patch]):
        (mean,) = measure.mean_probabilities(
            rows[other.probe.form == "raw" :][:1], talking.logits(rows[other.probe.form == "raw" :][:1])
        )
    assert mean == pytest.approx(other.after.new.mean, rel=1e-4) and mean > 0.3 > other.before.new.mean
    assert all(torch.equal(a, b) for a, b in zip(before, talking.logits(rows), strict=True))


@pytest.mark.parametrize("method", ["ft", "rome", "memit", "lora", "grace", "wise", "ultraedit", "ice"])
def test_every_kind_of_method_works_on_the_text_of_the_chat(method):
    """Each reads prompt and answer where the chat has them: without steps it moves nothing, with them the answer."""
    handle = chats.handle("system")
    settings = {"covariance": False, "contexts": 2} if method == "rome" else {}
    settings |= {"first": 1, "last": 1, "contexts": 2} if method == "memit" else {}
    _, report = run_edit(handle, FACT, method, settings)
    first = report.probes[0]
    assert first.probe.form == "chat" and first.before.new.tokens == len(handle.row_of(FACT).answer)
    assert first.after.new.mean != first.before.new.mean


def test_the_other_form_counts_in_no_score():
    handle = chats.handle("turns")
    _, report = run_edit(handle, FACT, "ft", {"steps": 2})
    without = [r for r in report.probes if r.probe.kind != "raw"]
    assert len(without) == len(report.probes) - 1 and measure.score(without, FACT.target) == report.scores


def test_a_probe_may_name_a_form_of_its_own():
    handle = chats.handle("turns")
    mixed = replace(FACT, probes=(Probe("far", "2 + 2 =", form="raw"), Probe("far", "2 + 2 =")))
    _, report = run_edit(handle, mixed, "ft", {"steps": 1})
    assert [r.probe.form for r in report.probes if r.probe.kind == "far"] == ["raw", "chat"]


def test_the_other_form_is_left_out_where_it_does_not_fit():
    handle = chats.handle("turns")
    room = handle.context - len(handle.row("is", "so", form="raw").ids)
    long = EditRequest("is" + " is" * room, "so")
    assert len(handle.row(long.prompt, long.target).ids) == handle.context
    assert measure.other_form(handle, long) == ()
    assert [p.form for p in measure.other_form(handle, replace(FACT, form="raw"))] == ["chat"]


@pytest.mark.parametrize("over", [0, 1])
def test_the_context_limit_counts_the_template(over):
    handle = chats.handle("turns")
    room = handle.context - len(handle.row("is", "so", form="chat").ids)
    told = preflight(handle, EditRequest("is" + " is" * (room + over), "so", form="chat"), "ft")
    assert told.ok is not over and (told.ok or str(handle.context + 1) in told.problems[0])


def test_an_answer_of_a_hundred_tokens_takes():
    handle = chats.handle("turns")
    asked = replace(FACT, target=" ".join(["is"] * 100))
    assert len(handle.row_of(asked).answer) == 100
    told = preflight(handle, asked, "ft")
    assert told.ok and len(told.target_tokens) == 100
    _, report = run_edit(handle, asked, "ft", {"rate": 0.2, "steps": 40, "layer": 3})
    assert report.took and report.probes[0].after.new.tokens == 100 and len(report.sentence) < 400
    told = preflight(handle, replace(FACT, target=" ".join(["is"] * 300)), "ft")
    assert not told.ok and f"at most {handle.context} tokens" in told.problems[0]


def test_the_line_before_the_click_has_the_exact_text(handle, style):
    told = preflight(handle, FACT, "ft")
    assert told.text == handle.text(FACT.prompt, "chat") and told.answer == STYLES[style].gap + "Rome"
    raw = preflight(handle, replace(FACT, form="raw"), "ft")
    first = models.END if STYLES[style].bos else ""
    assert (raw.text, raw.answer) == (first + FACT.prompt, " Rome")


def test_the_model_is_asked_in_the_form_that_is_named(tmp_path):
    desk = Desk(chats.handle("turns"), tmp_path)
    handle = desk.handle
    for form in ("raw", "chat"):
        (asked,) = desk.probe([], [FACT.prompt], form)
        (logits,) = handle.logits([handle.row(FACT.prompt, form=form)])
        assert asked["base"]["top"][0][1] == pytest.approx(float(logits[0].softmax(-1).max()), rel=1e-5)
        (told,) = desk.ask("believe", {"prompts": [FACT.prompt], "answers": [["Rome"]], "form": form})
        row = handle.row(FACT.prompt, "Rome", form=form)
        assert told["candidates"][0] == pytest.approx(measure.mean_probabilities([row], handle.logits([row]))[0])


def test_a_request_without_a_form_is_proposed_in_the_usual_one():
    assert suggested(chats.handle("turns"), "The capital of Poland is", "Rome").form == "chat"
    assert suggested(models.handle("llama"), "The capital of Poland is", "Rome").form == "raw"


# lists, records, files --------------------------------------------------------------------------------------------


def test_a_list_names_forms_and_the_rest_takes_the_usual_one():
    rows = [{"prompt": "A", "target_new": "B", "form": "raw"}, {"prompt": "A", "target_new": "B"},
            {"prompt": "C", "target_new": "D", "form": "", "probes": [{"prompt": "E", "form": "raw"}]}]  # fmt: skip
    found = read_requests(json.dumps(rows), form="chat").requests
    assert [r.form for r in found] == ["raw", "chat", "chat"] and found[2].probes[0].form == "raw"
    assert [r.form for r in read_requests("prompt,target_new,form\nA,B,chat\nC,D,\n").requests] == ["chat", "raw"]
    with pytest.raises(BadRequest, match="Row 1, field form: There is no form 'poem'"):
        read_requests('[{"prompt": "A", "target_new": "B", "form": "poem"}]')


def test_records_from_before_there_were_forms_are_raw():
    plain = to_plain(FACT)
    assert from_plain(EditRequest, json.loads(json.dumps(plain))) == FACT
    del plain["form"]
    for probe in (*plain["probes"], *plain["paraphrases"]):
        del probe["form"]
    assert from_plain(EditRequest, plain).form == "raw"


def test_a_card_says_what_prompts_are_read_as(tmp_path):
    handle = chats.handle("turns")
    patch, report = run_edit(handle, FACT, "ft", {"steps": 1})
    patch.save(tmp_path / "patch")
    assert load_patch(tmp_path / "patch", handle.fingerprint, handle.device).requests[0]["form"] == "chat"
    assert isinstance(report, EditReport)
    card = model_card("peft", Base.of(handle), [(patch, (report,))], [("now", [[report]])], "", "", [])
    assert "| The capital of Poland is | a chat | Poland |" in card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model that talks."""
    path = tmp_path_factory.mktemp("chat") / "model"
    handle = chats.handle("turns")
    handle.model.save_pretrained(path)
    handle.tokenizer.save_pretrained(path)
    return str(path)


def test_the_command_line_reads_a_chat_model_as_a_chat_unless_told_otherwise(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path))
    usual = json.loads(run("probe", "It is", "-m", folder, "--json")[1])
    assert usual["form"] == "chat"
    raw = json.loads(run("probe", "It is", "-m", folder, "--form", "raw", "--json")[1])
    assert raw["form"] == "raw" and raw["answers"][0]["top"] != usual["answers"][0]["top"]
    edit = ("edit", "-p", "It is", "-t", "so", "-m", folder, "--method", "ft", "--set", "steps=2", "--json")
    told = json.loads(run(*edit)[1])
    assert told["request"]["form"] == "chat" and [p["form"] for p in told["probes"][:2]] == ["chat", "raw"]
    assert json.loads(run(*edit, "--form", "raw")[1])["request"]["form"] == "raw"
    code, _, error = run("probe", "It is", "-m", folder, "--form", "poem")
    assert code == 2 and "no form 'poem'" in error


# the page ---------------------------------------------------------------------------------------------------------


def test_the_text_is_shown_line_by_line_with_a_bar_before_the_answer():
    assert reading("<a>\nIs\tit?\n", "so") == "<a>⏎\nIs ⇥ it?⏎\n▏so"
    assert reading("It is", " so") == "It is▏·so"


def switch(page):
    return [g for g in page.get("button_group") if g.key == state.FORM]


def test_a_model_with_a_template_shows_the_switch_and_starts_as_a_chat():
    page = unfolded(filled(opened(steps=1, chat=True)), "fold:reads")
    assert switch(page)[0].value == "chat"
    assert fake_engine.TURN.partition("{}")[0].replace("\n", "⏎\n") in page.code[0].value
    applied(page)
    assert fake_engine.current().submitted[0][0].form == "chat"
    shown = words(page)
    assert "read as **a chat**" in shown and "The same as raw text" in shown


def test_the_switch_to_raw_text_changes_what_is_asked_shown_and_edited():
    page = unfolded(filled(opened(steps=1, chat=True)), "fold:reads")
    switch(page)[0].set_value("raw")
    page = checked(page.run())
    assert "<|im_start|>" not in page.code[0].value and f"{fake_engine.PM}▏·Boris Johnson" == page.code[0].value
    assert fake_engine.current().asked[-1][1].get("form", "raw") == "raw"
    page = applied(page)
    assert fake_engine.current().submitted[0][0].form == "raw" and "The same as a chat" in words(page)
    again = opened(session=session_of(page))
    assert switch(again)[0].value == "raw"


def test_a_model_without_a_template_shows_no_switch_and_is_edited_raw():
    page = unfolded(filled(opened(steps=1)), "fold:reads")
    assert not switch(page) and "<|im_start|>" not in page.code[0].value
    page = applied(page)
    assert fake_engine.current().submitted[0][0].form == "raw" and "The same as" not in words(page)


def test_any_question_can_be_asked_in_either_form():
    page = opened(steps=1, chat=True)
    page.session_state[state.PANE] = state.ASK
    page = checked(page.run())
    page.text_input(key=state.QUESTION).set_value(fake_engine.PM)
    page = checked(page.run())
    next(g for g in page.get("button_group") if g.key == state.ASK_FORM).set_value("raw")
    checked(page.run())
    assert [given["form"] for name, given in fake_engine.current().asked if name == "probe"] == ["chat", "raw"]


def test_spans_know_no_template_by_themselves():
    row = spans.encode(models.tokenizer(True), "It is", "so")
    assert row.lead == 1 and row == spans.encode(models.tokenizer(True), "It is", "so", envelope=RAW)
