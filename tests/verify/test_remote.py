"""Protects the judge from what a predictor's process sends, and the ways that its logits take."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speedrun.predict
from speedrun.errors import PredictorError, PredictorLostError
from speedrun.verify import device_memory, remote
from speedrun.verify.device_memory import DeviceBlock
from speedrun.verify.remote import RemotePredictor
from speedrun.verify.sandbox import Cell, Limits

TOKENS = np.arange(12).reshape(2, 6)
FROM = np.array([2, 5])
TRUE = np.array([[2, 4], [3, 6], [4, 8], [5, 10], [11, 22]], np.float32)
PREDICTOR = """
class Submitted:
    vocab_size, kind = 2, "fixed"
    def predict(self, tokens, scored_from):
        asked = tokens[np.arange(tokens.shape[1]) >= scored_from[:, None]]
        return np.stack([asked, 2 * asked], axis=1)
    def observe(self, tokens):
        pass
"""


def submit(folder: Path, predictor: str = PREDICTOR, start: str = "", model: bytes = b"") -> Path:
    protocol = Path(speedrun.predict.__file__).read_text(encoding="utf-8")
    errors = "from speedrun.errors import PredictorError\n"
    assert errors in protocol
    (folder / "model.srz").write_bytes(model)
    (folder / "train_gpt.py").write_text(
        protocol.replace(errors, "class PredictorError(Exception): pass\n")
        + f"\nconnection = take_stdio()\n{predictor}\n{start}\nserve(Submitted(), connection)\n"
    )
    return folder


def ask(folder: Path, limits: Limits | None = None, calls: int = 1) -> tuple[Any, str]:
    """The logits of the last call, and how they came."""
    with (
        Cell(folder, limits=limits, allow_unsandboxed=True) as cell,
        RemotePredictor(cell, ["train_gpt.py", "predict", "model.srz"], budget_s=60) as predictor,
    ):
        for _ in range(calls):
            logits = predictor.predict(TOKENS, FROM)
        return logits, predictor.transport


def test_logits_of_any_type_arrive_as_float32(tmp_path: Path) -> None:
    logits, transport = ask(submit(tmp_path), calls=3)
    assert (logits.dtype, logits.tolist(), transport) == (
        np.float32,
        TRUE.tolist(),
        "shared memory",
    )


def test_a_call_with_more_logits_than_before_has_room(tmp_path: Path) -> None:
    with (
        Cell(submit(tmp_path), allow_unsandboxed=True) as cell,
        RemotePredictor(cell, ["train_gpt.py"], budget_s=60) as predictor,
    ):
        for length in (1, 3_000, 2, 50_000):
            tokens = np.arange(length)[None]
            logits = predictor.predict(tokens, np.array([0]))
            assert np.array_equal(logits[:, 1], 2 * tokens[0])


def test_what_the_process_writes_later_changes_nothing(tmp_path: Path) -> None:
    later = """
    stores, real_map = [], np.memmap
    def memmap(*arguments, **options):
        stores.append(real_map(*arguments, **options))
        return stores[-1]
    np.memmap = memmap
    def observe(self, tokens):
        stores[-1][:] = 7
    Submitted.observe = observe
    """
    with (
        Cell(submit(tmp_path, start=textwrap.dedent(later)), allow_unsandboxed=True) as cell,
        RemotePredictor(cell, ["train_gpt.py"], budget_s=60) as predictor,
    ):
        logits = predictor.predict(TOKENS, FROM)
        predictor.observe(TOKENS[0])
        raw = np.empty(10, np.float32)
        predictor._process.store.read_into(raw)
        assert raw.tolist() == [7] * 10
        assert np.array_equal(logits, TRUE)


def test_a_predictor_that_never_stops_printing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MAX_STDERR", 1_000_000)
    with pytest.raises(PredictorLostError, match=r"more than 1,000,000 bytes .* last printed: xxx"):
        ask(submit(tmp_path, start="while True: print('x' * 9999)"))


def test_a_broken_limit_is_named(tmp_path: Path) -> None:
    start = "import time\nfor _ in range(60):\n if not os.fork(): time.sleep(20)\ntime.sleep(20)"
    with pytest.raises(PredictorError, match=r"was ended: it had .* processes.*, 54") as raised:
        ask(submit(tmp_path, start=start), Limits(num_processes=50))
    # No other machine would let it: that is no loss, it is a refusal.
    assert type(raised.value) is PredictorError


def test_a_reply_that_is_announced_too_large_is_not_read(tmp_path: Path) -> None:
    start = "connection[1].write(FRAME.pack(MAGIC, 2, 1 << 31) + b'{}'); connection[1].flush()"
    with pytest.raises(PredictorError, match="a payload of 2,147,483,648 bytes"):
        ask(submit(tmp_path, start=start))


def test_a_predictor_of_version_one_that_writes_to_the_file_is_understood(tmp_path: Path) -> None:
    """As the first records do: it opens the path, writes from the start, and knows no GPU."""
    old = """
    def serve(predictor, connection):
        requests, replies = connection
        def reply(header):
            replies.write(frame(header)); replies.flush()
        reply({"protocol": 1, "vocab_size": 2, "kind": "fixed"})
        while len(head := requests.read(12)) == 12:
            _, header_bytes, payload_bytes = FRAME.unpack(head)
            request = json.loads(requests.read(header_bytes))
            numbers = np.frombuffer(requests.read(payload_bytes), "<i8")
            if request["do"] == "open":
                store = os.open(request["logits"], os.O_RDWR)
                reply({})
            else:
                batch, length = request["shape"]
                tokens = numbers[: batch * length].reshape(batch, length)
                logits = predictor.predict(tokens, numbers[batch * length :])
                os.lseek(store, 0, os.SEEK_SET)
                os.write(store, logits.astype("<f4").tobytes())
                reply({"shape": list(logits.shape)})
    """
    logits, _ = ask(submit(tmp_path, start=textwrap.dedent(old)), calls=2)
    assert np.array_equal(logits, TRUE)


DRIVER = """
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
typedef unsigned long long u64;
enum { STEP = 65536, INVALID = 1, BASE = 1000 };

