"""Lists people bring are read whatever their name, or refused with the row and the field; nothing else happens."""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editcore import cases, gate
from editcore.errors import BadRequest
from editcore.records import EditRequest, Probe, to_plain

WANTED = EditRequest(
    "The capital of Poland is", "Łódź", "Poland", "Warsaw",
    (Probe("paraphrase", "Poland's capital:"), Probe("paraphrase", "Poland is ruled from")),
    (Probe("near", "The capital of Japan is", "Tokyo"), Probe("near", "The capital of Peru is", "Lima")),
)  # fmt: skip
OWN = {
    "prompt": WANTED.prompt, "subject": "Poland", "target_new": "Łódź", "target_old": "Warsaw",
    "paraphrases": ["Poland's capital:", "Poland is ruled from"],
    "probes": [
        {"prompt": "The capital of Japan is", "answer": "Tokyo"},
        {"prompt": "The capital of Peru is", "answer": "Lima"},
    ],
}  # fmt: skip
EASYEDIT = {
    "prompt": WANTED.prompt, "subject": "Poland", "target_new": "Łódź", "ground_truth": ["Warsaw", "Warszawa"],
    "rephrase_prompt": ["Poland's capital:", "Poland is ruled from"],
    "locality": {"neighborhood": {
        "prompt": ["The capital of Japan is", "The capital of Peru is"], "ground_truth": ["Tokyo", "Lima"],
    }},
    "portability": {"one_hop": [{"prompt": "The mayor of Poland's capital is", "ground_truth": "x"}]},
}  # fmt: skip
KNOWEDIT = {**EASYEDIT, "locality": {"neighbors": [
    {"prompt": "The capital of Japan is", "ground_truth": [["Tokyo"]]},
    {"prompt": "The capital of Peru is", "ground_truth": [["Lima", "Ciudad de los Reyes"]]},
]}}  # fmt: skip
COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The capital of {} is", "subject": "Poland", "relation_id": "P36",
        "target_new": {"str": "Łódź", "id": "Q580"}, "target_true": {"str": "Warsaw", "id": "Q270"},
    },
    "paraphrase_prompts": ["Poland's capital:", "Poland is ruled from"],
    "neighborhood_prompts": ["Mazovia's largest city is", "Polonia plays in"],
    "generation_prompts": ["Poland's capital is known for"],
}  # fmt: skip
ZSRE = {
    "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "alt": "Trinity College",
    "answers": ["Illinois Institute of Technology"], "rephrase": "Where did Watts Humphrey study?",
    "loc": "nq question: who played desmond doss father in hacksaw ridge", "loc_ans": "Hugo Weaving",
    "pred": "Princeton", "cond": "x",
}  # fmt: skip
CSV = (
    "prompt,subject,target_new,ground_truth,rephrase_prompt,locality_prompt,locality_ground_truth\r\n"
    "The capital of Poland is,Poland,Łódź,Warsaw,Poland's capital:|Poland is ruled from,"
    "The capital of Japan is|The capital of Peru is,Tokyo|Lima\r\n"
)


def read(value: object, name: str = "", **options: object) -> cases.Requests:
    data = value if isinstance(value, bytes | str) else json.dumps(value)
    return cases.read_requests(data, name, **options)


def refusal(value: object, name: str = "", **options: object) -> str:
    with pytest.raises(BadRequest) as caught:
        read(value, name, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "format"),
    [
        (OWN, "one JSON object, our own field names"),
        ([OWN], "a JSON array, our own field names"),
        ([to_plain(WANTED)], "a JSON array, our own field names"),
        ([EASYEDIT], "a JSON array, the field names of EasyEdit"),
        ([KNOWEDIT], "a JSON array, the field names of EasyEdit"),
        (json.dumps(OWN, indent=2), "one JSON object, our own field names"),
        (CSV, "CSV, the field names of EasyEdit"),
        (CSV.encode("utf-8-sig"), "CSV, the field names of EasyEdit"),
        (CSV.replace(",", ";"), "CSV with semicolons, the field names of EasyEdit"),
        (CSV.replace(",", "\t"), "tab-separated values, the field names of EasyEdit"),
    ],
)
def test_one_edit_is_the_same_however_it_is_written(value, format):
    found = read(value)
    assert (found.requests, found.format) == ((WANTED,), format)
    assert found.notes[0] == f"1 edit read: {format}."


def test_counterfacts_gap_is_filled_and_its_neighbours_keep_the_true_answer():
    found = read([COUNTERFACT])
    (request,) = found.requests
    assert (request.prompt, request.target, request.old) == (WANTED.prompt, "Łódź", "Warsaw")
    assert request.paraphrases == WANTED.paraphrases
    assert [(p.kind, p.answer) for p in request.probes] == [("near", "Warsaw")] * 2
    assert found.notes[1] == (
        "Not used: case_id (1 row), generation_prompts (1 row), requested_rewrite.relation_id (1 row)."
    )


