"""Protects the bundle: it carries what it needs, nothing else, and runs where `speedrun` is not."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import speedrun
from speedrun.config import ModelConfig, QuantConfig, RunConfig
from speedrun.errors import PackError
from speedrun.pack.bundle import (
    _minify,
    build_bundle,
    bundle_of,
    closure,
    compare_twin,
    module_sizes,
    read_bundle,
    readable_twin,
)

RUN = RunConfig(name="test/bundle", seed=7, model=ModelConfig(width=64))

FILES = {
    "__init__.py": '__version__ = "9.9"\n',
    "kernels/__init__.py": "",
    "kernels/square.py": '''
"""Squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def square(values: torch.Tensor) -> torch.Tensor:
    """A docstring that need not travel."""
    # Nor need a comment.
    return values * values
''',
    "worker.py": """
def work(queue):
    import sys
    queue.put([sys.modules["speedrun"].__file__, __file__])
""",
    "standalone.py": """
from __future__ import annotations

import inspect
import json
import multiprocessing
import sys
import traceback
from typing import TYPE_CHECKING

from speedrun.config import RunConfig
from speedrun.kernels import square as kernel

if TYPE_CHECKING:
    import pydantic
    from speedrun.absent import Nothing


def main(run: RunConfig) -> int:
    import speedrun
    from speedrun.worker import work

    def broken():
        raise ValueError("on purpose")

    facts = {"run": [run.name, run.seed, run.model.width], "arguments": sys.argv[1:]}
    facts["version"] = speedrun.__version__
    facts["source"] = inspect.getsource(kernel.square)
    try:
        broken()
    except ValueError:
        facts["trace"] = traceback.format_exc()
    try:
        import speedrun.verify
    except ModuleNotFoundError as error:
        facts["absent"] = str(error)
    if "compile" in sys.argv:
        import torch

        square = torch.compile(kernel.square, fullgraph=True, backend=sys.argv[2])
        facts["compiled"] = square(torch.tensor([1.0, 2.0, 3.0])).tolist()
    if "spawn" in sys.argv:
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=work, args=(queue,))
        child.start()
        facts["child"] = queue.get(timeout=60)
        child.join()
    found = (module for name, module in sys.modules.items() if name.split(".")[0] == "speedrun")
    facts["files"] = [module.__file__ for module in found]
    print(json.dumps(facts))
    return 3
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package named `speedrun`, with our own config, in a folder of its own."""
    root = tmp_path / "source"
    for name, text in FILES.items():
        (root / "speedrun" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "speedrun" / name).write_text(text)
    for name in ("config.py", "errors.py"):
        shutil.copy(Path(speedrun.__file__).with_name(name), root / "speedrun" / name)
    return root


def start(bundle: bytes, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle in a new interpreter, isolated from our folders and variables."""
    path = folder / "elsewhere" / "train_gpt.py"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bundle)
    return subprocess.run(
        [sys.executable, "-I", str(path), *arguments],
        cwd=path.parent,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def facts_of(result: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert result.returncode == 3, result.stderr
    return json.loads(result.stdout)


def test_bundle_runs_alone(package: Path, tmp_path: Path) -> None:
    facts = facts_of(start(build_bundle(RUN, root=package), tmp_path, "--x", "1"))
    assert facts["run"] == ["test/bundle", 7, 64]
    assert facts["arguments"] == ["--x", "1"]
    assert facts["version"] == "9.9"
    assert facts["absent"] == "No module named 'speedrun.verify'"
    inside = str(tmp_path / "elsewhere" / "train_gpt.py")
    assert all(file.startswith(inside) for file in facts["files"])


def test_sources_can_be_read_inside(package: Path, tmp_path: Path) -> None:
    facts = facts_of(start(build_bundle(RUN, root=package), tmp_path))
    assert facts["source"].startswith("def square(values)")
    assert "docstring" not in facts["source"]
    assert re.search(r"train_gpt\.py/speedrun/standalone\.py.*\n.*raise ValueError", facts["trace"])


def test_spawned_children_find_the_bundle(package: Path, tmp_path: Path) -> None:
    facts = facts_of(start(build_bundle(RUN, root=package), tmp_path, "spawn"))
    assert all("elsewhere/train_gpt.py" in file for file in facts["child"])


def test_torch_compile_works_inside(package: Path, tmp_path: Path) -> None:
    facts = facts_of(start(build_bundle(RUN, root=package), tmp_path, "compile", "eager"))
    assert facts["compiled"] == [1.0, 4.0, 9.0]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ on this machine")
def test_inductor_works_inside(package: Path, tmp_path: Path) -> None:
    facts = facts_of(start(build_bundle(RUN, root=package), tmp_path, "compile", "inductor"))
    assert facts["compiled"] == [1.0, 4.0, 9.0]


def test_closure_follows_imports_inside_functions(package: Path) -> None:
    assert list(closure("speedrun.standalone", package)) == [
        "speedrun",
        "speedrun.config",
        "speedrun.errors",
        "speedrun.kernels",
        "speedrun.kernels.square",
        "speedrun.standalone",
        "speedrun.worker",
    ]


def test_same_sources_same_bytes(package: Path) -> None:
    code = (
        "import hashlib, pathlib, sys; from speedrun.pack.bundle import *;"
        "bundle = build_bundle(RunConfig(name='a'), root=pathlib.Path(sys.argv[1]));"
        "print(hashlib.sha256(bundle).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(package)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(speedrun.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("import rich", "speedrun.worker, line 1, imports rich"),
        ("from speedrun.gone import x", "speedrun.worker imports speedrun.gone.x"),
        ("from . import config", "relative import in line 1"),
        ("def", "speedrun.worker cannot be bundled"),
    ],
)
def test_what_cannot_travel_is_named(package: Path, line: str, text: str) -> None:
    (package / "speedrun" / "worker.py").write_text(line)
    with pytest.raises(PackError, match=re.escape(text)):
        build_bundle(RUN, root=package)


def test_triton_kernels_keep_their_signatures(package: Path) -> None:
    kernel = "def kernel(pointer, BLOCK: tl.constexpr):\n    offsets = BLOCK\n    return offsets\n"
    expected = "def kernel(pointer,BLOCK:tl.constexpr):offsets=BLOCK;return offsets"
    assert _minify(kernel, "speedrun.kernels.some") == expected


def test_what_was_minified_is_kept_and_no_cache_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEEDRUN_CACHE", str(tmp_path))
    minify = _minify.__wrapped__  # what a process has seen is kept in memory, too
    first = minify("def some(number):\n    return number\n", "speedrun.some")
    (kept,) = (tmp_path / "minified").iterdir()
    assert kept.read_text() == first == "def some(number):return number"
    kept.write_text("other = 1")
    assert minify("def some(number):\n    return number\n", "speedrun.some") == "other = 1"
    assert minify("def some(number):\n    return 1\n", "speedrun.some").endswith("return 1")
    kept.write_bytes(b"\xff")
    assert minify("def some(number):\n    return number\n", "speedrun.some") == first
    monkeypatch.setenv("SPEEDRUN_CACHE", str(kept))  # a file: nothing can be kept below it
    assert minify("def some(number):\n    return number\n", "speedrun.some") == first


def test_minifying_keeps_the_annotations_that_torch_reads() -> None:
    operation = '@torch.library.custom_op("speedrun::some")\ndef some(x_NC: Tensor) -> Tensor:0\n'
    assert "def some(x_NC:Tensor)->Tensor:0" in _minify(operation, "speedrun.kernels.some")


def test_a_missing_entry_is_named(package: Path) -> None:
    with pytest.raises(PackError, match=r"speedrun\.nowhere"):
        build_bundle(RUN, entry_module="speedrun.nowhere", root=package)


def test_our_own_bundle_runs_and_is_small(tmp_path: Path) -> None:
    bundle = build_bundle(RUN)
    assert len(bundle) <= 40_000
    result = start(bundle, tmp_path, "--help")
    assert result.returncode == 0, result.stderr
    assert "--budget" in result.stdout


def test_sizes_name_every_module(package: Path) -> None:
    sizes = {size.name: size for size in module_sizes(RUN, root=package)}
    assert sizes["speedrun.config"].packed_bytes > sizes["speedrun.worker"].packed_bytes > 0
    assert sizes["speedrun.config"].source_bytes > sizes["speedrun.config"].minified_bytes


def test_the_readable_twin_gives_the_shipped_bytes(package: Path) -> None:
    twin = readable_twin(RUN, root=package)
    assert "# Nor need a comment." in twin and "A docstring that need not travel." in twin
    assert bundle_of(twin) == build_bundle(RUN, root=package)
    assert compare_twin(twin, build_bundle(RUN, root=package)) == ""


def test_a_bundle_that_says_something_else_is_named_by_its_module(package: Path) -> None:
    bundle = build_bundle(RUN, root=package)
    twin = readable_twin(RUN, root=package)
    other = twin.replace("return values * values", "return values * 2")
    assert "speedrun.kernels.square is another in the bundle" in compare_twin(other, bundle)
    more = twin + "\n#### module speedrun.spy\nimport os\n"
    assert "speedrun.spy is not in the bundle" in compare_twin(more, bundle)
    cut = twin.index("\n#### module speedrun.worker")
    less = twin[:cut] + twin[twin.index("\n#### module", cut + 1) :]
    assert "speedrun.worker is not in the readable source" in compare_twin(less, bundle)


@pytest.mark.parametrize("bundle", [b"", b"PK\x03\x04", b"print('hello')"])
def test_what_is_no_bundle_is_compared_without_an_exception(package: Path, bundle: bytes) -> None:
    assert "no zip of modules" in compare_twin(readable_twin(RUN, root=package), bundle)


@pytest.mark.parametrize("twin", ["", "import os\n", "# The modules\n#### module x\n"])
def test_what_is_no_twin_is_refused(twin: str) -> None:
    with pytest.raises(PackError, match="not the readable source"):
        bundle_of(twin)


def test_only_a_recipe_that_calibrates_ships_the_fit() -> None:
    fitted = dataclasses.replace(RUN, quant=QuantConfig(method="fit", calibration_s=1.0))
    bundle = build_bundle(fitted, cap_bytes=16_000_000)
    plain = read_bundle(build_bundle(RUN)).sources.keys()
    larger = read_bundle(bundle).sources.keys()
    ours = {
        "speedrun.fitted",
        "speedrun.pack.fit",
        "speedrun.quant.gptq",
        "speedrun.train.calibrate",
    }
    assert not ours & plain and ours < larger
    assert len(bundle) <= 50_000


def test_only_a_recipe_that_may_use_kernels_ships_them() -> None:
    auto = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, kernels="auto"))
    without, shipped = (read_bundle(build_bundle(run)).sources.keys() for run in (RUN, auto))
    kernels = {name for name in shipped if name.startswith("speedrun.kernels.fused")}
    assert {"speedrun.kernels.fused.mlp", "speedrun.kernels.fused.cross_entropy"} < kernels
    assert shipped - without == kernels | {"speedrun.train.fast_paths"}
