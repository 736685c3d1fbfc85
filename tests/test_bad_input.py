"""Bad inputs, row by row: where each is tested. `test_every_row_names_tests_that_exist` keeps the table true.

 1  empty prompt or answer            test_page::test_without_prompt_or_answer_apply_is_off_and_says_why
                                      test_compare::test_without_prompt_or_answer_compare_is_off_and_says_why
 2  subject not in the prompt         test_page::test_a_subject_that_is_not_in_the_prompt_turns_apply_off_and_is_kept
                                      test_spans::test_a_subject_outside_the_prompt_is_refused
                                      test_chat::test_a_subject_that_only_the_template_names_is_not_found
                                      test_chat::test_a_template_that_changes_the_prompt_or_splits_the_subject_is_refused
 3  the answer it gives already       test_edit::test_what_the_model_already_says_is_allowed_with_a_warning
 4  a prompt that ends in the answer  test_bad_input::test_a_prompt_that_ends_in_the_answer_is_warned_of_with_its_tokens
 5  a prompt of a megabyte            test_page::test_a_prompt_of_a_megabyte_is_refused_with_the_limit_and_never_sent
                                      test_edit::test_a_request_that_cannot_work_is_refused_before_anything_runs
 6  at and over the context           test_edit::test_the_context_limit_is_exact
                                      test_chat::test_the_context_limit_counts_the_template
                                      test_chat::test_an_answer_of_a_hundred_tokens_takes
 7  spaces, control tokens            test_spans::test_control_tokens_are_refused
                                      test_spans::test_an_answer_without_letters_is_refused
                                      test_chat::test_a_person_cannot_type_the_template_s_control_tokens
 8  any script, surrogates, NUL       test_edit::test_odd_text_is_only_text
                                      test_charts::test_lone_surrogates_and_control_characters_become_visible_and_encodable
                                      test_charts::test_right_to_left_text_is_isolated
 9  markup and formulas               test_page::test_hostile_text_is_shown_literally
                                      test_bad_input::test_markup_stays_text_on_every_page_and_beside_every_file
                                      test_bad_input::test_markup_stays_text_in_reports_and_tables
                                      test_report::test_a_browser_asks_the_network_for_nothing_and_shows_hostile_text
                                      test_charts::test_a_csv_cell_a_spreadsheet_would_run_gets_an_apostrophe
                                      test_adapter::test_the_card_shows_hostile_text_as_text_and_cannot_be_given_fields
10  braces and percent signs          test_edit::test_odd_text_is_only_text
11  10,000 pasted probes              test_bad_input::test_ten_thousand_pasted_probes_are_refused_with_the_count
12  repeated and leaking probes       test_measure::test_repeated_prompts_are_read_once
                                      test_edit::test_a_request_that_cannot_work_is_refused_before_anything_runs
13  files of any kind                 test_cases::test_a_file_that_is_no_list_of_edits_is_refused_with_the_place
                                      test_cases::test_size_and_number_are_bounded_and_told
                                      test_cases::test_any_bytes_are_read_or_refused
                                      test_history::test_a_zip_bomb_is_refused_before_it_is_unpacked
                                      test_bad_input::test_a_file_of_the_wrong_kind_or_size_is_refused_on_the_page
                                      test_bad_input::test_a_damaged_archive_is_refused_and_leaves_nothing
14  model names that lead elsewhere   test_security::test_a_model_from_outside_is_refused_alike_whatever_is_on_the_disk
                                      test_loading::test_a_folder_is_shown_without_its_place_and_a_refusal_tells_no_path
                                      test_handle::test_a_name_that_leads_nowhere_is_refused
                                      test_opening::test_what_is_not_allowed_is_refused_and_the_loaded_model_stays
15  damaged model folders             test_handle::test_a_damaged_folder_is_refused
                                      test_opening::test_what_stands_against_a_model_is_told_before_the_loaded_one_goes
                                      test_models_page::test_a_refusal_stands_beside_the_button_with_what_was_seen_wanted_and_what_to_try
                                      test_handle::test_a_tokenizer_that_does_not_fit_is_refused
                                      test_chat::test_a_tokenizer_without_offsets_is_refused_when_the_model_is_opened
                                      test_chat::test_a_template_that_does_not_show_the_prompt_is_refused
                                      test_loading::test_each_kind_of_damage_has_its_own_message
                                      test_loading::test_a_tokenizer_of_another_model_is_refused_and_a_few_added_tokens_are_not
                                      test_anatomy::test_experts_and_state_spaces_are_refused_by_the_rule
                                      test_opening::test_what_is_wrong_with_a_folder_is_said_in_its_own_words_before_anything_is_loaded
                                      test_rehearsal::test_a_model_made_of_shapes_alone_is_judged_as_one_that_is_read
16  settings out of bounds            test_methods::test_a_setting_that_cannot_work_is_refused
                                      test_methods::test_every_setting_says_what_it_is_and_keeps_its_bounds
                                      test_anatomy::test_a_missing_layer_is_named_with_the_range
17  an edit that diverges             test_methods::test_an_edit_that_diverges_says_so_and_leaves_no_trace
18  adapters that do not fit          test_adapter::test_an_adapter_of_another_base_is_refused_with_both_fingerprints
                                      test_adapter::test_an_adapter_that_is_not_understood_to_the_last_field_is_refused
19  unknown or forged ids             test_bad_input::test_no_id_but_the_session_s_own_opens_it
                                      test_bad_input::test_a_share_id_opens_no_session_and_edits_nothing
                                      test_history_page::test_an_unknown_link_shows_nothing_and_no_hint
                                      test_engine::test_only_session_ids_become_folders
20  strange addresses                 test_bad_input::test_what_the_address_says_in_vain_is_listed_once
                                      test_bad_input::test_no_address_breaks_the_page_or_shows_another_session
21  double clicks and two tabs        test_engine::test_a_double_click_is_one_job
                                      test_page::test_two_tabs_of_one_session_start_one_job
22  offloaded or quantised weights    test_anatomy::test_offloaded_weights_are_refused
                                      test_loading::test_weights_that_are_elsewhere_are_refused_whichever_they_are
                                      test_devices::test_a_model_that_accelerate_offloads_is_refused_with_the_reason
                                      test_anatomy::test_quantised_weights_are_refused
                                      test_bad_input::test_a_checkpoint_that_says_it_is_quantised_is_refused_with_a_reason
"""

