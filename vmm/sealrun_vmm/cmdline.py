"""The guest kernel's command line. The runtime puts it into VmSpec.cmdline, so it is measured."""

from sealrun_vmm.spec import Accelerator

_ALWAYS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # reset at once; the VMM ends on a reset
    "random.trust_cpu=on",  # in a TEE the CPU is trusted, and else the host sees everything anyway
    "8250.nr_uarts=1",  # probing three serial ports that are not there
)
_EMULATED = (
    # A busy host stops a virtual CPU in the middle of the kernel's calibration, and its time stamps then
    # made clocks that ran six times too fast. The frequency of this timer is a constant.
    "tsc=unstable",
    "clocksource=acpi_pm",
    "no_timer_check",
    "cryptomgr.notests",  # 0.5 s of self-tests of the kernel's ciphers
    # A kernel that finds one CPU takes the lock prefixes out of its own and its modules' code, one by one through
    # an address space for that purpose: of 39 000 times that a boot empties QEMU's TLB, 35 000.
    "noreplace-smp",
    # The names of constants in the formats of trace events, each of which is sought in each.
    "initcall_blacklist=trace_eval_init",
)


_GROWING = (
    "memhp_default_state=online",  # memory that is added is used without anybody's asking
    "memory_hotplug.online_policy=auto-movable",  # so that most of it can be taken away again
    # What may be added lies above 4 GiB, for which the kernel would set 64 MiB aside at once, to bounce
    # devices that reach no further. There are none; a VM of a TEE, which bounces everything, never grows.
    "swiotlb=noforce",
)


def base(accelerator: Accelerator) -> str:
    """The words that every guest gets."""
    return " ".join(_ALWAYS + (_EMULATED if accelerator is Accelerator.TCG else ()))


def growing(words: str) -> str:
    """The words of a guest whose memory can change while it runs."""
    return " ".join((words, *_GROWING))
