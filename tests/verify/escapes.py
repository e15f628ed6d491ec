"""Ways out of the cell, as a submission that tries them all and prints what it got.

Each function returns something when it got what it must not have, and nothing or an error when it
did not. `test_escapes` runs this file as `train_gpt.py`, in a cell and, to see that the tries are
real, also without walls.
"""

# ruff: noqa: PTH101, PTH104, PTH108, PTH109, PTH110, PTH115, PTH116, PTH120, PTH123
# ruff: noqa: PTH202, PTH208, PTH211
from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import inspect
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

GIVEN = json.loads(sys.argv[1]) if __name__ == "__main__" else {}
LIBC = ctypes.CDLL(None, use_errno=True)
ESCAPES = {}


def escape(function):
    ESCAPES[function.__name__] = function
    return function


def called(result: int) -> bool:
    """Whether a call of the C library worked; otherwise an error."""
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


def connect(family: int, address: object) -> str:
    with socket.socket(family) as client:
        client.settimeout(2)
        client.connect(address)
        return client.recv(100).decode()


# --- the network


@escape
def connect_by_ipv4():
    return connect(socket.AF_INET, ("127.0.0.1", GIVEN["port"]))


@escape
def connect_by_ipv6():
    return GIVEN["port6"] and connect(socket.AF_INET6, ("::1", GIVEN["port6"]))


@escape
def connect_to_an_abstract_socket():
    return connect(socket.AF_UNIX, "\0" + GIVEN["abstract"])


@escape
def connect_to_a_socket_by_path():
    return connect(socket.AF_UNIX, GIVEN["socket"])


@escape
def reach_the_internet():
    return connect(socket.AF_INET, ("1.1.1.1", 53))


@escape
def ask_a_name_server():
    return socket.getaddrinfo("example.com", 80)


@escape
def open_a_socket_that_no_namespace_holds():
    """The host of a virtual machine, radio, the kernel's ciphers: none of them is a network."""
    got = []
    for family in (socket.AF_VSOCK, socket.AF_ALG, socket.AF_PACKET, 31, 43):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                got.append((family, str(error)))
        else:
            got.append((family, "open"))
    return got


# --- files


@escape
def read_a_file_by_path():
    return Path(GIVEN["secret"]).read_text()


@escape
def list_the_home_the_data_and_the_cache():
    found = {}
    for key in ("home", "data", "cache", "repository"):
        try:
            found[key] = os.listdir(GIVEN[key])
        except OSError:
            continue
    own = {Path(sys.prefix).relative_to(GIVEN["home"]).parts[0]} if is_at_home() else set()
    return {key: names for key, names in found.items() if set(names) - {".venv", ".pyenv"} - own}


def is_at_home():
    """A checkout may lie in the home folder, and its environment is shown."""
    return Path(sys.prefix).is_relative_to(GIVEN["home"])


@escape
def read_through_the_root_of_another_process():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            return (process / "root" / GIVEN["secret"].lstrip("/")).read_text()
        except OSError:
            continue
    return None


@escape
def read_environments():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if GIVEN["password"].encode() in (process / "environ").read_bytes():
                return process.name
        except OSError:
            continue
    return None


@escape
def read_an_inherited_descriptor():
    found = {}
    for number in range(3, 1024):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return [name for name in found.values() if "memfd:logits" not in name and "/proc" not in name]


@escape
def find_what_others_keep_in_tmp_and_shared_memory():
    own = {os.environ["TMPDIR"], os.environ["TMPDIR"].removeprefix("/tmp/").split("/")[0]}
    own |= {sys.prefix.removeprefix("/tmp/").split("/")[0]}  # a checkout may lie in /tmp
    return [name for folder in ("/tmp", "/dev/shm") for name in {*os.listdir(folder)} - own]


@escape
def read_the_source_of_the_library():
    library = Path(sysconfig.get_path("stdlib"))
    found = [str(path) for path in library.glob("*.py")]
    with contextlib.suppress(OSError):
        found.append(inspect.getsource(json.decoder))
    for place in () if found else ("/usr", "/lib", "/opt", "/root", "/home"):
        for folder, folders, files in os.walk(place):
            folders[:] = [name for name in folders if name != "site-packages"]
            found += [f"{folder}/{name}" for name in files if name in ("os.py", "sched.py")]
    return found[:9]


@escape
def import_a_hidden_module():
    import sched

    return sched.__file__


@escape
def read_what_a_hidden_module_says():
    """One that Python needs is there, compiled; what it says is not."""
    import copyreg

    said = [copyreg.__doc__, copyreg.pickle.__doc__, copyreg.add_extension.__doc__]
    return [text for text in said if text]


@escape
def read_the_help_topics():
    import pydoc_data.topics

    return sorted(pydoc_data.topics.topics)[:3]


@escape
def read_memory_of_the_machine():
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/vda", "/dev/sda"):
        try:
            with open(path, "rb") as file:
                return path, len(file.read(1))
        except OSError:
            continue
    return None


# --- writing


