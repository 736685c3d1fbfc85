"""The command line: exit codes, messages a person can act on, and JSON with the documented keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from editcore import cli, opening, terminal
from editcore.methods import METHODS
from tests import models, pairs

ROOT = Path(__file__).parents[1]
EDIT = ("edit", "--method", "ft", "--set", "steps=2", "-p", "The capital of Poland is", "-t", "Łódź")
REPORT = {
    "model", "method", "settings", "request", "subject", "patch", "seconds", "probes", "scores", "took", "sentence",
    "advice", "warnings",
}  # fmt: skip
PROBE = {
    "kind", "prompt", "form", "held_out", "new", "old", "top_before", "top_after", "text_before", "text_after", "kl",
    "moved",
}  # fmt: skip
SCORES = {"reliability", "generality", "locality", "es", "ps", "ns", "s", "generation"}


@pytest.fixture(scope="module")
def own():
    """A tiny model that no other file's tests have trained an editor for."""
    return models.handle.__wrapped__("gpt2")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path, own):
    """Loading gives a tiny model, and nothing is written outside the test's folder."""
    monkeypatch.setattr(opening, "load", lambda name, **options: own)
    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli.out, "width", 300)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `editcore ...` in this process: (exit code, standard output, standard error)."""

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["editcore", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, " ".join(shown.err.split())

    return call


def test_edit_prints_one_object_with_the_documented_keys(run):
    code, text, _ = run(*EDIT, "--json")
    report = json.loads(text)
    assert code == 0 and set(report) == REPORT
    assert {"bytes", "modules", "rank", "norm"} <= set(report["patch"])
    assert {"edit", "measure"} <= set(report["seconds"])
    assert set(report["scores"]) >= SCORES
    assert all(set(p) == PROBE for p in report["probes"])
    assert all(set(p[side]) == {"before", "after"} for p in report["probes"] for side in ("new", "old"))
    kinds = [p["kind"] for p in report["probes"]]
    assert kinds[0] == "edit" and kinds.count("paraphrase") >= 4 and len(kinds) - kinds.count("paraphrase") >= 9
    assert report["request"]["target"] == "Łódź" and report["settings"]["steps"] == 2


def test_given_paraphrases_and_probes_are_used(run):
    code, text, _ = run(*EDIT, "--paraphrase", "Poland's capital:", "--probe", "2 + 2 =", "--json")
    assert code == 0
    assert [(p["kind"], p["prompt"]) for p in json.loads(text)["probes"]] == [
        ("edit", "The capital of Poland is"), ("paraphrase", "Poland's capital:"), ("far", "2 + 2 ="),
    ]  # fmt: skip


def test_a_saved_patch_is_used_by_probe_and_changes_the_answer_only_there(run, tmp_path):
    folder = str(tmp_path / "patch")
    saved = json.loads(run(*EDIT, "--set", "rate=0.05", "--set", "steps=20", "--save", folder, "--json")[1])
    assert saved["patch"]["path"] == folder and saved["patch"]["bytes"] > 0
    plain = json.loads(run("probe", "The capital of Poland is", "--json")[1])
    edited = json.loads(run("probe", "The capital of Poland is", "--patch", folder, "--json")[1])
    assert set(plain) == {"model", "patch", "form", "answers"}
    assert edited["answers"][0]["text"] != plain["answers"][0]["text"]
    assert json.loads(run("probe", "The capital of Poland is", "--json")[1]) == plain
    code, _, message = run(*EDIT, "--save", folder)
    assert code == 2 and "exists already" in message


def test_people_get_text(run):
    code, text, _ = run(*EDIT)
    assert code == 0 and "Łódź" in text and "reliability" in text and "{" not in text
    code, text, _ = run("probe", "The capital of [bold]Poland[/bold] is")
    assert code == 0 and "[bold]Poland[/bold]" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (("edit", "-p", "", "-t", "x"), "prompt is empty"),
        (("edit", "-p", "x", "-t", "  "), "corrected answer is empty"),
        (("edit", "-p", "It is", "-t", "so", "--subject", "Spain"), "not part of the prompt"),
        (("edit", "-p", "It is", "-t", "so", "--method", "magic"), "no method 'magic'"),
        (("edit", "-p", "It is", "-t", "so", "--set", "steps"), "name=value"),
        (("edit", "-p", "It is", "-t", "so", "--set", "steps=0"), "steps is '0'"),
        (("edit", "-p", "It is", "-t", "so", "--set", "rate=nan"), "rate is 'nan'"),
        (("edit", "-p", "It is", "-t", "so", "--set", "layer=99"), "Layer 99"),
        (("edit", "-p", "the sky is", "-t", "so"), "No subject"),
        (("edit", "-p", "It is <|endoftext|>", "-t", "so", "--method", "ft"), "control token"),
        (("edit", "-p", "x" * 30_000, "-t", "so"), "30,000 characters"),
        (("edit", "-p", "word " * 600, "-t", "so", "--method", "ft"), "at most 256 tokens"),
        (("edit", "-p", "It is", "-t", "so", "--method", "ft", "--probe", "It is"), "edit prompt itself"),
        (("probe", " "), "prompt is empty"),
        (("bench", "--method", "ft,magic"), "no method 'magic'"),
        (("bench", "--method", "ft", "--cases", "missing.jsonl"), "no file"),
        (("bench", "--method", "ft"), "no tables"),
        (("edit", "--nonsense"), "No such option"),
    ],
)
def test_bad_input_ends_with_code_2_and_says_what_is_wrong(run, words, message):
    code, text, error = run(*words)
    assert code == 2 and message in error and not text.strip()
    assert "Traceback" not in error


SLOW = ("edit", "-p", "It is", "-t", "so")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("edit", "-p", " ", "-t", "x"), "prompt is empty"),
        (("edit", "-p", "x"), "corrected answer is empty"),
        ((*SLOW, "--method", "magic"), "There is no method 'magic'. Known methods: rome, emmet"),
        ((*SLOW, "--method", "ROME", "--set", "speed=3"), "ROME has no setting 'speed'"),
        ((*SLOW, "--set", "steps=0"), "steps is '0'"),
        ((*SLOW, "--set", "preset=mine"), "preset is 'mine'"),
        ((*SLOW, "--form", "verse"), "There is no form 'verse'"),
        ((*SLOW, "--probe", " "), "The prompt of a probe is empty"),
        (("edit", "--cases", "{edits}", "--method", "magic"), "There is no method 'magic'"),
        (("probe", "It is", "--form", "verse"), "There is no form 'verse'"),
        (("probe", "It is", "--patch", "nope"), "There is no patch 'nope'"),
        (("bench", "--cases", "missing.jsonl"), "There is no file 'missing.jsonl'"),
        (("bench", "--method", "ft,rome", "--set", "speed=3"), "has no setting 'speed'"),
        (("train", "magic"), "There is no method 'magic'"),
        (("train", "rome"), "rome needs no training"),
        (("train", "mend", "--edits", "missing.jsonl"), "There is no file 'missing.jsonl'"),
        (("train", "mend", "--edits", "{edits}"), "'edits.jsonl' holds 1 edits. At least 20 are needed"),
        (("train", "mend", "--locality", "missing.txt"), "'missing.txt' cannot be read"),
        (("corpus", "missing.txt"), "'missing.txt' cannot be read"),
        (("examples", "{edits}"), "1 edits with a paraphrase and a probe"),
        (("export", "--format", "patch", "--to", "new"), "No edit is named"),
        (("export", "--format", "peft", "--to", "new", "--patch", "nope"), "There is no patch 'nope'"),
        (("export", "--format", "report", "--to", "{full}", "--patch", "{full}"), "is not empty"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_opened(run, words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "load", lambda name, **options: pytest.fail("a model was opened"))
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"prompt": "It is", "target_new": "so", "paraphrases": ["So it is"], "probes": ["They are"]}\n')
    names = {"{edits}": str(edits), "{full}": str(tmp_path)}
    code, text, error = run(*(names.get(word, word) for word in words))
    assert code == 2 and message in error and not text.strip()


def test_where_there_is_no_patch_those_beside_it_are_named(run, tmp_path):
    for name, file in (("one", "patch.json"), ("two", "stack.json"), ("three", "adapter_config.json"), ("four", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    code, _, error = run("probe", "It is", "--patch", str(tmp_path / "nope"))
    beside = ", ".join(str(tmp_path / name) for name in ("one", "three", "two"))
    assert code == 2 and f"Saved there: {beside}." in error


def test_failure_ends_with_code_1(run, tmp_path):
    code, text, error = run("probe", "It is", "--patch", str(tmp_path))
    assert code == 1 and "damaged or incomplete" in error and not text


def test_bench_prints_one_row_for_each_method(run, tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"prompt": "It is", "target_new": "so"}\n{"prompt": "It <|endoftext|>", "target_new": "so"}\n')
    code, text, said = run(
        "bench", "--method", "ft,ft-l", "--method", "FT", "--cases", str(cases), "--set", "steps=2", "--json"
    )
    table = json.loads(text)
    assert code == 0 and [(r["method"], r["edits"], len(r["failures"])) for r in table["rows"]] == [
        ("ft", 1, 1), ("ft-l", 1, 1),
    ]  # fmt: skip
    assert set(table["rows"][0]["scores"]) >= SCORES and table["rows"][0]["seconds"] > 0
    assert said.startswith("2 edits read: JSON lines, our own field names.")


def test_bench_over_all_methods_has_a_row_for_each(run, tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"prompt": "It <|endoftext|>", "target_new": "so"}\n')
    code, text, _ = run("bench", "--method", "all", "--cases", str(cases), "--json")
    assert code == 0 and [r["method"] for r in json.loads(text)["rows"]] == [m.name for m in METHODS]


def test_an_editor_is_trained_and_then_used(run, tmp_path):
    edits = tmp_path / "edits.jsonl"
    edits.write_text("".join(
        json.dumps({"prompt": f"Town {i} lies in", "target_new": "Peru", "probes": [f"River {i} is"]}) + "\n"
        for i in range(24)
    ))  # fmt: skip
    words = ("--edits", str(edits), "--steps", "2", "--batch", "2", "--work", str(tmp_path / "work"), "--json")
    try:
        code, out, _ = run("train", "mend", "--layer", "1", *words)
        made = json.loads(out)
        assert (code, made["method"], made["examples"]) == (0, "mend", "edits.jsonl")
        assert Path(made["path"]).is_file() and Path(made["path"]).is_relative_to(tmp_path / "home")
        code, out, _ = run("edit", "--method", "mend", "-p", "Town 2 lies in", "-t", "Peru", "--json")
        assert (code, json.loads(out)["method"]) == (0, "mend")
    finally:
        for kind in ("editor", "ready"):  # the tiny model is shared
            models.handle("gpt2").memory.pop((kind, "mend"), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "rome"), "rome needs no training. These methods do: mend, malmen, enn, ke, serac."),
        (("train", "mend"), "There are no examples to train mend"),
        (("train", "mend", "--edits", "absent.jsonl"), "There is no file 'absent.jsonl'"),
        (("edit", "-p", "Rome is in", "-t", "Peru", "--method", "enn"), "Run `editcore train enn --model"),
        (("corpus", "absent.txt"), "'absent.txt' cannot be read"),
        (("examples", "absent.jsonl"), "There is no file 'absent.jsonl'"),
    ],
)
def test_what_cannot_be_prepared_is_said_with_the_command(run, words, message):
    code, _, err = run(*words)
    assert code == 2 and message in err


def test_a_text_is_kept_for_a_model(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A line about nothing much.\n" * 30)
    code, out, _ = run("corpus", str(text), "--json")
    assert code == 0 and Path(json.loads(out)["path"]).read_text().startswith("A line")


def test_methods_lists_the_menu_with_every_setting(run):
    code, text, _ = run("methods", "--json")
    assert code == 0 and [m["name"] for m in json.loads(text)] == [m.name for m in METHODS]
    assert all(s["help"] for m in json.loads(text) for s in m["settings"])


def test_methods_says_which_of_them_cannot_edit_a_model_and_why(run, monkeypatch):
    monkeypatch.setattr(opening, "load", lambda name, **options: pairs.handle("t5"))
    code, text, _ = run("methods", "--model", "t5", "--json")
    problems = {m["name"]: m["problem"] for m in json.loads(text)}
    assert code == 0 and "encoder-decoder" in problems["rome"] and not problems["ft"]
    assert "it is an encoder-decoder" in run("methods", "--model", "t5")[1]


def test_doctor_answers(run):
    code, text, _ = run("doctor", "--json")
    assert code == 0 and {"editcore", "torch", "device", "embedded model"} <= set(json.loads(text))


def test_a_process_of_its_own_gives_the_same_codes():
    words = ["edit", "-p", "It is", "-t", "so", "--set", "steps"]
    done = subprocess.run(
        [sys.executable, "-m", "editcore.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "name=value" in done.stderr and "Traceback" not in done.stderr


def test_many_edits_are_made_together_and_each_is_reported(run, tmp_path):
    cases = tmp_path / "cases.jsonl"
    line = {"paraphrases": ["So it is"], "probes": ["They are"]}
    cases.write_text("".join(json.dumps({**line, "prompt": p, "target_new": "so"}) + "\n" for p in ("It is", "He is")))
    words = ("edit", "--cases", str(cases), "--method", "ft", "--set", "steps=2")
    code, text, _ = run(*words, "--save", str(tmp_path / "many"), "--json")
    told = json.loads(text)
    assert code == 0 and [e["request"]["prompt"] for e in told["edits"]] == ["It is", "He is"]
    assert set(told) == {"model", "method", "settings", "patch", "seconds", "scores", "edits"}
    assert (tmp_path / "many" / "patch.json").exists() and told["scores"]["locality"] is not None
    code, text, _ = run(*words)
    assert code == 0 and text.count("paraphrases") == 2 and "reliability" in text


def test_a_list_that_asks_one_question_twice_is_refused_by_row(run, tmp_path):
    cases = tmp_path / "cases.jsonl"
    rows = [("It is", "so"), ("He is", "old"), ("it is", "bad")]
    cases.write_text("".join(json.dumps({"prompt": p, "target_new": t}) + "\n" for p, t in rows))
    code, text, error = run("edit", "--cases", str(cases), "--method", "ft")
    assert code == 2 and "Rows 1 and 3" in error and "'so', 'bad'" in error and not text


def test_lines_about_long_work_give_each_stage_its_own_pace(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 30.0, 60.0, 61.0, 90.0, 120.0])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    advance = terminal._lines("rome")
    for done, total, note in (
        (1, 9, "a"), (4, 9, "a"), (9, 9, "a"), (0, 3, "b"), (1, 3, "b"), (3, 3, "b")
    ):  # fmt: skip
        advance(done, total, note)
    assert capsys.readouterr().err.splitlines() == [
        "rome 4/9 a, 50 s left", "rome 9/9 a", "rome 1/3 b, 58 s left", "rome 3/3 b",
    ]  # fmt: skip


def test_locate_prints_the_effect_by_layer_and_keeps_the_answer(run, tmp_path, monkeypatch):
    monkeypatch.setattr("editcore.locate.SURE", 0.0)
    monkeypatch.setattr("editcore.locate.HANGS", -9.0)
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"prompt": f"The river {n} is in", "subject": n, "target_new": "x"}) + "\n"
                             for n in ("Po", "Rhine", "Nile", "Seine", "Tiber", "Volga", "Elbe")))  # fmt: skip
    code, text, _ = run("locate", "--facts", str(facts), "--json")
    told = json.loads(text)
    assert code == 0 and told["facts"] == told["asked"] == 7 and len(told["effects"]) == models.LAYERS
    assert set(told) >= {"peak", "why", "methods", "source", "known", "path", "errors", "clean", "blurred", "window"}
    assert json.loads(Path(told["path"]).read_text())["source"] == told["source"]
    code, text, _ = run("locate", "--facts", str(facts), "--most", "2")
    assert code == 0 and "7 prompts, 7 the model is sure of, 2 traced" in text and "6 are needed" in text
    assert "rule of thumb" in text and "Kept in" in text
    code, _, told = run("locate", "--facts", str(tmp_path / "none.jsonl"))
    assert code == 2 and "There is no file" in told
