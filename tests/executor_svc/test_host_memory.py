"""What memory a process may still take, by the files of a machine that is made up."""

from pathlib import Path

import pytest

from executor_svc.host_memory import available_bytes

MIB = 1024 * 1024


def write(root: Path, **files: object) -> Path:
    """Files under `root`: "__" stands for "/", "_dot_" for "."."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return path


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 1,000 MiB available, and no control groups."""
    write(tmp_path, proc__meminfo=f"MemTotal: {9000 * 1024} kB\nMemAvailable: {1000 * 1024} kB")
    return tmp_path


def test_without_control_groups_it_is_what_the_machine_has(machine: Path) -> None:
    assert available_bytes(machine) == 1000 * MIB


def test_a_container_has_what_its_limit_leaves(machine: Path) -> None:
    write(machine, proc__self__cgroup="0::/", sys__fs__cgroup__memory_dot_max=300 * MIB)
    write(machine, sys__fs__cgroup__memory_dot_current=100 * MIB)
    assert available_bytes(machine) == 200 * MIB


def test_file_pages_that_the_kernel_can_drop_are_not_counted_as_used(machine: Path) -> None:
    write(machine, proc__self__cgroup="0::/", sys__fs__cgroup__memory_dot_max=300 * MIB)
    write(machine, sys__fs__cgroup__memory_dot_current=290 * MIB)
    stat = f"anon 5\ninactive_file {200 * MIB}\nactive_file {50 * MIB}\nfile {999 * MIB}"
    write(machine, sys__fs__cgroup__memory_dot_stat=stat)
    assert available_bytes(machine) == 260 * MIB


@pytest.mark.parametrize(("limit", "expected"), [("max", 1000), (5000 * MIB, 1000), (40 * MIB, 0)])
def test_a_limit_only_ever_lowers_it_and_never_below_nothing(
    machine: Path, limit: object, expected: int
) -> None:
    write(machine, proc__self__cgroup="0::/", sys__fs__cgroup__memory_dot_max=limit)
    write(machine, sys__fs__cgroup__memory_dot_current=50 * MIB)
    assert available_bytes(machine) == expected * MIB


@pytest.mark.parametrize(("outer", "inner", "expected"), [(700, 400, 300), (300, 400, 200)])
def test_every_group_around_the_process_binds(machine: Path, outer: int, inner: int, expected: int) -> None:
    write(machine, proc__self__cgroup="0::/a.slice/b.service")
    for folder, limit in (
        ("sys__fs__cgroup__a_dot_slice", outer),
        ("sys__fs__cgroup__a_dot_slice__b_dot_service", inner),
    ):
        write(
            machine, **{f"{folder}__memory_dot_max": limit * MIB, f"{folder}__memory_dot_current": 100 * MIB}
        )
    assert available_bytes(machine) == expected * MIB


@pytest.mark.parametrize("folder", ["", "__docker__abc"])
def test_the_first_version_of_control_groups_binds_too(machine: Path, folder: str) -> None:
    # Inside a container its own group is often mounted at the root, whatever /proc/self/cgroup calls it.
    write(machine, proc__self__cgroup="5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/elsewhere")
    base = f"sys__fs__cgroup__memory{folder}__memory_dot_"
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {20 * MIB}\ntotal_active_file 0"
    write(
        machine,
        **{f"{base}limit_in_bytes": 500 * MIB, f"{base}usage_in_bytes": 90 * MIB, f"{base}stat": stat},
    )
    assert available_bytes(machine) == 430 * MIB


def test_an_unlimited_first_version_group_changes_nothing(machine: Path) -> None:
    write(machine, proc__self__cgroup="4:memory:/")
    write(machine, sys__fs__cgroup__memory__memory_dot_limit_in_bytes=9223372036854771712)
    write(machine, sys__fs__cgroup__memory__memory_dot_usage_in_bytes=90 * MIB)
    assert available_bytes(machine) == 1000 * MIB


def test_a_system_that_says_nothing_has_all_its_memory(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0