def test_zsres_names_are_understood_with_and_without_alternative():
    found = read([ZSRE, {**ZSRE, "src": "What school did watts humphrey attend?", "alt": ""}])
    one, two = found.requests
    assert (one.target, one.old) == ("Trinity College", "Illinois Institute of Technology")
    assert (two.target, two.old) == ("Illinois Institute of Technology", None)
    assert two.subject == "watts humphrey"
    assert one.probes == (Probe("far", "who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),)
    assert any("nq question" in note for note in found.notes)
    assert any("first of “answers”" in note for note in found.notes)


def test_columns_as_easyedit_takes_them_become_rows():
    found = read({
        "prompts": ["A lies in", "B lies in"], "target_new": ["Peru", "Chile"], "subject": ["A", "B"],
        "locality_inputs": {"neighborhood": {"prompt": ["C lies in", "D lies in"], "ground_truth": ["Oman", "Iran"]}},
    })  # fmt: skip
    assert [(r.prompt, r.target, r.probes[0].answer) for r in found.requests] == [
        ("A lies in", "Peru", "Oman"), ("B lies in", "Chile", "Iran"),
    ]  # fmt: skip
    assert "field target_new" in refusal({"prompts": ["A", "B"], "target_new": ["x"]})


def test_what_is_not_used_or_not_taken_is_said():
    found = read([EASYEDIT, {**KNOWEDIT, "prompt": "Poland is ruled by"}, {**OWN, "prompt": "In Poland"}], limit=2)
    assert len(found.requests) == 2
    assert found.notes == (
        "2 of 3 edits read: a JSON array, the field names of EasyEdit.",
        "Not used: portability (2 rows).",
        "Where an answer has several spellings the first was taken (3 times).",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_new": {"a": 1}}, "Row 2 of f.json, field target_new: an object stands there."),
        ({"target_new": None}, "field target_new: it is missing"),
        ({"prompt": ""}, "field prompt: it is missing"),
        ({"prompt": True}, "field prompt: true or false stands there"),
        ({"prompt": "x" * 30_000}, "30,000 characters"),
        ({"target_new": "\ud800"}, "field target_new"),
        ({"subject": "Spain"}, "field subject: The subject 'Spain' is not part"),
        ({"paraphrases": 3}, "field paraphrases: the prompt is a number"),
        ({"paraphrases": ["a", 3]}, "field paraphrases[2]: the prompt is a number"),
        ({"paraphrases": ["a", ""]}, "field paraphrases[2]: The prompt is empty"),
        ({"probes": [{"answer": "x"}]}, "field probes: the prompt is nothing"),
        ({"probes": [{"prompt": "x", "answer": {}}]}, "field probes"),
        ({"probes": [WANTED.prompt]}, "edit prompt itself"),
        ({"probes": [f"{i}?" for i in range(2000)]}, "2,002 paraphrases and probes"),
        ({"rephrase_promt": "x"}, "Perhaps rephrase_prompt was meant"),
        ({"colour": "red"}, "field colour: no field is called so"),
        ({"locality": 3}, "field locality: a number stands there"),
        ({"locality": {"neighborhood": {"prompt": ["a"], "ground_truth": ["b", "c"]}}},
         "field locality.neighborhood.prompt: 1 prompt and 2 answers"),
        ({"target": "Gdańsk"}, "it says 'Gdańsk', and target_new says 'Łódź'"),
        ({"probes": float("nan")}, "Row 2 of f.json, field probes: NaN stands there"),
        ({"probes": [{"prompt": "a", "answer": float("inf")}]}, "field probes: Infinity stands there"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_row(change, words):
    message = refusal([{"prompt": "A", "target_new": "B"}, {**OWN, **change}], "f.json")
    assert message.startswith("Row 2 of f.json") and words in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "empty"), (b" \n\xef\xbb\xbf"[:2], "empty"), (b"[]", "empty list"), (b"prompt,target_new\n", "no case"),
        (b"\xff\xfea\x00", "UTF-16"), (b"prompt,target_new\nA,B\nM\xfcnchen,C\n", "line 3 holds the byte 0xfc"),
        (b"\x1f\x8b123", "gzip"), (b"PAR1", "Parquet"), (b"a\0b", "null characters"), (b'"text"', "neither JSON nor"),
        (b"name,colour\n1,2\n", "begins with 'name,colour'"), (b"prompt,Prompt,target_new\na,b,c\n", "two columns"),
        (b'prompt,target_new\nA,B\nC\n', "Row 2 (line 3) has 1 cell."), (b'prompt,target_new\n"A"x,B\n', "Line 2"),
        (b'prompt,target_new\nA,"B\n', "cannot be read"), (b"[1]", "Row 1 is a number"), (b"[null]", "is nothing"),
        (b'[{"prompt": "A", "prompt": "B", "target_new": "C"}]', "stands there twice"),
        (b'[{"prompt": "A",\n "target_new": }]', "Line 2 cannot be read (Expecting value, column 16)"),
        (b'{"prompt": "A", "target_new": "B"}\n{"prompt"', "Line 2 cannot be read"),
        (b'{"prompt": "A", "target_new": "B"} extra', "Extra data"),
        ([{"requested_rewrite": [1]}], "field requested_rewrite: a list stands there"),
        ([COUNTERFACT, {"prompt": "A"}], "Row 2, field requested_rewrite: nothing stands there"),
        ([{"requested_rewrite": {**COUNTERFACT["requested_rewrite"], "prompt": "It is"}}], "no {} where the subject"),
        ([{"prompt": "A", "target_new": "B"}, {"prompt": "a", "target_new": "C"}], "Rows 1 and 2 of the list"),
        ([{"prompt": "A", "target_new": "B"}, {"prompt": "a", "target_new": "B"}], "are the same edit"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_edits_is_refused_with_the_place(value, words):
    assert words in refusal(value)


@pytest.mark.parametrize("opening", ["[", '{"prompt":', '[{"probes":', '{"a":['])
def test_deep_files_are_refused_whatever_the_interpreter_allows(opening):
    allowed = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1_000_000)
        assert "nested inside each other" in refusal(opening * 200_000)
        assert "Line 2 cannot be read" in refusal('{"prompt": "A"}\n' + opening * 200_000)
    finally:
        sys.setrecursionlimit(allowed)
    assert read([{**OWN, "prompt": "[[[[[[{{{{{{ " * 9, "subject": None}]).requests[0].prompt.startswith("[[[")


def test_size_and_number_are_bounded_and_told(monkeypatch, tmp_path):
    many = [{"prompt": f"Town {i} is", "target_new": "B"} for i in range(1_001)]
    assert "holds 1,001 edits. At most 1,000" in refusal(many)
    assert len(read(many, limit=5).requests) == 5 and len(read(many, most=math.inf).requests) == 1001
    monkeypatch.setenv("EDITCORE_LARGEST_LIST", "1000")
    assert "million bytes" in refusal(b"[" * 1_001)
    file = tmp_path / "large.json"
    file.write_bytes(b"[" * 1_001)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("it was opened"))
    with pytest.raises(BadRequest, match="'large.json' has 0.0 million bytes"):
        cases.read_file(file)


def test_a_zip_archive_is_not_unpacked():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("edits.json", b" " * 10_000_000)
    assert "ZIP archive" in refusal(held.getvalue(), "edits.json")


def test_quoted_cells_may_hold_lines_and_separators():
    (one, two) = read('target_new,prompt,probes\r\n"B, C","A\r\nis","[""x"", ""y|z""]"\r\n\r\nD,[E] is,\r\n').requests
    assert (one.prompt, one.target, [p.prompt for p in one.probes]) == ("A\r\nis", "B, C", ["x", "y|z"])
    assert (two.prompt, two.target, two.probes) == ("[E] is", "D", ())


def test_line_separators_inside_a_text_end_no_line():
    assert (
        read('{"prompt": "A\u2028is", "target_new": "B"}\n{"prompt": "C", "target_new": "D"}').requests[0].target == "B"
    )


# Whatever is in a file, it is read or refused.

TEXTS = st.text(max_size=12)
FIELDS = st.sampled_from(
    sorted({*OWN, *EASYEDIT, *COUNTERFACT, *COUNTERFACT["requested_rewrite"], *ZSRE, "str", "locality_prompt"})
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(["{}", "Poland", WANTED.prompt]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | TEXTS, inner, max_size=4),
    max_leaves=12,
)
VALID = [
    json.dumps([OWN, COUNTERFACT]), json.dumps([EASYEDIT]), json.dumps([KNOWEDIT]), json.dumps([COUNTERFACT] * 2),
    json.dumps([ZSRE]), f"{json.dumps(OWN)}\n{json.dumps(ZSRE)}", json.dumps(OWN, indent=1), CSV,
]  # fmt: skip

MARKS = st.sampled_from(
    [b'"', b"{", b"[", b"}", b"]", b",", b"\n", b"|", b":", b"\\", b"NaN", b"\r", b"null", b"\xef\xbb\xbf"]
)


def tolerated(data: bytes | str) -> None:
    try:
        found = cases.read_requests(data, "f", distinct=False)
    except BadRequest as error:
        assert str(error)
    else:
        assert found.requests and found.notes
        for request in found.requests:
            gate.check_request(request)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    tolerated(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), max_size=3), st.booleans())
def test_any_fields_are_read_or_refused(entries, lines):
    tolerated("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(VALID), st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=6) | MARKS)
def test_any_damage_to_a_good_file_is_read_or_refused(text, at, cut, put):
    data = text.encode()
    at %= len(data)
    tolerated(data[:at] + put + data[at + cut :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=4), st.sampled_from(",;\t"))
def test_any_table_is_read_or_refused(cells, mark):
    head = mark.join(["prompt", "target_new", "subject", "locality"])
    tolerated("\n".join([head, *(mark.join(row) for row in cells)]))
