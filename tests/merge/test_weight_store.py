"""How much memory is free, and on which device sources are handed out."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from evomerge.merge import WeightStore, compute_device, free_bytes

CPU = torch.device("cpu")


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def process(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


@pytest.mark.parametrize("path", ["/", "/docker/abc", "/a/b"])
def test_the_limit_of_a_container_and_of_what_holds_it_is_seen(tmp_path: Path, path: str) -> None:
    process(tmp_path, f"0::{path}\n")
    v2 = tmp_path / "sys/fs/cgroup"
    group(v2, max="5000000\n", current="3000000\n", stat="anon 7\nactive_file 500000\ninactive_file 250000\n")
    group(v2 / "a", max="max\n", current="1\n", stat="")
    group(v2 / "a/b", max="1000000\n", current="900000\n", stat="anon 900000\n")
    assert free_bytes(CPU, tmp_path) == (100_000 if path == "/a/b" else 2_750_000)


@pytest.mark.parametrize("path", ["/", "/slurm/job", "/elsewhere"])
def test_the_limit_of_the_first_version_of_control_groups_is_seen(tmp_path: Path, path: str) -> None:
    process(tmp_path, f"12:cpu,cpuacct:/\n4:memory:{path}\n0::/\n")
    v1 = tmp_path / "sys/fs/cgroup/memory"
    stat = "active_file 9\ntotal_active_file 1000\ntotal_inactive_file 2000\n"
    group(v1, limit_in_bytes="4000000", usage_in_bytes="1000000", stat=stat)
    group(v1 / "slurm/job", limit_in_bytes="1000", usage_in_bytes="5000", stat="")
    assert free_bytes(CPU, tmp_path) == (0 if path == "/slurm/job" else 3_003_000)


def test_without_a_limit_the_machine_s_memory_counts(tmp_path: Path) -> None:
    process(tmp_path, "4:memory:/\n0::/\n")
    group(tmp_path / "sys/fs/cgroup/memory", limit_in_bytes=str(2**63 - 4096), usage_in_bytes="1", stat="")
    available = psutil.virtual_memory().available
    for root in (tmp_path, tmp_path / "no Linux"):
        assert abs(free_bytes(CPU, root) - available) < 0.2 * available


def test_a_device_has_the_index_that_its_tensors_have() -> None:
    assert torch.device("cpu:0") != CPU
    assert compute_device("cpu:0") == torch.empty(1, device="cpu:0").device
    assert WeightStore({}, "device", torch.device("cpu:0")).device == torch.empty(1, device="cpu:0").device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_has_the_index_that_its_tensors_have() -> None:
    assert compute_device("cuda") == torch.empty(1, device="cuda").device


def test_what_is_merged_for_mps_which_has_no_float64_is_merged_on_the_cpu() -> None:
    assert WeightStore({}, "memory", torch.device("mps")).device == CPU
