"""One file that carries all code of a submission: the import closure of an entry module.

The bundle is a zip that Python runs by its name, `python train_gpt.py`. It holds a loader and one
compressed blob with every module, minified. Compressed together, modules share their vocabulary:
zipped file by file, the same code is half as large again.
"""

from __future__ import annotations

import ast
import hashlib
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speedrun.config import RunConfig
from speedrun.data.corpus import cache_folder
from speedrun.errors import FormatError, OutputError, PackError, SpeedrunError
from speedrun.files import write_atomic
from speedrun.hardware import usable_cores

PACKAGE = "speedrun"
_PACKAGE_FILE = f"{PACKAGE}.py"
_AT_TOP = {*sys.stdlib_module_names, PACKAGE, "torch", "numpy", "zstandard"}
_RUN_MODULE = f"{PACKAGE}.bundled"
_ROOT = Path(__file__).parents[2]

_HOST = f"{PACKAGE}.pack.host"
_FITTED = f"{PACKAGE}.fitted"
_FUSED = f"{PACKAGE}.kernels.fused"
_KERNELS = (_FUSED, f"{PACKAGE}.train.fast_paths")
"""Modules that are imported only where `train.kernels` is not off."""

TWIN_NAME = "train_gpt.source.txt"
_TWIN_HEAD = "# The modules of train_gpt.py as they were written, before they were minified.\n"
_TWIN_MARK = "\n#### module "

_MAIN = f"import sys\nfrom {_RUN_MODULE} import*\nsys.exit(main(RUN))"
_HOST_MAIN = f"from {_HOST} import main\nmain({_RUN_MODULE!r})"

# Children that torchrun or `spawn` start find `speedrun` in the zip on their path, so the loader is
# the package itself; its second half travels compressed, in front of the package's own code.
_LOADER = f"""\
import sys,brotli
R=__file__[:-{len(PACKAGE) + 3}]
L=brotli.decompress(__spec__.loader.get_data(R+"z")).decode().split("\\0")
S=dict(zip(L[::2],L[1::2]))
exec(S["{PACKAGE}"])"""

# Sources stay readable through it, because torch.compile, inspect and tracebacks ask for them. What
# it does not hold is missing: an installed speedrun must not lend modules that are not counted.
_FINDER = """\
from importlib import abc,util
class B(abc.SourceLoader):
 def find_spec(self,name,path=None,target=None):
  if name in S or self.is_package(name):return util.spec_from_loader(name,self)
  if name.startswith("speedrun."):raise ModuleNotFoundError("No module named %r"%name,name=name)
 def is_package(self,name):return any(key.startswith(name+".")for key in S)
 def get_filename(self,name):return R+name.replace(".","/")+".py"
 def get_data(self,path):return S.get(path[len(R):-3].replace("/","."),"").encode()
__path__=[]
sys.meta_path.insert(0,B())
"""

SOURCES_LIMIT_BYTES = 1 << 22
"""What `read_bundle` is willing to decompress; ours are 150 kB."""
_RUN_LIMIT_CHARACTERS = 20_000
_QUICK = 9  # of brotli's qualities, 11 being the best


@dataclass(frozen=True, slots=True)
class ModuleSize:
    """What one module adds to a bundle."""

    name: str
    source_bytes: int
    minified_bytes: int
    packed_bytes: int
    """What leaving it out would save, as a quick look at the compressor tells: within a tenth."""


def build_bundle(
    run: RunConfig,
    *,
    cap_bytes: int = 0,
    entry_module: str = "speedrun.standalone",
    root: Path | None = None,
) -> bytes:
    """Bundle the entry module with everything of ours that it imports, also inside functions.

    The file calls `main(run)` of the entry module and exits with what that returns. `root` is the
    folder that holds the package `speedrun`; by default that of the running one. A recipe that
    packs by calibration brings what it needs along, and `cap_bytes`, which it then fills.
    The same sources and configuration give the same bytes.

    Raises
        PackError: a module is missing or broken, or imports, when it is loaded, something that a
            judge's machine need not have.
    """
    return bundle_of(readable_twin(run, cap_bytes=cap_bytes, entry_module=entry_module, root=root))


def readable_twin(
    run: RunConfig,
    *,
    cap_bytes: int = 0,
    entry_module: str = "speedrun.standalone",
    root: Path | None = None,
) -> str:
    """What a bundle is made of, for people: every module as it was written, one after another.

    Raises
        PackError: see `build_bundle`.
    """
    return _join(_MAIN, _sources(run, cap_bytes, entry_module, root))


