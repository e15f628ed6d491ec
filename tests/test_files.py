"""Files are whole or absent, whatever stops the writer; errors name the path and the remedy."""

import errno
import os
from pathlib import Path

import pytest

from speedrun.errors import OutputError
from speedrun.files import atomic_path, sha256_file, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_parents_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"abc")
    write_atomic(path, b"abcd")
    assert path.read_bytes() == b"abcd"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_writer_leaves_the_old_file(tmp_path, stop):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")
    with pytest.raises(stop), atomic_path(path) as temporary:
        temporary.write_bytes(b"new, half")
        raise stop
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_full_disk_while_writing_is_an_output_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = tmp_path / "file.bin"
    with (
        pytest.raises(
            OutputError, match=r"cannot write .*file\.bin: No space left.*free some space"
        ),
        atomic_path(path) as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 10_000)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_at_fsync_is_an_output_error(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomic(tmp_path / "file.bin", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"file\.bin: No space left"):
        write_atomic(tmp_path / "file.bin", b"new")
    assert (tmp_path / "file.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_a_file_in_the_way_of_a_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cannot write .*choose"):
        write_atomic(tmp_path / "file" / "child", b"")


def test_an_unwritable_folder_is_an_output_error(tmp_path, monkeypatch):
    def refuse(self: Path, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)  # root may write anywhere, so simulate
    with pytest.raises(
        OutputError, match="Permission denied; choose a folder that you may write to"
    ):
        write_atomic(tmp_path / "file", b"")


def test_an_error_about_a_file_that_is_read_is_not_an_output_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out") as temporary:
        temporary.write_bytes((tmp_path / "absent").read_bytes())


def test_a_folder_takes_its_name_whole(tmp_path):
    with atomic_path(tmp_path / "folder") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "file").write_bytes(b"x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "sub" / "file").read_bytes() == b"x"
    with (
        pytest.raises(OutputError, match="a folder with content has this name"),
        atomic_path(tmp_path / "folder") as temporary,
    ):
        temporary.mkdir()
    assert names(tmp_path) == ["folder"]


def test_sha256_of_a_known_file(tmp_path):
    write_atomic(tmp_path / "abc", b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