@escape
def write_anywhere():
    places = [
        "/",
        "/usr",
        "/usr/lib",
        "/usr/bin",
        "/etc",
        "/dev",
        "/proc",
        "/sys",
        "/judged",
        "/home",
    ]
    places += ["/root", sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), GIVEN["home"]]
    places += [path for path in sys.path if "site-packages" in path] + ["/usr/lib/python3"]
    done = []
    for place in places:
        try:
            with open(f"{place}/written", "w"):
                done.append(place)
            os.unlink(f"{place}/written")
        except OSError:
            continue
    return done


@escape
def change_what_was_hashed():
    done = []
    for change in (
        lambda: open("train_gpt.py", "ab").close(),
        lambda: os.chmod("train_gpt.py", 0o666),
        lambda: os.truncate("model.srz", 0),
        lambda: os.rename("model.srz", "other.srz"),
        lambda: os.symlink("/dev/zero", "link"),
    ):
        try:
            change()
            done.append(inspect.getsource(change).strip())
        except OSError:
            continue
    return done


@escape
def change_the_kernel():
    """With the value that is there already: who can write this owns the machine."""
    done = []
    for name in ("kernel/core_pattern", "vm/swappiness", "kernel/printk", "net/ipv4/ip_forward"):
        path = Path("/proc/sys", name)
        try:
            path.write_text(path.read_text())
            done.append(name)
        except OSError:
            continue
    return done


# --- other processes


@escape
def see_the_judge():
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [str(line) for line in lines if b"pytest" in line and b"train_gpt.py" not in line][:1]


@escape
def signal_the_judge():
    os.kill(GIVEN["judge"], 0)
    return f"{GIVEN['judge']} can be killed"


@escape
def kill_the_guard():
    """The first process of the namespace, and the parent."""
    os.kill(1, signal.SIGKILL) if os.getppid() == 1 else None
    time.sleep(0.05)
    return os.getppid() != 1 and "the parent is another"


@escape
def trace_a_process():
    attach = 16
    child = os.fork()
    if not child:
        time.sleep(5)
        os._exit(0)
    try:
        return called(LIBC.ptrace(attach, child, 0, 0)) and "attached"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@escape
def become_root():
    for call in (
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setresgid(0, 0, 0),
        lambda: os.setgroups([0]),
    ):
        try:
            call()
            return "now root"
        except OSError:
            continue
    status = Path("/proc/self/status").read_text()
    rights = [
        line for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapAmb"))
    ]
    return [line for line in rights if int(line.split()[1], 16)] or os.geteuid() == 0


@escape
def gain_rights_from_a_program():
    """Programs that run as their owner, the old way up."""
    for program in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/newgrp", "/usr/bin/passwd"):
        if os.access(program, os.X_OK) and os.stat(program).st_mode & 0o4000:
            arguments = [program, *(("-t", "tmpfs", "none", "/tmp") if "mount" in program else ())]
            done = subprocess.run(
                arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=9
            )
            if done.returncode == 0:
                return program
    return "NoNewPrivs:\t1" not in Path("/proc/self/status").read_text()


@escape
def mount():
    return called(LIBC.mount(b"none", os.environ["TMPDIR"].encode(), b"tmpfs", 0, None))