from __future__ import annotations

import errno
import io
import json
import re
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashboard import resources, state, tables
from dashboard.report import report_files
from editcore import opening
from editcore.edit import preflight
from editcore.engine import upload
from editcore.engine.upload import unpacked
from editcore.errors import BadRequest, EngineError, ModelError
from editcore.home import new_session
from editcore.records import EditRequest
from tests import fake_engine, models
from tests.test_history_page import brought, click, elsewhere, rows, two_edits
from tests.test_page import HOSTILE, applied, checked, filled, fresh, opened, session_of, unfolded, words

__all__ = ["fresh"]
HERE = Path(__file__).parent
LIVE = ("![t](", "<script>", ":red[", "$x$", "**b**")


def test_every_row_names_tests_that_exist():
    named = re.findall(r"(test_\w+)::(test_\w+)", __doc__)
    assert {int(n) for n in re.findall(r"^ ?(\d+)  ", __doc__, re.MULTILINE)} == set(range(1, 23))
    for file, name in named:
        assert f"def {name}(" in (HERE / f"{file}.py").read_text(encoding="utf-8"), f"{file}::{name}"


# the form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["The capital of Poland is Rome", "Rome"])
def test_a_prompt_that_ends_in_the_answer_is_warned_of_with_its_tokens(prompt):
    found = preflight(models.handle("gpt2"), EditRequest(prompt, "Rome"), "ft")
    assert found.ok and "already ends in the corrected answer" in " ".join(found.warnings)
    assert "".join(found.target_tokens).strip() == "Rome"


