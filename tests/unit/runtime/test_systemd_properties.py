"""What a scope gets: limits as runc and crun render the same ones, annotations, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sealrun_runtime.host_limits import (
    CPU_OVERHEAD,
    MEMORY_OVERHEAD,
    TASKS_OVERHEAD,
    UNLIMITED,
    HostLimits,
    VmLimits,
    members,
    of_vm,
)
from sealrun_runtime.oci_config import Cpu, Memory, Pids, Resources
from sealrun_runtime.systemd import properties, unit, variant

MIB = 1 << 20
INFINITY = 2**64 - 1


def test_a_new_scope() -> None:
    found = dict(properties.of_scope(unit.parse("a.slice:b:c", ""), properties.describe("c"), 7))
    assert found["Slice"] == ("s", "a.slice")
    assert found["PIDs"] == ("au", [7])
    assert found["Delegate"] == ("b", True)
    assert found["DefaultDependencies"] == ("b", False)
    assert found["CollectMode"] == ("s", "inactive-or-failed")
    for name in ("Memory", "CPU", "IO", "Tasks"):
        assert found[f"{name}Accounting"] == ("b", True)


def test_limits_are_rendered_as_runc_renders_them() -> None:
    """The figures are those that `systemctl show` has of a scope of runc's 1.1 with these limits, see
    tests/system/test_systemd.py."""
    limits = VmLimits(
        memory=64 * MIB, cpus=0.5, period=100_000, weight=20, tasks=55, cpuset="0-1,8", nodes="0"
    )
    assert properties.of_limits(limits) == (
        ("MemoryMax", ("t", 64 * MIB)),
        ("CPUQuotaPeriodUSec", ("t", 100_000)),
        ("CPUQuotaPerSecUSec", ("t", 500_000)),
        ("CPUWeight", ("t", 20)),
        ("TasksMax", ("t", 55)),
        ("AllowedCPUs", ("ay", b"\x03\x01")),
        ("AllowedMemoryNodes", ("ay", b"\x01")),
    )
    assert properties.of_limits(VmLimits()) == ()


def test_no_limit_is_infinity() -> None:
    limits = VmLimits(memory=UNLIMITED, cpus=UNLIMITED, tasks=UNLIMITED)
    found = dict(properties.of_limits(limits))
    assert {found[name] for name in ("MemoryMax", "CPUQuotaPerSecUSec", "TasksMax")} == {
        ("t", INFINITY)
    }


def test_a_quota_is_rounded_up_to_whole_percents() -> None:
    found = dict(properties.of_limits(VmLimits(cpus=1 / 3)))
    assert found["CPUQuotaPerSecUSec"] == ("t", 340_000)


@pytest.mark.parametrize("numbers", ["x", "1-", "-", "3-1", "0-99999999", "1,,2", "9" * 30])
def test_a_list_of_cpus_that_is_none(numbers: str) -> None:
    with pytest.raises(ValueError, match=r"list of numbers|invalid literal"):
        properties.of_limits(VmLimits(cpuset=numbers))


@given(some.sets(some.integers(0, 500), min_size=1))
def test_cpus_are_bits(numbers: set[int]) -> None:
    text = ",".join(map(str, numbers))
    assert members(text) == sorted(numbers)
    ((_, (signature, bits)),) = properties.of_limits(VmLimits(cpuset=text))
    assert signature == "ay"
    assert isinstance(bits, bytes)
    value = int.from_bytes(bits, "little")
    assert {number for number in range(501) if value >> number & 1} == numbers


def test_the_vm_gets_what_it_costs_on_top() -> None:
    limits = HostLimits().changed(
        Resources(
            memory=Memory(limit=64 * MIB),
            cpu=Cpu(quota=50_000, period=100_000, shares=512, cpus="0"),
            pids=Pids(limit=55),
        )
    )
    vm = of_vm(limits, 512 * MIB)
    assert vm.memory == 64 * MIB + 512 * MIB + MEMORY_OVERHEAD
    assert vm.cpus == 0.5 + CPU_OVERHEAD
    assert vm.tasks == 55 + TASKS_OVERHEAD
    assert (vm.weight, vm.cpuset, vm.nodes) == (20, "0", "")  # runc's and crun's weight of 512


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, None), (1, 1), (2, 1), (1024, 39), (2**40, 10_000)]
)
def test_shares_are_weights(shares: int, weight: int | None) -> None:
    limits = HostLimits().changed(Resources(cpu=Cpu(shares=shares)))
    assert of_vm(limits, 0).weight == weight


def test_an_update_changes_what_it_names() -> None:
    first = HostLimits(memory=5, quota=10, period=20, shares=30, pids=40, cpus="1")
    assert first.changed(None) == first.changed(Resources()) == first
    assert first.changed(Resources(memory=Memory(limit=-1))).memory == UNLIMITED
    assert first.changed(Resources(memory=Memory(limit=0))).memory == UNLIMITED
    assert first.changed(Resources(pids=Pids(limit=7))).pids == 7
    assert of_vm(HostLimits(), MIB) == VmLimits()


@pytest.mark.parametrize(
    ("one", "other", "memory"),
    [
        (None, None, None),
        (5, 7, 7),
        (7, 5, 7),
        (5, None, -1),
        (None, 5, -1),
        (-1, 5, -1),
        (5, -1, -1),
    ],
)
def test_while_a_vm_changes_its_size_the_larger_limit_holds(
    one: int | None, other: int | None, memory: int | None
) -> None:
    assert HostLimits(memory=one).roomier(HostLimits(memory=other)).memory == memory


# --- annotations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("uint64 123456789", ("t", 123456789)),
        ("'inactive-or-failed'", ("s", "inactive-or-failed")),
        ('"with \\"quotes\\" and \\n"', ("s", 'with "quotes" and \n')),
        ("true", ("b", True)),
        ("boolean false", ("b", False)),
        ("5", ("i", 5)),
        ("-5", ("i", -5)),
        ("0x10", ("i", 16)),
        ("byte 255", ("y", 255)),
        ("1.5", ("d", 1.5)),
        ("double 2", ("d", 2.0)),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("@au [1, 2]", ("au", [1, 2])),
        ("[uint32 1, 2]", ("au", [1, 2])),
        ("objectpath '/a'", ("o", "/a")),
        (" true ", ("b", True)),
    ],
)
def test_values_in_gvariants_text_format(text: str, value: variant.Value) -> None:
    assert variant.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "nonsense", "uint64", "uint64 -1", "byte 256", "5 6", "'open", "[1, 'a']", "[1 2]", "[1",
        "[]", "@as [1]", "@a [1]", "uint64 'a'", "string 5", "objectpath 'a'", "[[1]]", "uint64 1.5", "(1, 2)",
        "{'a': 1}", "<1>", "'a\0b'", "uint64 true", "@", "@zz 1", "1" * 5000, "[" * 3000, "int32 99999999999",
    ],
)  # fmt: skip
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        variant.parse(text)


@given(some.text(max_size=60))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    try:
        signature, _ = variant.parse(text)
    except ValueError:
        return
    assert signature


def annotated(name: str, text: str) -> properties.Properties:
    return properties.of_annotations({f"org.systemd.property.{name}": text, "other": "x"})


def test_an_annotation_is_a_property() -> None:
    assert annotated("CollectMode", "'inactive'") == (("CollectMode", ("s", "inactive")),)
    assert annotated("TimeoutStopUSec", "uint64 5") == (("TimeoutStopUSec", ("t", 5)),)


@pytest.mark.parametrize(
    ("text", "microseconds"), [("7", 7_000_000), ("uint64 7", 7_000_000), ("0.5", 500_000)]
)
def test_seconds_become_microseconds(text: str, microseconds: int) -> None:
    assert annotated("TimeoutStopSec", text) == (("TimeoutStopUSec", ("t", microseconds)),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "1"), ("Ab", "1"), ("Bad Name", "1"), ("A.B", "1"), ("Slice", "'x.slice'"), ("PIDs", "@au [1]"),
        ("Delegate", "false"), ("TimeoutStopSec", "'a'"), ("TimeoutStopSec", "true"), ("TimeoutStopSec", "-1"),
        ("CollectMode", "inactive"), ("X" * 100, "1"),
    ],
)  # fmt: skip
def test_what_no_annotation_may_say(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"annotation org\.systemd\.property\."):
        annotated(name, text)