@escape
def make_namespaces():
    done = []
    for name, flag in {"user": 1 << 28, "mount": 1 << 17, "net": 1 << 30, "pid": 1 << 29}.items():
        child = os.fork()
        if not child:
            os._exit(LIBC.unshare(flag) == 0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            done.append(f"unshare {name}")
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        child = LIBC.syscall(56, (1 << 28) | signal.SIGCHLD, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        if child > 0:
            os.waitpid(child, 0)
            done.append("clone user")
    return done


@escape
def enter_namespaces():
    done = []
    for path in Path("/proc/1/ns").glob("*"):
        try:
            with path.open("rb") as file:
                done += [path.name] if LIBC.setns(file.fileno(), 0) == 0 else []
        except OSError:
            continue
    return done


@escape
def change_the_root():
    os.chroot("/tmp")
    return "changed"


@escape
def call_what_a_predictor_has_no_use_for():
    """Rings, programs for the kernel, keys, counters, page faults: all have had their bugs."""
    numbers = {"io_uring_setup": 425, "bpf": 321, "keyctl": 250, "perf_event_open": 298}
    numbers |= {"userfaultfd": 323, "add_key": 248, "fsopen": 430, "open_tree": 428}
    if os.uname().machine != "x86_64":
        numbers = {"io_uring_setup": 425, "bpf": 280, "keyctl": 219, "perf_event_open": 241}
    done = []
    for name, number in numbers.items():
        result, code = LIBC.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()
        if result >= 0 or code != errno.EPERM:
            done.append(f"{name}: {result} {os.strerror(code)}")
    return done


@escape
def call_by_the_numbers_of_another_machine():
    """32-bit calls have numbers of their own, x32 calls a bit of their own."""
    if os.uname().machine != "x86_64":
        return None
    if LIBC.syscall(0x40000000 | 39) >= 0:
        return "x32"
    child = os.fork()
    if not child:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        got = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        os._exit(1 if got > 0 else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 and "int 0x80"


@escape
def type_on_a_terminal():
    done = []
    for path in (
        "/dev/tty",
        "/dev/console",
        "/dev/tty0",
        *map(str, Path("/dev/pts").glob("[0-9]*")),
    ):
        try:
            with open(path, "wb", buffering=0):
                done.append(str(path))
        except OSError:
            continue
    for number in (0, 1, 2):
        try:
            fcntl.ioctl(number, 0x5412, b"x")
            done.append(f"TIOCSTI on {number}")
        except OSError:
            continue
    return done


# --- what comes along


@escape
def find_variables():
    names = {"PATH", "LANG", "HOME", "TMPDIR", "USER", "PWD", "OMP_WAIT_POLICY"}
    return sorted({*os.environ} - names)


@escape
def import_what_lies_beside_the_script():
    done = []
    for name in ("helper", "sitecustomize_of_the_submission", "speedrun"):
        try:
            done.append(__import__(name).__name__)
        except ImportError:
            continue
    return done + [path for path in sys.path if path in ("", os.getcwd())]


@escape
def leave_a_core_dump():
    """A limit of 1 also stops the dumps that go to a program of the machine."""
    child = os.fork()
    if not child:
        os.abort()
    dumped = os.WCOREDUMP(os.waitpid(child, 0)[1])
    return dumped or resource.getrlimit(resource.RLIMIT_CORE)[1] != 1


@escape
def open_files_without_end():
    files = []
    try:
        while len(files) < 100_000:
            files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            return str(error)
    for file in files:
        os.close(file)
    return len(files) >= 100_000


@escape
def lift_the_limits():
    done = []
    for name in ("NPROC", "DATA", "FSIZE", "NOFILE", "CORE"):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (1 << 40, 1 << 40))
            done.append(name)
        except (OSError, ValueError):
            continue
    return done


@escape
def make_the_store_shorter():
    """The judge maps it; what is cut off would end the judge."""
    (number,) = (n for n in os.listdir("/proc/self/fd") if _is_store(n))
    store = os.open(f"/proc/self/fd/{number}", os.O_RDWR)
    os.write(store, bytes(5000))
    try:
        os.ftruncate(store, 100)
        return os.fstat(store).st_size
    finally:
        os.close(store)


def _is_store(number: str) -> bool:
    try:
        return "memfd:logits" in os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False


# --- what could reach the next process on the same cell


@escape
def set_the_times_of_what_is_shared():
    """A device that anybody may write to has times that anybody may set, and read later."""
    done = []
    for path in (*Path("/dev").iterdir(), sys.executable, "/usr/bin/env", json.__file__):
        if Path(path).exists() and not Path(path).is_dir():
            before = os.stat(path).st_mtime
            with contextlib.suppress(OSError):
                os.utime(path)
            if os.stat(path).st_mtime != before:
                done.append(str(path))
    return done


@escape
def ask_which_pages_were_read_before():
    with open(sys.executable, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) or "answered"
        except OSError as error:
            return "" if error.errno == errno.EPERM else str(error)


@escape
def tell_how_many_there_were_before():
    """Numbers that grow with every process of the judge, and times of its first."""
    stores = [number for number in os.listdir("/proc/self/fd") if _is_store(number)]
    age_s = time.time() - min(os.stat("train_gpt.py").st_ctime, os.stat(".").st_ctime)
    return (stores != ["3"] and stores) or (age_s > 60 and f"the files are {age_s:.0f} s old")


def places() -> list[str]:
    return ["/tmp/left", "/dev/shm/left", f"{os.environ['HOME']}/left", "/judged/left", "left"]


def leave_something() -> list[str]:
    done = []
    for place in places():
        try:
            Path(place).write_text("left")
            done.append(place)
        except OSError:
            continue
    if LIBC.shmget(4711, 4096, 0o1666) >= 0:
        done.append("shared memory of System V")
    for number in filter(_is_store, os.listdir("/proc/self/fd")):
        Path(f"/proc/self/fd/{number}").write_bytes(b"left")
        done.append("store")
    return done


def find_something() -> list[str]:
    done = [place for place in places() if os.path.exists(place)]
    if LIBC.shmget(4711, 4096, 0o666) >= 0:
        done.append("shared memory of System V")
    for number in filter(_is_store, os.listdir("/proc/self/fd")):
        if os.path.getsize(f"/proc/self/fd/{number}"):
            done.append("store")
    return done


def main() -> None:
    if GIVEN["do"] == "try":
        results = {}
        for name, function in ESCAPES.items():
            if name not in GIVEN.get("names", ESCAPES):
                continue
            try:
                results[name] = function() or ""
            except (OSError, ImportError, ValueError) as error:
                results[name] = ""
                results[f"{name}: why"] = str(error)
        print(json.dumps(results))
    else:
        print(json.dumps({"leave": leave_something, "find": find_something}[GIVEN["do"]]()))


if __name__ == "__main__":
    main()
