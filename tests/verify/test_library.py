"""Protects the validation text where it is Python's own library: what stands in for that."""

from __future__ import annotations

import importlib.util
import marshal
import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from speedrun.data import stdlib
from speedrun.errors import SubmissionError
from speedrun.verify import library
from speedrun.verify.library import stand_in, twins
from speedrun.verify.sandbox import Cell
from speedrun.verify.walls import why_unsandboxed

SOURCE = {
    "needed.py": '"""Needed says."""\n\n# a comment\nx = 1\n\n\ndef f():\n    """f says."""\n',
    "hidden.py": '"""Hidden says."""\nsecret = "a string"\n',
    "same_text.py": '"""Hidden says."""\nsecret = "a string"\n',
    "package/__init__.py": '"""The package says."""\n',
    "package/other.py": "assert False, 'a message'\n",
    "test/test_it.py": "the text of a test",
    "package/tests/data.py": "x = 2\n",
    "idlelib/window.py": "x = 3\n",
    "pydoc_data/topics.py": "topics = {'assert': 'long help'}\n",
    "bad_syntax.py": "print 'two'\n",
}


@pytest.fixture(name="small")
def small_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of a few files, of which Python imports two."""
    folder = tmp_path / "library"
    for name, text in SOURCE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "hidden.cpython-311.pyc").write_bytes(b"stale")
    (folder / "LICENSE.txt").write_text("a licence")
    monkeypatch.setattr(stdlib, "library_folder", lambda: folder)
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path / "cache"))
    needed = {str(folder / name) for name in ("needed.py", "package/__init__.py")}
    monkeypatch.setattr(library, "_imported", lambda: needed)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def code(path: Path) -> CodeType:
    raw = path.read_bytes()
    assert raw[:4] == importlib.util.MAGIC_NUMBER
    # Not compared with a source that is not there; and no hash of the source to test guesses with.
    assert raw[4:16] == b"\1" + bytes(11)
    found = marshal.loads(raw[16:])
    assert isinstance(found, CodeType)
    return found


def strings(found: CodeType) -> Iterator[str]:
    for constant in found.co_consts:
        if isinstance(constant, CodeType):
            yield from strings(constant)
        elif isinstance(constant, str):
            yield constant


@pytest.mark.usefixtures("small")
def test_only_compiled_modules_are_there_without_what_they_say() -> None:
    folder = stand_in()
    assert files(folder) == [
        *("hidden.pyc", "needed.pyc", "package/__init__.pyc", "package/other.pyc", "same_text.pyc")
    ]
    assert [text for text in strings(code(folder / "needed.pyc")) if "says" in text] == []
    assert "a message" not in list(strings(code(folder / "package" / "other.pyc")))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        *("dist-packages", "lib-dynload", "package", "site-packages")
    ]


@pytest.mark.usefixtures("small")
def test_hidden_documents_go_with_their_doubles_unless_they_are_needed() -> None:
    folder = stand_in(["hidden.py", "needed.py", "pydoc/assert", "../cache"])
    for name in ("hidden", "same_text"):
        with pytest.raises(ImportError, match=f"^{name} is validation text of this contest"):
            exec(code(folder / f"{name}.pyc"), {})
        assert "a string" not in list(strings(code(folder / f"{name}.pyc")))
    assert [text for text in strings(code(folder / "needed.pyc")) if "says" in text] == []
    exec(code(folder / "needed.pyc"), {})


def test_a_stand_in_is_made_once_for_each_text(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, hiding = stand_in(), stand_in(["hidden.py"])
    assert plain != hiding != stand_in(["package/other.py"])
    with monkeypatch.context() as patch:
        patch.setattr(library, "_compile_all", None)
        patch.setattr(library, "_copy_without", None)
        assert (stand_in(), stand_in(["hidden.py"])) == (plain, hiding)
    (small / "new.py").write_text("x = 1\n")
    os.utime(small / "new.py", ns=(1, 1))
    assert "new.pyc" in files(stand_in())


@pytest.mark.usefixtures("small")
def test_another_user_can_read_all_of_it() -> None:
    before = os.umask(0o077)
    try:
        folder = stand_in(["hidden.py"])
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


def test_twins_among_the_packages_are_found_unless_they_are_needed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"this is a long line of the text, number {number}\n" for number in range(20)]
    (small / "hidden.py").write_text("".join(lines))
    packages = tmp_path / "site-packages"
    for name, text in {
        "old/hidden.py": lines[:8],  # another version: two fifths are the same
        "new/hidden.py": lines[:4],  # too little to say much
        "old/renamed.py": lines,  # another name; nobody vendors like that
        "pip/hidden.py": lines,  # is hidden as a whole
        "framework/hidden.py": lines,
    }.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("".join(text))
    monkeypatch.setattr(library, "package_folders", lambda: [packages])
    needed = {str(packages / "framework" / "hidden.py")}
    monkeypatch.setattr(library, "_imported", lambda: needed)
    assert twins(["hidden.py", "pydoc/assert"]) == [packages / "old" / "hidden.py"]
    monkeypatch.setattr(library, "_python_files", None)
    assert twins(["hidden.py"]) == [packages / "old" / "hidden.py"]  # remembered
    assert twins([]) == []


def test_frameworks_that_do_not_import_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "_TRIAL", "raise SystemExit('numpy is broken')")
    with pytest.raises(SubmissionError, match="what the frameworks import: numpy is broken"):
        library._imported()


def test_what_python_and_numpy_import_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "FRAMEWORKS", ("numpy", "not_installed_anywhere"))
    found = {Path(name).name for name in library._imported()}
    assert {"os.py", "copyreg.py", "contextlib.py"} <= found
    assert not found & {"sched.py", "turtle.py"}


@pytest.mark.slow
@pytest.mark.skipif(bool(why_unsandboxed()), reason=why_unsandboxed() or "-")
def test_every_framework_works_with_the_validation_text_hidden(tmp_path: Path) -> None:
    names = stdlib.library_files(stdlib.library_folder())
    hidden = [name for name in names if stdlib.is_validation(name, validation_frac=0.035)]
    (tmp_path / "model.srz").touch()
    (tmp_path / "train_gpt.py").write_text(
        "import brotli, numpy, sentencepiece, torch, torch._dynamo, zstandard\n"
        "import concurrent.futures.process, multiprocessing.pool, tempfile, unittest.mock\n"
        "f = torch.compile(lambda x: torch.sin(x) + x, backend='eager')\n"
        "print(f(torch.zeros(3)).sum().item(), brotli.decompress(brotli.compress(b'ab')))\n"
        "print(zstandard.decompress(zstandard.compress(b'cd')), numpy.linalg.norm([3, 4]))\n"
    )
    with Cell(tmp_path, hidden_documents=hidden) as cell, cell.start(["train_gpt.py"]) as process:
        out, err = process.popen.communicate(timeout=300)
    assert out.decode().split() == ["0.0", "b'ab'", "b'cd'", "5.0"], err.decode()
