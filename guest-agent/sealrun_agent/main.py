"""PID 1 of the micro-VM: set the VM up, serve the host, power off.

The kernel starts /init, which calls `main` under `python3.11 -IS`. Whatever happens, the VM ends by
a power-off and not by a panic, and what went wrong is one line on the console.
"""

import os

TYPE_CHECKING = False  # typing's own takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LC_ALL": "C.UTF-8"}


def main() -> None:
    """Run until the sandbox ends. Does not return: the VM is powered off."""
    # The kernel hands unknown words of its command line on as environment and arguments.
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    stage = "boot failed"
    try:
        run, port = _boot()
        stage = "failed"
        run(port)
    except BaseException as error:  # the end of PID 1 would be a kernel panic
        last_words(stage, error)
    finally:
        power_off()


def _boot() -> tuple["Callable[[int], None]", int]:
    import gc

    from sealrun_agent import boot

    gc.disable()  # what is imported stays: to look for garbage in it was a tenth of the imports' time
    with boot.Preparation() as preparation:
        # The kernel's modules load on a second thread while these imports, the longest part of
        # the boot, run on this one.
        from sealrun_agent import service

        gc.freeze()
        gc.enable()
        return service.run, preparation.port()


def last_words(stage: str, error: BaseException) -> None:
    """One line on the console, which the host keeps for post-mortem."""
    text = " ".join(str(error).split()) or "no reason given"
    if not hasattr(error, "phase"):  # not one of the agent's own errors: say where it came from
        text = f"{type(error).__name__}: {text}{_place(error)}"
    line = f"sealrun-agent: {stage}: {text}"[:1000] + "\n"
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:
        return  # no console: nobody to tell


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def power_off() -> None:
    """End the VM now. Does not return."""
    import ctypes

    power_off_command, restart_command = 0x4321FEDC, 0x01234567  # linux/reboot.h
    os.sync()
    libc = ctypes.CDLL(None)
    libc.reboot(power_off_command)
    # A machine without a power switch: the VMM is started such that a reset ends it.
    libc.reboot(restart_command)