int cuMemGetAllocationGranularity(size_t *step, const int *wanted, int option) {
    *step = STEP;
    return 0;
}
int cuMemCreate(u64 *handle, size_t size, const int *wanted, u64 flags) {
    if (wanted[0] != 1 || wanted[1] != 1 || wanted[2] != 1 || wanted[3] != 0) return INVALID;
    if (size % STEP || *(void **)(wanted + 4)) return INVALID;
    int file = memfd_create("device", MFD_CLOEXEC);
    if (ftruncate(file, size)) return INVALID;
    *handle = BASE + file;
    return 0;
}
int cuMemExportToShareableHandle(int *descriptor, u64 handle, int type, u64 flags) {
    *descriptor = dup(handle - BASE);
    return type != 1 || *descriptor < 0;
}
int cuMemImportFromShareableHandle(u64 *handle, void *descriptor, int type) {
    int file = dup((long)descriptor);
    *handle = BASE + file;
    return type != 1 || file < 0;
}
int cuMemAddressReserve(u64 *address, size_t size, size_t alignment, u64 wish, u64 flags) {
    void *place = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *address = (u64)place;
    return place == MAP_FAILED || alignment || wish || flags;
}
int cuMemMap(u64 address, size_t size, size_t offset, u64 handle, u64 flags) {
    int how = MAP_SHARED | MAP_FIXED;
    void *place = mmap((void *)address, size, PROT_NONE, how, handle - BASE, offset);
    return place == MAP_FAILED || offset || flags;
}
int cuMemSetAccess(u64 address, size_t size, const int *access, size_t count) {
    if (count != 1 || access[0] != 1 || access[1] != 0 || access[2] != 3) return INVALID;
    return mprotect((void *)address, size, PROT_READ | PROT_WRITE) != 0;
}
int cuMemUnmap(u64 address, size_t size) {
    return mprotect((void *)address, size, PROT_NONE) != 0;
}
int cuMemAddressFree(u64 address, size_t size) { return munmap((void *)address, size) != 0; }
int cuMemRelease(u64 handle) { return close(handle - BASE) != 0; }
"""
"""As much of libcuda.so.1 as is called, over host memory: mapping and rights are real."""

ON_DEVICE = """
import types
cuda = types.SimpleNamespace(synchronize=lambda: None, current_device=lambda: 0)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
load = ctypes.CDLL
ctypes.CDLL = lambda name: load("/judged/model.srz" if os.path.isdir("/judged") else "./model.srz")
class Device(np.ndarray):
    is_cuda = True
    def cpu(self):
        return np.array(self)