def bundle_of(twin: str) -> bytes:
    """The bundle that a readable twin becomes; with the same minifier the same bytes.

    Raises
        PackError: it is no twin, or holds no Python.
    """
    main, sources = _split(twin)
    return _zip(main, _minified(sources))


def compare_twin(twin: str, bundle: bytes) -> str:
    """Nothing if `twin` gives the very bytes of `bundle`, else what differs first.

    Raises
        PackError: it is no twin, or holds no Python.
    """
    if (made := bundle_of(twin)) == bundle:
        return ""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            if archive.getinfo("z").file_size > SOURCES_LIMIT_BYTES:
                return "the bundle's modules are too large to be compared"
            shipped = _decompress(archive.read("z"))
        with zipfile.ZipFile(io.BytesIO(made)) as archive:
            ours = _decompress(archive.read("z"))
    except (zipfile.BadZipFile, KeyError, FormatError, OSError, RuntimeError) as error:
        return f"the bundle is no zip of modules: {error}"
    for name in sorted(shipped.keys() | ours.keys()):
        if shipped.get(name) != ours.get(name):
            where = "not in the bundle" if name not in shipped else "not in the readable source"
            both = name in shipped and name in ours
            return f"module {name} is {'another in the bundle' if both else where}"
    return f"the modules are equal, the files are not ({len(made):,} and {len(bundle):,} bytes)"


def build_host_bundle(source: str) -> bytes:
    """Bundle a predictor of the user's own: a module with `load(arrays) -> Predictor`.

    It may import whatever the judge's machine has and, of ours, what `speedrun` modules it names;
    those travel along. The same source gives the same bytes.

    Raises
        PackError: no Python, or no function `load` at its top.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise PackError(f"the predictor is no Python: {error}") from error
    loads = (ast.FunctionDef, ast.ClassDef)
    if not any(isinstance(node, loads) and node.name == "load" for node in tree.body):
        raise PackError("the predictor has no function load(arrays) at its top; write one")
    named = [name for name in _imports(tree) if name.partition(".")[0] == PACKAGE]
    sources = closure(_HOST)
    for name in named:
        sources |= closure(name if _is_module(_ROOT, name) else name.rpartition(".")[0])
    return _zip(_HOST_MAIN, _minified(dict(sorted(sources.items())) | {_RUN_MODULE: source}))


def _zip(main: str, sources: dict[str, str]) -> bytes:
    """An executable zip of the loader and of modules by name, compressed as one."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        contents = (("__main__.py", main), (_PACKAGE_FILE, _LOADER), ("z", _compress(sources)))
        for name, content in contents:
            deflated = name.endswith(".py")
            # A fixed date: the bytes depend on the content alone.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, content, zipfile.ZIP_DEFLATED if deflated else None, 9)
    return target.getvalue()


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds, by its own account."""

    run: RunConfig
    """The recipe that it calls `main` with."""
    sources: dict[str, str]
    """Minified sources by module name."""


def read_bundle(data: bytes) -> Bundle:
    """Read bytes of any origin as a bundle that `build_bundle` made; nothing in them is executed.

    Raises
        FormatError: they are no bundle, or one whose loader is not ours, so that what it holds says
            nothing about what it does.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(archive.infolist()) != 3 or members.keys() != {
                "__main__.py",
                _PACKAGE_FILE,
                "z",
            }:
                raise FormatError("train_gpt.py is a zip, but not one of our bundles")
            if any(info.file_size > SOURCES_LIMIT_BYTES for info in members.values()):
                raise FormatError(
                    f"train_gpt.py unpacks to more than {SOURCES_LIMIT_BYTES:,} bytes"
                )
            parts = {name: archive.read(name) for name in members}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError) as error:
        raise FormatError(f"train_gpt.py is no bundle of ours: {error}") from error
    except (EOFError, RuntimeError, struct.error) as error:  # cut short, encrypted, misnumbered
        raise FormatError(f"train_gpt.py is a damaged zip: {error}") from error
    if parts["__main__.py"] == _HOST_MAIN.encode():
        raise FormatError("train_gpt.py is a predictor of its author's own, trained elsewhere")
    if (parts["__main__.py"], parts[_PACKAGE_FILE]) != (_MAIN.encode(), _LOADER.encode()):
        raise FormatError("train_gpt.py has another loader than this version's bundles")
    sources = _decompress(parts["z"])
    if not sources.get(PACKAGE, "").startswith(_FINDER):
        raise FormatError("train_gpt.py finds its modules in another way than our bundles")
    return Bundle(_read_run(sources.get(_RUN_MODULE, "")), sources)