@pytest.mark.parametrize("table", [0, 1])
def test_ten_thousand_pasted_probes_are_refused_with_the_count(table):
    page = filled(opened(steps=1))
    key = ("paraphrases", "probes")[table] + f":{page.session_state['_version']}"
    added = [{"prompt": f"Question {i}?"} for i in range(10_000)]
    page.session_state[key] = {"edited_rows": {}, "added_rows": added, "deleted_rows": []}
    page = checked(page.run())
    assert "10,000 rows were pasted, and at most 1,000 fit. None of them was taken." in page.warning[0].value
    assert page.session_state["_version"] > int(key.partition(":")[2]) and not page.button(key="apply").disabled
    applied(page)
    request = fake_engine.current().submitted[0][0]
    assert (len(request.paraphrases), len(request.probes)) == (4, 8)


# markup -----------------------------------------------------------------------------------------------------------


def everything(page) -> str:
    """All a page says where markdown is read: text, labels of buttons and switches, notes that pass."""
    kinds = ("button", "toggle", "checkbox", "download_button", "expander", "tab", "number_input", "slider")
    labels = [str(getattr(element, "label", "")) for kind in kinds for element in page.get(kind)]
    return "\n".join([words(page), *labels, *(toast.value for toast in page.toast)])


@pytest.mark.parametrize("target", [HOSTILE, "![t](http://e.org) :red[y]", "**b** $x$ <script>"])
def test_markup_stays_text_on_every_page_and_beside_every_file(target):
    page = applied(filled(opened(steps=1), HOSTILE, target))
    (row,) = rows(page)
    folds = ("settings", "checks", "reads", "scores", "answers", "continuations", "how", "health")
    page = unfolded(page, f"menu:{row.edit}", "take-away", *(f"fold:{name}" for name in folds))
    next(t for t in page.text_input if t.key.startswith(f"note:{row.edit}")).set_value(HOSTILE)
    page = brought(checked(page.run()), f"{HOSTILE.replace('/', '')}.csv", f"prompt,target_new\n{HOSTILE},".encode())
    shown = everything(page)
    fake_engine.current().sessions.library.rename(session_of(page), HOSTILE[:120])
    page = click(page, "share")
    link = page.code[-1].value.partition("link=")[2]
    shown += everything(elsewhere(page, "sessions")) + everything(elsewhere(page, "compare"))
    page.query_params["link"] = link
    shown += everything(elsewhere(page, "shared"))
    assert "Who is" in shown and not [live for live in LIVE if live in shown]


def test_markup_stays_text_in_reports_and_tables():
    page = applied(filled(opened(steps=1), f"=cmd() {HOSTILE}", "<b>x</b>"))
    (report,) = fake_engine.current().sessions.reports(session_of(page), rows(page)[0].edit)
    files = report_files(HOSTILE, fake_engine.MODEL, [report])
    html = next(data for name, data in files.items() if name.endswith("html")).decode()
    assert "<script>x" not in html and "&lt;script&gt;" in html
    cells = tables.to_csv(tables.continuations(report)).decode("utf-8-sig")
    assert "'=cmd()" in cells and ",=cmd()" not in cells


# files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("list.csv", "prompt,target_new\nWhere?,Zürich\n".encode("latin-1"), "no text in UTF\\-8"),
        ("list.csv", b"prompt,target_new\na,b,c\n", "has 3 cells"),
        ("list.json", b"[" * 500, "nested"),
        ("list.json", b'[{"prompt": "a", "target_new": NaN}]', "NaN"),
        ("list.jsonl", b"PK\3\4....", "ZIP"),
        ("list.txt", b"", "empty"),
        ("list.csv", b"prompt,target_new\n" + b"a,b\n" * 40_000, "million bytes"),
        ("list.csv", b"prompt,target_new\n" + b"".join(b"T%d,b\n" % i for i in range(101)), "At most 100"),
    ],
)
def test_a_file_of_the_wrong_kind_or_size_is_refused_on_the_page(monkeypatch, name, data, said):
    monkeypatch.setenv("EDITCORE_LARGEST_LIST", "100000")
    page = brought(opened(steps=1), name, data)
    assert said in "".join(e.value for e in page.error) and page.button(key="bring-in").disabled
    assert not fake_engine.current().submitted


