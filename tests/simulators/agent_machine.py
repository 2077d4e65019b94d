"""The real agent as PID 1 of namespaces instead of a VM: real channel, real crun, real containers.

Started by fixtures/agent.py, as root, under `unshare` with namespaces of its own for pids, mounts,
network, IPC, UTS and cgroups. Its arguments: the descriptor of the byte stream, the kind of TEE to
claim, the directory that takes the place of what a host shares or the descriptor of virtiofsd's mount
namespace, and the socket of a TPM or nothing. What differs from a VM: the clock is left alone, and
images come from busybox instead of a
registry. The reference, without "registry.test/" before it and ":1" behind it, chooses what the
simulated pull does:

    test/busybox            a root file system with busybox, at once
    test/scratch            a root file system that has /busybox and nothing else
    test/content            the same; what the host's cache has of DIGEST is left in /fetched
    test/dial/HOST/PORT     the same; what the endpoint sends until it ends is left in /fetched
    test/fail               a VerifyError
    test/bug                an exception that nobody expected
    test/wait               progress until the container is not wanted any more
"""

import ctypes
import os
import resource
import shutil
import socket
import sys
import time

from sealrun_agent.attestation.choice import Choice
from sealrun_agent.attestation.tpm import TpmAttester, Transact
from sealrun_agent.boot import loopback_up
from sealrun_agent.container.surroundings import Order, Rootfs
from sealrun_agent.errors import AttestError, DialFailed, PullError, VerifyError
from sealrun_agent.machine import Machine
from sealrun_agent.policy import Policy
from sealrun_agent.processes import Processes
from sealrun_agent.service import serve
from sealrun_agent.shared_tree import SharedTree
from sealrun_agent.vault import Vault
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.init_data import InitData
from simulators import hypervisor_rules, simulated_share

DIRECTORY = "/run/sealrun"
CPUS = 4  # that it claims to have; the real ones are the host's, which it leaves alone
DIGEST = "sha256:" + "5" * 64
CRUN = "/usr/bin/crun"
# Where nobody may lock memory without a limit, crun cannot load the program that device rules need. And
# control groups of version 1 may have the controller that counts processes.
WITHOUT_RULES = """\
#!/bin/sh
for word; do
    case $word in --bundle=*)
        config=${word#--bundle=}/config.json
        jq 'del(.linux.resources.devices, .linux.resources.pids)' "$config" >"$config.new" && mv "$config.new" "$config" ;;
    esac
done
exec /run/crun.real "$@"
"""
APPLETS = (
    "sh",
    "cat",
    "echo",
    "sleep",
    "id",
    "env",
    "hostname",
    "head",
    "date",
    "dd",
    "ls",
    "mount",
    "yes",
    "wc",
    "mkdir",
    "stty",
    "tty",
    "test",
    "tr",
    "printf",
    "ps",
    "touch",
    "rm",
    "true",
)
_LIBC = ctypes.CDLL(None, use_errno=True)


class BusyboxImages:
    """Root file systems made of this machine's busybox."""

    def __init__(self, policy: Policy, _processes: Processes) -> None:
        self._policy = policy

    def prepare(self, order: Order) -> Rootfs:
        """See the module's docstring."""
        if order.directory:
            return Rootfs(order.directory, "")
        order.progress(Phase.PULL, f"pulling {order.reference}", 0, 100)
        fetched = b""
        match order.reference.removeprefix("registry.test/").removesuffix(":1").split("/"):
            case ["test", "busybox"]:
                pass
            case ["test", "scratch"]:
                root = f"{DIRECTORY}/rootfs/{order.container}"
                os.makedirs(root)
                shutil.copy("/bin/busybox", f"{root}/busybox")
                return Rootfs(root, DIGEST)
            case ["test", "dial", host, port]:
                fetched = _fetch(order, host, int(port))
            case ["test", "content"]:
                fetched = _content(order)
            case ["test", "fail"]:
                raise VerifyError(ErrorCode.DIGEST_MISMATCH, "layer sha256:0:\nnot what it says")
            case ["test", "bug"]:
                raise ZeroDivisionError("nobody expected this")
            case ["test", "wait"]:
                while True:
                    order.progress(Phase.PULL, "waiting", 1, 100)
                    time.sleep(0.05)
            case _:
                raise PullError(ErrorCode.IMAGE_NOT_FOUND, f"no image {order.reference}")
        root = f"{DIRECTORY}/rootfs/{order.container}"
        os.makedirs(f"{root}/bin")
        os.makedirs(f"{root}/etc")
        shutil.copy("/bin/busybox", f"{root}/bin/busybox")
        for name in APPLETS:
            os.symlink("busybox", f"{root}/bin/{name}")
        with open(f"{root}/etc/passwd", "w") as file:
            file.write("root:x:0:0:root:/root:/bin/sh\n")
        for directory in (root, f"{root}/bin"):
            _programs(directory)
        with open(f"{root}/fetched", "wb") as file:
            file.write(fetched)
        return Rootfs(root, DIGEST)

    def check_disk(self) -> None:
        """There is none that could fail."""

    def disk(self) -> str:
        """Where volumes lie."""
        return f"{DIRECTORY}/disk"

    def release(self, container: str) -> None:
        """Remove what `prepare` made."""
        shutil.rmtree(f"{DIRECTORY}/rootfs/{container}", ignore_errors=True)


