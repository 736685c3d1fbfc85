"""The walls of the house: who may import whom, read off the source and off a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = {"streamlit", "plotly", "pandas"}
MODEL = {"torch", "transformers", "safetensors", "tokenizers", "accelerate"}
LIGHT = (
    "editcore.records", "editcore.errors", "editcore.gate", "editcore.suggest", "editcore.engine", "editcore.assets",
    "editcore.world.facts", "editcore.world.text", "editcore.engine.menu",
    "editcore.cases", "editcore.course", "editcore.remade",
)  # fmt: skip
FILES = sorted([*(ROOT / "editcore").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")])


def imported(file: Path) -> set[str]:
    """Top-level names of every import in the file, also of those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nobody_imports_past_the_walls(file):
    names = imported(file)
    if "editcore" in file.relative_to(ROOT).parts[0]:
        assert not names & PAGE
        assert "dashboard" not in names or file.name == "cli.py"
    else:
        assert not names & MODEL
    if file.name == "charts.py":
        assert "streamlit" not in names


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_module_opens_with_its_promise_and_stays_readable(file):
    text = file.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 450
    assert max(map(len, text.splitlines()), default=0) <= 160


def test_light_modules_load_no_model_library():
    code = (
        f"import importlib, sys\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
        f"    assert not {MODEL | PAGE!r} & set(sys.modules), name\n"
        "from editcore.engine import LocalEngine, menu\nmenu.method_menu()\n"
        f"assert not {MODEL!r} & set(sys.modules)\nprint('light')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "light", done.stderr


def test_the_command_line_starts_without_torch():
    code = "import sys, editcore.cli; print(sorted({'torch', 'transformers', 'streamlit'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_module_can_be_the_first_to_be_imported():
    """A circle of imports works from one end only: each module is tried in a fresh copy of the process."""
    code = """
import importlib, os, pathlib, sys
root, failed = pathlib.Path("editcore"), []
files = sorted(set(root.rglob("*.py")) - set(root.rglob("migrations/**/*.py")))  # those are Alembic's to run
names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "editcore"]:
    del sys.modules[name]  # what others wrote stays loaded, shared by all copies
for name in names:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed += [name] * bool(os.waitpid(child, 0)[1])
print(failed)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
