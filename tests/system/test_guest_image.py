"""The real guest image: built twice, looked into, and booted by the real driver."""

import ast
import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq
import zmq.asyncio
from fixtures import loop
from sealrun_guest_image import cpio
from sealrun_guest_image.tree import File, Tree
from sealrun_protocol import limits, messages
from sealrun_runtime import namespaces
from sealrun_vmm import assets, cmdline, driver, kvm
from sealrun_vmm.driver import DriverName, MachineExit
from sealrun_vmm.qemu.driver import QemuMachine
from sealrun_vmm.spec import Disk, Nic, Share, VmSpec

pytestmark = [pytest.mark.vm, pytest.mark.root]

ROOT = Path(__file__).parents[2]
CACHE = "/var/cache/sealrun/guest-image"  # the builder's default: install.sh filled it
MEMORY_MIB = 256
GUEST_SHARE_MIB = 130  # what kernel, initrd and agent may take of it


def copy_of_sources(directory: Path) -> Path:
    """What the builder reads of the checkout, elsewhere: whoever edits the checkout meanwhile does
    not disturb, and the bytes must not depend on where the sources lie."""
    for name in ("guest-agent", "config/requirements"):
        shutil.copytree(ROOT / name, directory / name)
    return directory / "guest-agent"


def build(sources: Path, output: Path) -> str:
    command = ["/usr/bin/python3", str(sources / "image/build"), "--output", str(output)]
    result = subprocess.run(
        [*command, "--cache", CACHE], capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def image(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image") / "guest"
    build(sources, directory)
    return directory


@pytest.fixture
def spec(image: Path) -> VmSpec:
    found = assets.locate(str(image))
    accelerator = kvm.choose_accelerator()
    return VmSpec(
        name="test",
        accelerator=accelerator,
        cpus=2,
        memory_mib=MEMORY_MIB,
        kernel=found.kernel,
        initrd=found.initrd,
        cmdline=cmdline.base(accelerator),
    )


class Guest(NamedTuple):
    """A VM under way and the host's end of its channel."""

    machine: QemuMachine
    router: zmq.asyncio.Socket

    async def receive(self) -> messages.GuestMessage:
        frames = await asyncio.wait_for(self.router.recv_multipart(), limits.HELLO_SECONDS)
        assert frames[0] == messages.AGENT_IDENTITY
        return messages.decode_from_guest(frames[-1])

    async def send(self, message: messages.Message) -> None:
        await self.router.send_multipart([messages.AGENT_IDENTITY, messages.encode(message)])


@contextlib.asynccontextmanager
async def booted(spec: VmSpec, directory: Path) -> AsyncIterator[Guest]:
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.bind(f"ipc://{directory}/{spec.channel}")
    machine = await driver.load(DriverName.QEMU).launch(spec, str(directory))
    assert isinstance(machine, QemuMachine)
    try:
        yield Guest(machine, router)
    finally:
        await machine.stop()
        router.close()
        context.term()


def end_of(spec: VmSpec, directory: Path) -> MachineExit:
    """How a VM ends that never says Hello."""

    async def main() -> MachineExit:
        async with booted(spec, directory) as guest:
            return await asyncio.wait_for(guest.machine.wait(), limits.HELLO_SECONDS)

    return asyncio.run(main())


# --- the build -----------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(sources: Path, image: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(sources.parent, tmp_path / "else where") / "guest-agent"
    build(elsewhere, tmp_path / "again")
    for name in ("manifest.json", "vmlinux", "initrd"):
        same = (tmp_path / "again" / name).read_bytes() == (image / name).read_bytes()
        assert same, f"{name} differs"


def test_nothing_is_done_where_nothing_changed(sources: Path, image: Path) -> None:
    before = (image / "initrd").stat()
    assert "is up to date" in build(sources, image)
    assert (image / "initrd").stat().st_mtime_ns == before.st_mtime_ns


def test_a_change_of_our_sources_is_seen(sources: Path, image: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(sources.parent, tmp_path / "changed") / "guest-agent"
    with (changed / "sealrun_agent/version.py").open("a") as stream:
        stream.write("CHANGED = True\n")
    copy = shutil.copytree(image, tmp_path / "copy")
    assert "downloaded" not in build(changed, copy)
    assert (copy / "initrd").read_bytes() != (image / "initrd").read_bytes()


def test_a_damaged_image_is_built_again(sources: Path, image: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image, tmp_path / "copy")
    with (copy / "initrd").open("r+b") as stream:
        stream.write(b"X")
    assert "is up to date" not in build(sources, copy)
    assert assets.locate(str(copy))
    assert (copy / "initrd").read_bytes()[:6] == b"070701"


def test_no_space_is_one_line_and_leaves_no_image(sources: Path, tmp_path: Path) -> None:
    output = tmp_path / "full"
    output.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", output], check=True)
    try:
        command = ["/usr/bin/python3", str(sources / "image/build"), "--output", str(output)]
        result = subprocess.run(
            [*command, "--cache", CACHE], capture_output=True, text=True, timeout=900
        )
        left = list(output.iterdir())
    finally:
        subprocess.run(["umount", output], check=True)
    assert result.returncode == 1
    assert result.stderr.startswith("cannot build the guest image: ")
    assert result.stderr.endswith("No space left on device\n")
    assert result.stderr.count("\n") == 1
    assert left == []


@pytest.fixture(scope="module")
def unpacked(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unpacked")
    with (image / "initrd").open("rb") as stream:
        command = ["cpio", "--extract", "--make-directories", "--quiet"]
        subprocess.run(command, stdin=stream, cwd=directory, check=True)
    return directory


def imported(directory: Path) -> Iterator[str]:
    """Every module that sources under `directory` import, wherever in a function."""
    for path in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield node.module


def test_all_that_the_agent_imports_is_in_the_image(sources: Path, unpacked: Path) -> None:
    own = [sources / name for name in ("sealrun_protocol", "sealrun_agent")]
    wanted = {name for directory in own for name in imported(directory)}
    wanted |= {
        str(path.relative_to(sources).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for directory in own
        for path in directory.rglob("*.py")
    }
    wanted -= {"_typeshed"}  # exists for type checkers only
    assert "cryptography.hazmat.primitives.ciphers" in wanted
    code = (
        "import sys, importlib\n"
        "sys.path.insert(0, '/usr/lib/sealrun')\n"
        f"for name in {sorted(wanted)!r}:\n"
        "    importlib.import_module(name)\n"
        "import ssl; ssl.create_default_context()\n"
        "print(len(sys.modules))\n"
    )
    command = ["chroot", str(unpacked), "/usr/bin/python3.11", "-IS", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_nothing_but_the_wanted_is_in_the_image(unpacked: Path) -> None:
    programs = {path.name for path in (unpacked / "usr/bin").iterdir()}
    assert programs == {"crun", "gpgv", "python3.11"}
    paths = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
    assert not {path for path in paths if path.endswith((".py", ".h", ".a", ".pyi"))}
    assert not {path for path in paths if "/test/" in path or "/tests/" in path}


def test_the_image_says_its_age(unpacked: Path) -> None:
    """As the agent in it looks it up: its files have no times of their own."""
    code = (
        "import sys; sys.path.insert(0, '/usr/lib/sealrun')\n"
        "from sealrun_agent import clock; print(open(clock.NEWEST).read())\n"
    )
    command = ["chroot", str(unpacked), "/usr/bin/python3.11", "-IS", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 1_700_000_000 < int(result.stdout) < time.time()


# --- the boot ------------------------------------------------------------------------------------


def test_the_agent_says_hello_and_powers_off_on_request(spec: VmSpec, tmp_path: Path) -> None:
    async def main() -> tuple[messages.GuestMessage, MachineExit]:
        async with booted(spec, tmp_path) as guest:
            hello = await guest.receive()
            status = Path(f"/proc/{guest.machine.pid}/status").read_text()
            assert "\nSeccomp:\t2\n" in status, "QEMU filters its own system calls"
            await guest.send(messages.ConfigureSandbox(id=0, init_data=b"", hostname="", time_ns=0))
            assert await guest.receive() == messages.Done(id=0)
            await guest.send(messages.ShutdownSandbox(id=1))
            return hello, await asyncio.wait_for(guest.machine.wait(), 60)

    hello, ended = asyncio.run(main())
    assert isinstance(hello, messages.Hello)
    assert hello.version == messages.PROTOCOL_VERSION
    assert hello.memory_available_kib > (MEMORY_MIB - GUEST_SHARE_MIB) * 1024
    assert ended == MachineExit(orderly=True, reason="the guest powered off")
    assert b"boot failed" not in (tmp_path / "console.log").read_bytes()


def test_the_death_of_the_vmm_is_noticed_at_once(spec: VmSpec, tmp_path: Path) -> None:
    async def main() -> tuple[MachineExit, float]:
        async with booted(spec, tmp_path) as guest:
            await guest.receive()
            started = time.monotonic()
            os.kill(guest.machine.pid, signal.SIGKILL)
            return await guest.machine.wait(), time.monotonic() - started

    ended, seconds = asyncio.run(main())
    assert ended == MachineExit(orderly=False, reason="qemu ended with signal 9")
    assert seconds < 5


def altered(image: Path, directory: Path, path: str, data: bytes) -> str:
    """The path of an initrd like that of `image`, but with `data` at `path`."""
    tree = Tree()
    tree.add(path, File(data, 0o755))
    file = directory / "initrd.altered"
    # The kernel unpacks one archive after the other.
    file.write_bytes((image / "initrd").read_bytes() + cpio.archive(tree))
    return str(file)


def with_initrd(spec: VmSpec, path: str) -> VmSpec:
    return VmSpec(**{name: getattr(spec, name) for name in spec.__slots__} | {"initrd": path})


def test_an_agent_that_cannot_boot_says_why(spec: VmSpec, image: Path, tmp_path: Path) -> None:
    order = "usr/lib/sealrun/modules/order"
    broken = altered(image, tmp_path, order, b"channel no_such_module\n")
    ended = end_of(with_initrd(spec, broken), tmp_path)
    assert not ended.orderly
    assert ended.reason.startswith("the guest failed: sealrun-agent: boot failed: ")
    assert "no_such_module" in ended.reason


def test_an_agent_that_cannot_even_start_ends_the_vm(
    spec: VmSpec, image: Path, tmp_path: Path
) -> None:
    broken = altered(image, tmp_path, "usr/lib/sealrun/sealrun_agent/main.pyc", b"nonsense")
    ended = end_of(with_initrd(spec, broken), tmp_path)
    assert not ended.orderly
    assert ended.reason.startswith("the guest failed: Kernel panic - not syncing: ")
    assert b"bad magic number" in (tmp_path / "console.log").read_bytes()


def test_a_cut_initrd_ends_the_vm(spec: VmSpec, image: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes((image / "initrd").read_bytes()[: 8 << 20])
    ended = end_of(with_initrd(spec, str(tmp_path / "cut")), tmp_path)
    assert not ended.orderly
    assert ended.reason.startswith("the guest failed: ")


def test_a_refused_argument_is_told(spec: VmSpec, tmp_path: Path) -> None:
    with open(os.devnull) as nothing:
        bad = VmSpec(
            **{name: getattr(spec, name) for name in spec.__slots__}
            | {"nodes": nothing.fileno(), "disks": (Disk(serial="block-9-9", readonly=True),)}
        )
        ended = end_of(bad, tmp_path)
    assert not ended.orderly
    assert "qemu ended with status 1: " in ended.reason
    assert "/block-9-9" in ended.reason


# --- devices that later issues use ---------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[int]:
    """A tap device of its own, as the network room will hand it over."""
    import fcntl
    import struct

    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    tap, no_packet_info, vnet_header = 0x2, 0x1000, 0x4000  # linux/if_tun.h
    request = struct.pack("16sH22x", b"sealruntest%d", tap | no_packet_info | vnet_header)
    fcntl.ioctl(descriptor, 0x400454CA, request)  # TUNSETIFF
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def virtiofsd(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("virtiofsd", path="/usr/lib/qemu:/usr/libexec")
    if program is None:
        pytest.fail("virtiofsd not installed: run tests/run", pytrace=False)
    (tmp_path / "shared").mkdir()
    options = [
        "--socket-path=share.sock",
        "-o",
        f"source={tmp_path}/shared",
        "-o",
        "sandbox=chroot",
    ]
    with subprocess.Popen(
        [program, *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "share.sock").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield "share.sock"
        process.kill()


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[loop.Loop]:
    with loop.device(tmp_path / "disk") as device:
        yield device


def test_every_device_is_accepted_and_driven(
    spec: VmSpec, tap: int, virtiofsd: str, block_device: loop.Loop, tmp_path: Path
) -> None:
    nodes = namespaces.make_tmpfs()
    full = VmSpec(
        **{name: getattr(spec, name) for name in spec.__slots__}
        | {
            "nodes": nodes,
            "disks": (Disk(serial=block_device.serial, readonly=False),),
            "nics": (Nic(tap_fd=tap, mac="02:00:00:00:00:01", mtu=1400),),
            "shares": (Share(socket=virtiofsd, tag="bundle"),),
        }
    )

    async def main() -> None:
        async with booted(full, tmp_path) as guest:
            assert isinstance(await guest.receive(), messages.Hello)

    number = os.makedev(*block_device.number)
    os.mknod(block_device.serial, stat.S_IFBLK | 0o600, number, dir_fd=nodes)
    try:
        asyncio.run(main())
    finally:
        os.close(nodes)
    assert (tmp_path / "vmm.log").read_text() == ""


def test_the_newer_kernels_image_can_be_built(sources: Path, tmp_path: Path) -> None:
    command = ["/usr/bin/python3", str(sources / "image/build"), "--kernel-suite", "backports"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "newer"), "--cache", CACHE],
        capture_output=True,
        text=True,
        timeout=900,
    )
    if "Release file" in result.stderr or "cannot derive a newer suite" in result.stderr:
        pytest.skip(f"no backports suite is reachable: {result.stderr.splitlines()[0]}")
    assert result.returncode == 0, result.stderr
    assert assets.locate(str(tmp_path / "newer")).kernel_version > "6.12"