def device_tensor(address, count):
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).view(Device)
real = Submitted.predict
Submitted.predict = lambda self, *asked: real(self, *asked).view(Device)
"""


class Block:
    """The judge's view of device memory, which here is the host's."""

    def __init__(self, address: int, count: int) -> None:
        self.numbers = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))

    def __getitem__(self, part: slice) -> torch.Tensor:
        return torch.from_numpy(self.numbers[part])


@pytest.fixture(name="driver")
def driver_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver for a device that is not there."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build a stand-in for the CUDA driver")
    (tmp_path / "cuda.c").write_text(DRIVER)
    built = tmp_path / "cuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, tmp_path / "cuda.c"], check=True)
    load = ctypes.CDLL

    def stand_in(name: str) -> ctypes.CDLL:
        assert name == "libcuda.so.1"
        return load(str(built))

    monkeypatch.setattr(speedrun.predict.ctypes, "CDLL", stand_in)
    monkeypatch.setattr(device_memory, "_current_device", lambda: 0)
    monkeypatch.setattr(device_memory, "device_tensor", Block)
    return built


WITH_DEVICE = Limits(devices=("/dev/null",))


def test_logits_on_a_device_do_not_go_through_the_host(driver: Path, tmp_path: Path) -> None:
    submit(tmp_path, start=ON_DEVICE, model=driver.read_bytes())
    logits, transport = ask(tmp_path, WITH_DEVICE, calls=2)
    assert transport == "GPU memory"
    assert isinstance(logits, torch.Tensor)
    host, _ = ask(submit(tmp_path))
    assert logits.numpy().tobytes() == host.tobytes()


def test_logits_beyond_the_block_take_the_file(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_DEVICE_BYTES", 4)
    submit(tmp_path, start=ON_DEVICE, model=driver.read_bytes())
    with (
        Cell(tmp_path, limits=WITH_DEVICE, allow_unsandboxed=True) as cell,
        RemotePredictor(cell, ["train_gpt.py"], budget_s=60) as predictor,
    ):
        few = predictor.predict(TOKENS, FROM)
        many = predictor.predict(np.arange(40_000)[None], np.array([0]))
        assert (type(few), type(many)) == (torch.Tensor, np.ndarray)
        assert many[-1].tolist() == [39_999, 79_998]


def test_copies_of_a_block_outlive_it(driver: Path) -> None:
    block = DeviceBlock(100_000)
    assert block.num_bytes == 131_072
    block._tensor.numbers[:3] = [1, 2, 3]  # type: ignore[attr-defined]
    copy = block.copy(3)
    block._tensor.numbers[:3] = 0  # type: ignore[attr-defined]
    block.close()
    assert copy.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("sys.modules['torch'] = None", "import of torch halted"),
        ("def map_memory(*_): raise OSError('cuMemMap gives error 1')", "cuMemMap gives error 1"),
    ],
)
def test_a_predictor_that_cannot_use_the_device_says_why(
    driver: Path, tmp_path: Path, start: str, reason: str
) -> None:
    start = f"{ON_DEVICE}\n{start}\nSubmitted.predict = real"
    submit(tmp_path, start=start, model=driver.read_bytes())
    logits, transport = ask(tmp_path, WITH_DEVICE)
    assert transport.startswith("shared memory, not the GPU's: ") and reason in transport
    assert np.array_equal(logits, TRUE)


def test_a_judge_without_a_working_device_says_why(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    logits, transport = ask(submit(tmp_path), WITH_DEVICE)
    assert transport.startswith("shared memory, not the GPU's: ")
    assert np.array_equal(logits, TRUE)


def test_an_answer_from_a_block_that_was_not_given_is_refused(tmp_path: Path) -> None:
    lie = "Submitted.predict = lambda self, *_: (connection[1].write(frame({'shape': [5, 2], "
    lie += "'device': True})), connection[1].flush(), os.read(0, 1))"
    with pytest.raises(PredictorError, match="GPU memory that it was not given"):
        ask(submit(tmp_path, start=lie))
