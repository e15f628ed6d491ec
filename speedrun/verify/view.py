"""What a judged process can see of this machine, as arguments of bubblewrap.

Everything is read-only and named here; what is not named is not there. Shared libraries, a compiler
and the Python that runs are shown, with `library.stand_in` in place of Python's own library. Home
folders, data sets, other Pythons and other programs' private libraries are not.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from speedrun.data import stdlib
from speedrun.verify.library import EMPTY, TOOLS, package_folders

# A GPU's driver looks at much of /sys; without one, the processor's shape is enough.
_SYS, _SYS_OF_A_PROCESSOR = ("/sys",), ("/sys/devices/system/cpu", "/sys/devices/system/node")
_SYSTEM = (
    *("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/include", "/usr/libexec/gcc"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *("/usr/share/zoneinfo", "/usr/local/cuda", "/usr/local/nvidia", "/nix/store"),
)
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64")
# Folders below a library folder that hold what programs and compilers link to. All others belong
# to one program each, and some bring a Python library of their own.
_LINKED = re.compile(r".*-linux-.*|gcc.*|locale|bfd-plugins|gconv|cuda.*|nvidia.*|wsl|blas|lapack")
# Settings of the kernel that belong to root, who may be the one that runs the judge.
_KERNEL = ("/proc/sys", "/proc/sysrq-trigger")


def show(path: Path, *, inside: str = "", option: str = "--ro-bind") -> list[str]:
    """Three arguments that show `path`, as a link where it is one; none if it is not there."""
    if path.is_symlink() and not inside:
        return ["--symlink", str(path.readlink()), str(path)]
    return [option, str(path), inside or str(path)] if path.exists() else []


def machine(
    stand_in: Path,
    *,
    devices: Sequence[str] = (),
    blanked: Sequence[Path] = (),
    readable: Mapping[str, Path] | None = None,
    writable: Mapping[str, Path] | None = None,
) -> list[str]:
    """Arguments that show this machine's system and Python, and what else is named.

    Args:
        stand_in: From `library.stand_in`.
        devices: Device files.
        blanked: Files to show without content, from `library.twins`.
        readable: More files and folders, by the path where they are shown.
        writable: Folders that can be written to, by the path where they are shown.
    """
    arguments = list(_machine(stand_in))
    for inside, path in (readable or {}).items():
        arguments += show(path.resolve(), inside=inside)
    for inside, path in (writable or {}).items():
        arguments += show(path.resolve(), inside=inside, option="--bind")
    for file in blanked:
        arguments += show(Path("/dev/null"), inside=str(file))
    for name in _SYS if devices else _SYS_OF_A_PROCESSOR:
        arguments += show(Path(name))
    for device in devices:
        arguments += show(Path(device), inside=device, option="--dev-bind")
    return [*_folders({Path(place) for place in arguments[2::3]}), *arguments]


def _folders(places: set[Path]) -> list[str]:
    """Folders on the way to what is shown: left to root, bubblewrap would close them to others."""
    above = {parent for place in places for parent in place.parents if parent != Path("/")}
    made = [folder for folder in sorted(above) if not places & {folder, *folder.parents}]
    return [word for folder in made for word in ("--perms", "0755", "--dir", str(folder))]


@functools.lru_cache(maxsize=8)
def _machine(stand_in: Path) -> tuple[str, ...]:
    arguments = []
    for name in _KERNEL:
        arguments += show(Path(name))
    for name in _SYSTEM:
        arguments += show(Path(name))
    for name in _LIBRARIES:
        arguments += _show_libraries(Path(name), stand_in)
    for prefix in _prefixes():
        arguments += _show_prefix(prefix, stand_in)
    arguments += _show_library(stand_in)
    return tuple(arguments)


def _prefixes() -> list[Path]:
    """Where this Python is installed, and the virtual environment that it runs in."""
    program = Path(sys.executable)
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), program.resolve().parent.parent}
    prefixes |= {prefix.resolve() for prefix in prefixes}
    return sorted(prefixes - {Path("/"), Path("/usr")})


def _places(path: Path) -> list[Path]:
    """Where a path lies, also by its own name unless a link that is shown leads there."""
    linked = any(path.is_relative_to(p) for p in _prefixes() if p.is_symlink())
    return sorted({path.resolve()} if linked else {path, path.resolve()})


def _sites() -> list[Path]:
    return [place for folder in package_folders() for place in _places(folder)]


def _show_prefix(prefix: Path, stand_in: Path) -> list[str]:
    if prefix.is_symlink():
        return show(prefix)
    arguments = [*show(prefix / "pyvenv.cfg"), *show(prefix / "include")]
    for program in sorted(prefix.glob("bin/python*")):
        arguments += show(program)
    for name in ("lib", "lib64"):
        arguments += _show_libraries(prefix / name, stand_in)
    return arguments


def _show_libraries(folder: Path, stand_in: Path) -> list[str]:
    """A folder with shared libraries, without the private folders beside them."""
    arguments = show(folder)
    if folder.is_symlink() or not folder.is_dir():
        return arguments
    wanted = [*_sites(), *_places(stdlib.library_folder())]
    for path in sorted(folder.iterdir()):
        private = path.is_dir() and not path.is_symlink() and not _LINKED.fullmatch(path.name)
        if private and not any(place.is_relative_to(path) for place in wanted):
            arguments += show(stand_in / EMPTY, inside=str(path))
    for archive in sorted([*folder.glob("libpython*.a"), *folder.glob("*/libpython*.a")]):
        if not archive.is_symlink():
            arguments += show(Path("/dev/null"), inside=str(archive))
    return arguments


def _show_library(stand_in: Path) -> list[str]:
    """The stand-in, with extension modules and installed packages in their places."""
    arguments = []
    for library in _places(stdlib.library_folder()):
        arguments += show(stand_in, inside=str(library))
        arguments += show(library / "lib-dynload", inside=str(library / "lib-dynload"))
    for path in sorted(Path("/nix/store").glob("*/lib/python*/os.py")):
        if path.parent != stdlib.library_folder().resolve():
            arguments += show(stand_in / EMPTY, inside=str(path.parent))
    for folder in _sites():
        arguments += show(folder, inside=str(folder))
        for name in TOOLS:
            if (folder / name).is_dir():
                arguments += show(stand_in / EMPTY, inside=str(folder / name))
    return arguments