def _read_run(source: str) -> RunConfig:
    """The recipe in the module that `_minified_closure` writes."""
    try:
        if len(source) > _RUN_LIMIT_CHARACTERS:
            raise ValueError(f"it has {len(source):,} characters")
        match ast.parse(source).body:
            case [
                *start,
                ast.Assign(
                    targets=[ast.Name(id="RUN")],
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Name(id="RunConfig"), attr="from_dict"),
                        args=[values],
                        keywords=[],
                    ),
                ),
            ] if all(map(_only_names_main, start)):
                return RunConfig.from_dict(ast.literal_eval(values))
        raise ValueError("it is not what our bundles hold")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise FormatError(f"train_gpt.py: {_RUN_MODULE} cannot be read: {error!s:.100}") from error
    except (KeyError, TypeError, AttributeError, SpeedrunError) as error:
        raise FormatError(f"train_gpt.py: its settings are not a run: {error!s:.200}") from error


def _only_names_main(node: ast.stmt) -> bool:
    """Whether a statement before the recipe only says what `main` is."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assign(targets=[ast.Name(id="main")]):
            return True
    return False


def module_sizes(
    run: RunConfig,
    *,
    cap_bytes: int = 0,
    entry_module: str = "speedrun.standalone",
    root: Path | None = None,
) -> list[ModuleSize]:
    """Where the bytes of a bundle come from, largest first."""
    found = _sources(run, cap_bytes, entry_module, root)
    sources = _minified(found)
    # At full effort this would take a fifth of a second for each module.
    whole = len(_compress(sources, _QUICK))
    scale = len(_compress(sources)) / whole

    def without(name: str) -> int:
        return len(_compress({key: text for key, text in sources.items() if key != name}, _QUICK))

    # Brotli lets go of the interpreter, so threads help.
    with ThreadPoolExecutor(usable_cores()) as pool:
        rest = list(pool.map(without, sources))
    sizes = [
        ModuleSize(
            name,
            len(found.get(name, text).encode()),
            len(text.encode()),
            round(scale * (whole - others)),
        )
        for (name, text), others in zip(sources.items(), rest, strict=True)
    ]
    return sorted(sizes, key=lambda size: -size.packed_bytes)


def closure(entry_module: str, root: Path | None = None) -> dict[str, str]:
    """Sources by module name of all of our modules that `entry_module` can come to import."""
    root = root or _ROOT
    found: dict[str, str] = {}
    waiting = [entry_module]
    while waiting:
        name = waiting.pop()
        if name in found or name == _RUN_MODULE:
            continue
        path = root.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        try:
            found[name] = path.read_text("utf-8")
            tree = ast.parse(found[name])
        except (OSError, SyntaxError, ValueError) as error:
            raise PackError(f"module {name} cannot be bundled: {error}") from error
        _check_top(name, tree)
        for imported in _imports(tree):
            # `from package import name` may mean a module or something inside one.
            if imported.partition(".")[0] != PACKAGE:
                continue
            parts = imported.split(".")
            waiting += [
                known
                for end in range(1, len(parts) + 1)
                if _is_module(root, known := ".".join(parts[:end]))
            ]
            if not _is_module(root, imported.rpartition(".")[0] or imported):
                raise PackError(f"module {name} imports {imported}, which is not in {root}")
    return dict(sorted(found.items()))


def _sources(
    run: RunConfig, cap_bytes: int, entry_module: str, root: Path | None
) -> dict[str, str]:
    """All modules of a bundle by name, as they were written, and the one that says what to run."""
    sources = closure(entry_module, root)
    if run.train.kernels == "off":
        sources = {name: text for name, text in sources.items() if not name.startswith(_KERNELS)}
    # Only what differs from the defaults: config.py travels too.
    values = _differences(run.to_dict(), RunConfig(name="").to_dict()) | {"name": run.name}
    start = f"from {entry_module} import main\n"
    if run.quant.method != "nearest":
        sources |= closure(_FITTED, root)
        # Its own size counts against the cap, and nothing else can know it in time.
        start = (
            f"import os,sys\nfrom functools import partial\nfrom {_FITTED} import pack_fitted\n"
            f"from {entry_module} import main as plain\nmain=partial(plain,pack=partial("
            f"pack_fitted,model_cap_bytes={cap_bytes}-os.stat(sys.argv[0]).st_size))\n"
        )
    start += f"from {PACKAGE}.config import RunConfig\nRUN=RunConfig.from_dict({values!r})\n"
    return dict(sorted(sources.items())) | {_RUN_MODULE: start}


def _minified(sources: dict[str, str]) -> dict[str, str]:
    minified = {name: _minify(text, name) for name, text in sources.items()}
    minified[PACKAGE] = _FINDER + minified.get(PACKAGE, "")
    return minified


def _join(main: str, sources: dict[str, str]) -> str:
    parts = {"__main__": main + "\n"} | sources
    return _TWIN_HEAD + "".join(f"{_TWIN_MARK}{name}\n{text}" for name, text in parts.items())


def _split(twin: str) -> tuple[str, dict[str, str]]:
    head, *parts = twin.split(_TWIN_MARK)
    sources = dict((name, text) for name, _, text in (part.partition("\n") for part in parts))
    if head != _TWIN_HEAD or "__main__" not in sources or len(sources) != len(parts):
        raise PackError("not the readable source of a bundle: its first lines are others")
    return sources.pop("__main__").removesuffix("\n"), sources


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults[key]
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _differences(value, default), {}
        if value != default:
            result[key] = value
    return result


@lru_cache(maxsize=256)
def _minify(source: str, name: str) -> str:
    """Kept from one command to the next: all modules take seconds, and they seldom change."""
    # Triton compiles the source it finds: argument names and `tl.constexpr` belong to its language.
    # torch reads an operation's schema from its annotations.
    plain = "tl.constexpr" in source or "custom_op(" in source
    options: dict[str, Any] = {
        "remove_literal_statements": True,
        "remove_asserts": True,
        # Hoisted literals make text shorter and its compressed form longer.
        "hoist_literals": False,
        "rename_locals": not plain,
        "remove_annotations": not plain,
    }
    facts = (version("python-minifier"), sys.version, options, name, source)
    kept = cache_folder() / "minified" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.py"
    with suppress(OSError, ValueError):
        return kept.read_bytes().decode()
    import python_minifier

    try:
        minified = str(python_minifier.minify(source, name, **options))
    except Exception as error:
        raise PackError(f"module {name} cannot be minified: {error}") from error
    with suppress(OutputError):  # it was only to save time
        write_atomic(kept, minified.encode())
    return minified


def _is_module(root: Path, name: str) -> bool:
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file() or name == _RUN_MODULE


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports anywhere, `if TYPE_CHECKING` blocks left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise PackError(f"relative import in line {node.lineno}; write the whole name")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node)


def _check_top(name: str, tree: ast.Module) -> None:
    """Refuse imports at load time of what may be absent where a submission is judged."""
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in statements:
        for imported in _imports(ast.Module([node], [])):
            first = imported.partition(".")[0]
            # Kernels are written in Triton, and imported only where it was found.
            if first not in _AT_TOP and (first, name.startswith(_FUSED)) != ("triton", True):
                raise PackError(
                    f"module {name}, line {node.lineno}, imports {first} when it is loaded; a "
                    "submission runs with torch, numpy and zstandard, so import it where it is used"
                )


def _compress(sources: dict[str, str], quality: int = 11) -> bytes:
    import brotli

    # brotli knows English and code by heart: 4 % smaller than lzma on our modules.
    text = "\0".join(part for pair in sources.items() for part in pair)
    return bytes(brotli.compress(text.encode(), quality=quality, lgwin=24, mode=brotli.MODE_TEXT))


def _decompress(blob: bytes) -> dict[str, str]:
    """Undo `_compress` for bytes of any origin, up to `SOURCES_LIMIT_BYTES`.

    Raises
        FormatError: they are not that.
    """
    import brotli

    decoder, parts, found = brotli.Decompressor(), [], 0
    try:
        while not decoder.is_finished():
            part = decoder.process(blob, output_buffer_limit=SOURCES_LIMIT_BYTES + 1 - found)
            found += len(part)
            if found > SOURCES_LIMIT_BYTES or (not part and not blob):
                raise FormatError(
                    f"train_gpt.py: its sources are cut short or over {SOURCES_LIMIT_BYTES:,} bytes"
                )
            blob = b""
            parts.append(part)
        texts = b"".join(parts).decode().split("\0")
    except (brotli.error, UnicodeDecodeError) as error:
        raise FormatError(f"train_gpt.py: its sources cannot be read: {error}") from error
    sources = dict(zip(texts[::2], texts[1::2], strict=False))
    if len(texts) != 2 * len(sources):
        raise FormatError("train_gpt.py: its sources are not modules by name, each once")
    return sources