def archive(*entries: tuple[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in entries:
            made.writestr(name, data)
    return held.getvalue()


GOOD = archive(("patch/patch.json", b'{"format": 1}' * 50), ("patch/tensors.safetensors", bytes(range(256)) * 8))
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40),
    st.sampled_from([
        "a.json", "a.json/b.json", "../a.json", "/a.json", "a/../../b.json", "C:/a.json", "a\\b.json", "./a.json",
        "x" * 300 + ".json", "a\0b.json", "con.json", "....//a.json", "~/a.json", "a.json/", ".json", "..json",
    ]),
)  # fmt: skip
DAMAGE = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=12)


def attempt(data: bytes, home: Path) -> None:
    """Unpacked inside the scratch folder, or refused and nothing left anywhere."""
    outside = {path for path in home.parent.iterdir()}
    try:
        folder = unpacked(data, "upload.zip", home)
    except BadRequest:
        assert not [path for path in home.rglob("*") if path.is_file()]
        assert not list((home / "scratch").glob("*")) if (home / "scratch").exists() else True
    else:
        found = [path for path in home.rglob("*") if not path.is_dir()]
        assert all(path.is_relative_to(folder) and not path.is_symlink() for path in found)
        assert all(path.suffix in upload.SUFFIXES for path in found)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    assert {path for path in home.parent.iterdir()} == outside


