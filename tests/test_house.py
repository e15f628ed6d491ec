"""Protects the house: who may import whom, what must explain itself, and a light `--help`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import speedrun

PACKAGE = Path(speedrun.__file__).parent

FLOORS = (
    {"errors", "__init__"},  # the ground: everybody stands on it
    {"clock", "ranks", "files", "settings", "units", "hardware", "stats"},
    {"config", "tracks", "corpora"},
    {"kernels", "recipes"},
    {"data", "model", "optim", "quant"},
    {"predict"},
    {"bpb"},
    {"train", "pack"},
    {"verify", "standalone", "fitted"},
    {"records", "measure"},
    {"pages"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A room imports itself and lower floors."""
CLOSED_DOORS = {
    ("verify", "train"): "the judge never trains",
    ("model", "ranks"): "a model never learns about ranks",
}


def _room(module: str) -> str:
    """`data` of `speedrun.data.shards`; `__init__` of `speedrun` itself."""
    return module.split(".")[1] if "." in module else "__init__"


def _floor(room: str) -> int:
    found = [height for height, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"{room} has no floor: give it one in FLOORS and in ARCHITECTURE.md"
    return found[0]


def _imports(path: Path, package: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of our own modules, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            # After `speedrun` alone come rooms, after a module come names.
            names = [f"{base}.{a.name}" for a in node.names] if base == "speedrun" else [base]
            names = ["speedrun" if name == "speedrun.__version__" else name for name in names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "speedrun":
                yield node, name


def _climbing(package: Path) -> list[str]:
    """Lines that import from their own floor or a higher one."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        here = parts[0]
        for node, module in _imports(path, package):
            there = _room(module)
            why = CLOSED_DOORS.get((here, there), "")
            if here != there and _floor(there) >= _floor(here):
                why = f"{there} is on floor {_floor(there)}, {here} on floor {_floor(here)}"
            if why:
                line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1].strip()
                wrong.append(f"{'/'.join(parts)}.py:{node.lineno}: {line}  # {why}")
    return wrong


def test_every_module_imports_from_lower_floors_only():
    assert _climbing(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "line", "why"),
    [
        ("verify/rules.py", "from speedrun.train.loop import train", "the judge never trains"),
        ("train/loop.py", "from speedrun.pack import weights", "pack is on floor"),
        ("model/gpt.py", "import speedrun.optim.muon", "optim is on floor"),
        ("clock.py", "from speedrun import settings", "settings is on floor"),
        ("records/table.py", "def f():\n    from speedrun.cli import main", "cli is on floor"),
    ],
    ids=["verify-train", "train-pack", "same-floor", "from-package", "in-a-function"],
)
def test_a_climbing_import_is_named_with_its_line(tmp_path, path, line, why):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(f'"""A room."""\n{line}\n')
    (found,) = _climbing(tmp_path)
    assert found.startswith(f"{path}:") and line.split("\n")[-1].strip() in found and why in found


def _undocumented(tree: ast.Module) -> Iterator[ast.AST]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    rooms: list[ast.Module | ast.ClassDef] = [tree]
    while rooms:
        room = rooms.pop()
        if ast.get_docstring(room) is None:
            yield room
        for node in room.body:
            if isinstance(node, kinds) and not node.name.startswith("_"):
                if isinstance(node, ast.ClassDef):
                    rooms.append(node)
                elif ast.get_docstring(node) is None:
                    yield node


def test_all_that_is_public_has_a_docstring():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)}: {getattr(node, 'name', '')}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in _undocumented(ast.parse(path.read_bytes()))
    ]
    assert wrong == []


def test_the_command_line_starts_without_heavy_modules():
    heavy = {"torch", "numpy", "scipy", "pydantic", "sentencepiece", "rich"}
    code = f"import speedrun.cli.main, sys; print(*{heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
