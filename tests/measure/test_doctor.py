"""Protects `speedrun doctor`: what is slow or broken is told from what is not, and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from speedrun.errors import SpeedrunError
from speedrun.measure import doctor, rates
from speedrun.measure.doctor import Line, check_cores, check_smi, check_torch, exit_code, judge


@pytest.mark.parametrize(
    ("measured", "may_be_wrong", "status"),
    [(10.0, True, "OK"), (9.0, True, "NOTE"), (4.0, True, "WRONG"), (0.1, False, "NOTE")],
)
def test_a_rate_is_held_against_a_reference(
    measured: float, may_be_wrong: bool, status: str
) -> None:
    line = judge("disk", measured, 10.0, 1.0, "MB/s", fix="buy one", may_be_wrong=may_be_wrong)
    assert line.status == status and (line.fix == "buy one") is (status != "OK")
    assert f"{measured:.1f} MB/s" in line.found and "10.0" in line.expected


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.9.0", "OK"), ("2.13.0+cpu", "OK"), ("3.0.0a0+git1", "OK"), ("2.8.1", "WRONG")],
)
def test_an_old_torch_is_wrong(version: str, status: str) -> None:
    assert check_torch(version).status == status


def test_other_work_is_noted_because_it_spoils_the_figures() -> None:
    assert check_cores(8, 0.3).status == "OK"
    busy = check_cores(8, 7.9)
    assert busy.status == "NOTE" and "too low" in busy.fix


def test_a_missing_compiler_and_sandbox_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install g++" in doctor.check_compiler().fix
    assert "bubblewrap" in doctor.check_bubblewrap().fix


def test_clocks_and_power_are_read_from_nvidia_smi() -> None:
    said = dict(zip(doctor.SMI_KEYS, ("580.1", "690", "1980", "700.00", "700.00"), strict=True))
    driver, clock, power = check_smi("GPU 0", said)
    assert driver.found == "580.1" and power.status == "OK"
    assert clock.status == "NOTE" and clock.found == "690 of 1980 MHz" and "CLOCK" in clock.fix
    unknown = said | {"power.limit": "[N/A]"}
    assert [line.name for line in check_smi("GPU 0", unknown)] == ["GPU 0 driver", "GPU 0 clock"]
    assert "does not tell" in next(check_smi("GPU 0", {})).found


def test_a_gpu_is_found_in_the_data_sheets_by_its_most_special_name() -> None:
    def sheet(name: str) -> Any:
        return next(doctor.SHEETS[key] for key in doctor.SHEETS if key in name)

    assert sheet("NVIDIA H100 PCIe").bf16_flops < sheet("NVIDIA H100 80GB HBM3").bf16_flops
    assert sheet("NVIDIA H200").memory_bytes_per_s == 4.8e12


def test_a_disk_that_takes_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rates, "disk_bytes_per_s", full)
    room, disk = doctor.check_disk(tmp_path / "not" / "yet" / "made")
    assert str(tmp_path) in room.found
    assert disk.status == "WRONG" and "No space left" in disk.found


@pytest.mark.parametrize(("kind", "status"), [("gloo", "NOTE"), ("NCCL", "WRONG")])
def test_processes_that_do_not_meet_are_told(
    monkeypatch: pytest.MonkeyPatch, kind: str, status: str
) -> None:
    def lonely(world: int) -> float:
        raise SpeedrunError("rank 1 of 2: connection refused")

    monkeypatch.setattr(rates, "average_bytes_per_s", lonely)
    (line,) = doctor.check_messages(2, kind)
    assert line.status == status and "connection refused" in line.found


@pytest.mark.slow
def test_two_processes_average_a_gradient() -> None:
    assert rates.average_bytes_per_s(2) > 0


def test_only_what_is_wrong_fails() -> None:
    assert exit_code([Line(name="a", found=""), Line(name="b", status="NOTE", found="")]) == 0
    assert exit_code([Line(name="a", status="WRONG", found="")]) == 1


def test_the_command_prints_lines_or_json(
    call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [Line(name="disk", status="WRONG", found="none", expected="one", fix="buy one")]
    monkeypatch.setattr(doctor, "examine", lambda folder: iter(found))
    plain = call("doctor", "--out", tmp_path)
    assert plain.code == 1 and " ".join(plain.out.split()) == (
        "WRONG disk none (expected: one); buy one"
    )
    as_json = call("doctor", "--json")
    assert as_json.code == 1 and json.loads(as_json.out)[0]["fix"] == "buy one"


@pytest.mark.slow
def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    lines = list(doctor.examine(tmp_path))
    names = [line.name for line in lines]
    assert len(names) == len(set(names)) and {"torch", "processor", "disk", "copies"} <= {*names}
    assert all(line.fix for line in lines if line.status != "OK")