CALM = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def home(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@settings(CALM, max_examples=400)
@given(changes=DAMAGE, cut=st.one_of(st.none(), st.integers(0, len(GOOD))), tail=st.binary(max_size=30))
def test_a_damaged_archive_is_refused_and_leaves_nothing(home, changes, cut, tail):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    attempt(bytes(data[:cut]) + tail, home)


@settings(CALM, max_examples=200)
@given(entries=st.lists(st.tuples(NAMES, st.binary(max_size=50)), max_size=5))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_name_in_an_archive_leads_out_of_its_folder(home, entries):
    attempt(archive(*entries), home)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_links_lies_and_locks_in_an_archive_are_no_way_out(home):
    linked = zipfile.ZipInfo("a.json")
    linked.create_system, linked.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made:
        made.writestr(linked, "/etc/passwd")
        made.writestr("a.json/b.json", "{}")
    attempt(held.getvalue(), home)
    central = GOOD.index(b"PK\1\2")
    for place, value in ((8, b"\1\0"), (10, b"\x63\0"), (24, b"\xff\xff\xff\x7f"), (24, b"\1\0\0\0"), (6, b"\xff\xff")):
        at = central + place  # encrypted, an unknown compression, sizes that are not true, a version of tomorrow
        attempt(GOOD[:at] + value + GOOD[at + len(value) :], home)


def test_a_full_disk_while_unpacking_is_not_blamed_on_the_archive(home, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload.shutil, "copyfileobj", refuse)
    with pytest.raises(EngineError, match="could not be unpacked"):
        unpacked(GOOD, "upload.zip", home)
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_checkpoint_that_says_it_is_quantised_is_refused_with_a_reason(tmp_path):
    models.model("llama").save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        opening.load(str(tmp_path), device="cpu")
    assert caught.value.seen and caught.value.try_


# ids and addresses ------------------------------------------------------------------------------------------------


def stored() -> tuple[int, set[str]]:
    """Sessions in the store, and files beside its database."""
    store = fake_engine.current().store
    with store.database.reading() as at:
        count = at.exec_driver_sql("SELECT count(*) FROM sessions").scalar()
    return int(count), {str(p) for p in store.home.rglob("*") if p.is_file() and not p.name.startswith("editcore.db")}


def shows_nothing(page) -> bool:
    shown = everything(page)
    return not any(answer in shown for answer in ("Boris Johnson (", "Edited:", "Mark Twain"))


def test_no_id_but_the_session_s_own_opens_it():
    page, edits = two_edits()
    own = session_of(page)
    link = click(page, "share").code[-1].value.partition("link=")[2]
    before = stored()
    for id_ in (link, *edits, new_session(), own[:-1], own + "A", own.swapcase(), f"{own}\n", f" {own}", "%"):
        assert shows_nothing(opened(id_)), id_
    assert stored() == before and not shows_nothing(opened(own))


def test_a_share_id_opens_no_session_and_edits_nothing():
    page, _ = two_edits()
    own = session_of(page)
    link = click(page, "share").code[-1].value.partition("link=")[2]
    library = fake_engine.current().sessions.library
    frozen = library.shared(link)
    other = applied(filled(opened(link), "What is the capital of Australia?", "Sydney"))
    assert [row.target for row in rows(other)] == ["Sydney"] and library.shared(link) == frozen
    assert [row.target for row in fake_engine.current().sessions.state(own).rows] == ["Boris Johnson", "Mark Twain"]
    library.delete(own)
    assert library.shared(link) is None
    library.restore(own)
    assert library.shared(link) == frozen


def test_a_session_past_its_days_is_as_one_that_never_was():
    page, _ = two_edits()
    own = session_of(page)
    library = fake_engine.current().sessions.library
    link = library.share(own, "x", {})
    library.delete(own)
    library.prune(now=10**11)
    resources.drafts.clear()  # pruning happens at a start
    assert shows_nothing(opened(own)) and library.shared(link) is None
    assert everything(opened(own)) == everything(opened(new_session()))


def test_what_the_address_says_in_vain_is_listed_once():
    page = opened(steps=1)
    page.query_params["method"] = "magic"
    page.query_params["steps"] = ["1" * 10_000, "2"]
    page.query_params["session"] = "../../etc/passwd"
    page = checked(page.run())
    (told,) = [w.value for w in page.warning if "address" in w.value]
    assert "method, steps, session".replace(",", "\\,") in told and "magic" not in told and "1111" not in told
    assert set(page.query_params) == {"session"} and page.pills(key=state.METHOD).value == state.DEFAULT_METHOD
    page = checked(page.run())
    assert len([w for w in page.warning if "address" in w.value]) == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@settings(CALM, max_examples=40)
@given(data=st.data())
def test_no_address_breaks_the_page_or_shows_another_session(data):
    global _PAGE
    if _PAGE is None or fake_engine.current() is not _PAGE[0]:
        page, edits = two_edits()
        link = click(page, "share").code[-1].value.partition("link=")[2]
        _PAGE = (fake_engine.current(), session_of(page), link, edits)
    _, own, link, edits = _PAGE
    near = st.sampled_from([own[:-1], own + "=", own.upper(), f"{own}\0", link, link[:-1], *edits, "a" * 100_000])
    values = st.one_of(TEXTS, near.filter(lambda text: text != own))
    names = st.one_of(st.sampled_from(["session", "link", "method", "prompt", "page", "embed", "_job"]), TEXTS)
    address = data.draw(st.dictionaries(names, st.one_of(values, st.lists(values, max_size=3)), max_size=4))
    address.pop("link", None) if address.get("link") == link else None
    view = data.draw(st.sampled_from(["edit", "compare", "sessions", "shared"]))
    before = stored()
    page = checked(opened(new_session()))
    page.query_params.clear()
    page.query_params.update(address)
    page = checked(page.switch_page(f"views/{view}.py").run())
    assert view == "sessions" or shows_nothing(page)
    assert stored() == before and own not in page.query_params.get("session", "")


_PAGE: tuple | None = None


@settings(CALM, max_examples=300)
@given(link=st.text(max_size=60))
def test_no_text_is_a_link_by_accident(home, link):
    from editcore.store import Library, Store

    store = Store(home)
    try:
        assert Library(store).shared(link) is None
    finally:
        store.close()