def _programs(directory: str) -> None:
    """Files that cannot be executed, each for another reason."""
    for name, content, mode in (
        ("not-executable", "#!/bin/sh\n", 0o644),
        ("no-interpreter", "#!/bin/nothing\n", 0o755),
        ("garbage", "garbage", 0o755),
    ):
        with open(f"{directory}/{name}", "w") as file:
            file.write(content)
        os.chmod(f"{directory}/{name}", mode)


def _fetch(order: Order, host: str, port: int) -> bytes:
    try:
        with order.dial(host, port) as connection:
            connection.sendall(b"give\n" * 100_000)
            connection.shutdown(socket.SHUT_WR)
            received = []
            while data := connection.recv(65536):
                received.append(data)
    except DialFailed as error:
        code = ErrorCode.ENDPOINT_REFUSED if error.refused else ErrorCode.REGISTRY_UNREACHABLE
        raise PullError(code, str(error)) from error
    return b"".join(received)


def _content(order: Order) -> bytes:
    assert order.fetch is not None, "the host offers nothing"
    try:
        with order.fetch(DIGEST) as stream, stream.makefile("rb") as file:
            return file.read()
    except DialFailed as error:
        raise PullError(ErrorCode.IMAGE_NOT_FOUND, str(error)) from error


def _mount(kind: str, target: str, options: str = "", flags: int = 0) -> None:
    if _LIBC.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def bind(init_data: InitData) -> None:
    """As if the VM had been launched with another document wherever this one says so."""
    if b"another" in init_data.text:
        raise AttestError(ErrorCode.INIT_DATA_MISMATCH, "the init-data is not the VM's")


def mount_shared(target: str) -> None:
    """What is a virtio-fs device in a VM: a directory of the test's, or virtiofsd's namespace."""
    if sys.argv[3].isdigit():
        simulated_share.mount(int(sys.argv[3]), target)
        return
    bind, recursive = 0x1000, 0x4000
    if _LIBC.mount(sys.argv[3].encode(), target.encode(), None, bind | recursive, None) != 0:
        raise OSError(ctypes.get_errno(), "the VM has no such device")


def find_disk(name: str) -> tuple[int, int]:
    """The VM's disk is the host's device itself, whose number is in the serial, or in the address."""
    kind, *rest = name.split("-")
    if kind == "pmem":
        return hypervisor_rules.number_at(int(rest[0], 16))
    major, minor = rest
    return int(major), int(minor)


def _tpm(path: str) -> Transact:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)

    def transact(command: bytes) -> bytes:
        connection.sendall(command)
        return connection.recv(4096)

    return transact


def _spare_crun_rules() -> None:
    try:
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
        return
    except (ValueError, OSError):
        pass
    with open("/run/crun.wrapper", "w") as file:
        file.write(WITHOUT_RULES)
    os.chmod("/run/crun.wrapper", 0o755)
    with open("/run/crun.real", "w"):
        pass
    for source, target in ((CRUN, "/run/crun.real"), ("/run/crun.wrapper", CRUN)):
        bind = 0x1000
        if _LIBC.mount(source.encode(), target.encode(), None, bind, None) != 0:
            raise OSError(ctypes.get_errno(), f"mount {target}")


def main() -> None:
    """Set up what a VM would have, serve, and end as a VM does: with everything in it."""
    os.umask(0o022)
    detach = 2
    nosuid_nodev_noexec = 2 | 4 | 8
    _mount("sysfs", "/sys", flags=nosuid_nodev_noexec)
    _LIBC.umount2(b"/sys/fs/cgroup", detach)
    _mount("cgroup2", "/sys/fs/cgroup", flags=nosuid_nodev_noexec)
    _mount("tmpfs", "/run", "mode=0755")
    _spare_crun_rules()
    loopback_up()
    choice = Choice("/nonexistent")
    tpm = sys.argv[4] if len(sys.argv) > 4 else ""
    if tpm:
        choice._found = TpmAttester(_tpm(tpm), "/nonexistent")
    machine = Machine(
        tee=sys.argv[2],
        directory=DIRECTORY,
        bind=choice.bind if tpm else bind,
        set_hostname=socket.sethostname,
        set_clock=lambda _nanoseconds: None,
        follow_clock=lambda _nanoseconds: None,
        images=BusyboxImages,
        shares=SharedTree(f"{DIRECTORY}/host", mount_shared),
        evidence=choice.evidence,
        vault=lambda init_data, dial: Vault(init_data, choice, dial),
        record=choice.record,
        take_added=lambda: CPUS,
        find_disk=find_disk,
    )
    serve(int(sys.argv[1]), machine)
    print("the agent has ended", file=sys.stderr)


if __name__ == "__main__":
    main()
