#!/usr/bin/python3 -ISE
"""A program that behaves as cloud-hypervisor v53 and v54 do, and needs no KVM: same command line,
same REST interface and status codes, same events, same hybrid vsock. What it "boots" is the real
agent in namespaces of its own (simulated_guest.py). Where it differs from what the documents say it
was taught by the real one (tests/system/test_cloud_hypervisor.py): a configuration is validated by
vm.boot and not by vm.create; vmm.shutdown is answered with 200; --landlock alone is refused; a tap
is looked at by vm.boot; a failed boot can leave a VM that only vm.delete takes away.

For tests only. It is not installed, and no configuration of an installed sealrun leads here: a test
gives the driver this program's path, and says that KVM is there, as Python arguments.

Each request and answer is judged by the OpenAPI description, where that is at hand (openapi.py); a
violation is answered with 500, so that whoever made it fails.

SIGUSR1 stands for a guest that resets the machine. The environment variable SIMULATOR holds what else
is wanted, words separated by blanks; CALL is a call's name as "vm.boot":

    hang=CALL  die=CALL  garble=CALL  refuse=CALL   never answer it; end instead; answer nonsense; 500
    version=V       the version to claim          features=F,G  what was built in
    guest=none      boot a process that only sleeps         takes=MIB  of added memory, at most
    garble-event=E  events=N                      cut the event E short; tell each event N times
    trace=PATH      append every request to PATH as a line of JSON
    unjudged        whatever the description says: for tests that begin hundreds of VMs
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
sys.path[:0] = [str(_ROOT / room) for room in ("tests", "vmm", "guest-agent")]
sys.path.append(str(_ROOT / f"build/venv/lib/{_VERSION}/site-packages"))

from simulators import hypervisor_rules as rules  # noqa: E402
from simulators import openapi  # noqa: E402
from simulators.http_server import Answer, Request, Server  # noqa: E402
from simulators.hypervisor_rules import Refusal  # noqa: E402
from simulators.simulated_guest import Guest  # noqa: E402

OPTIONS = {"--api-socket": 1, "--event-monitor": 1, "--seccomp": 1, "-v": 0}
GETS = ("vmm.ping", "vm.info", "vm.counters")
WITH_BODY = (
    "vm.create",
    "vm.add-net",
    "vm.add-disk",
    "vm.add-pmem",
    "vm.remove-device",
    "vm.resize",
)
DEVICES = rules.DEVICES
FAILURES = {
    "vm.create": "The VM could not be created",
    "vm.boot": "The VM could not boot",
    "vm.pause": "The VM could not be paused",
    "vm.resume": "The VM could not resume",
    "vm.info": "The VM info is not available",
    "vm.resize": "The VM could not be resized",
    "vm.shutdown": "The VM could not shutdown",
    "vm.add-net": "The network device could not be added to the VM",
    "vm.add-disk": "The disk could not be added to the VM",
    "vm.add-pmem": "The pmem device could not be added to the VM",
    "vm.remove-device": "The device could not be removed from the VM",
}


def transition(verb: str, state: str) -> Refusal:
    return Refusal(
        500,
        f"Cannot {verb} VM",
        f"Failed to {verb} migratable component",
        f"Invalid transition: InvalidStateTransition({state}, {state})",
    )


def not_created() -> Refusal:
    return Refusal(404, "VM is not created")


class Vmm:
    """The program's state: one VM at most."""

    def __init__(self, switches: dict[str, str], emit: Callable[..., None]) -> None:
        self.config: dict[str, Any] | None = None
        self.guest: Guest | None = None
        self.paused = self.half_booted = self.ended = self.failed = False
        self._cpus = self._requested = 0  # of the VM that runs; bytes of virtio-mem
        self.on_boot: Callable[[Guest], None] = lambda _guest: None
        self.on_end: Callable[[Guest], None] = lambda _guest: None
        self._switches, self._emit = switches, emit
        self._taps: list[int] = []
        self._tree: dict[str, Any] = {}  # of devices that are memory
        self._vsock: socket.socket | None = None
        self._tpm: rules.Tpm | None = None

    # --- the calls -------------------------------------------------------------------------------

    def vmm_ping(self, _: Any, __: list[int]) -> Any:
        version = self._switches.get("version", "54.0.0")
        return {
            "build_version": f"v{version}-simulated",
            "version": version,
            "pid": os.getpid(),
            "features": features(self._switches),
        }

    def vmm_shutdown(self, _: Any, __: list[int]) -> None:
        self.vm_delete(None, [])
        self._emit("vmm", "shutdown")
        self.ended = True

    def vm_create(self, config: Any, _: list[int]) -> None:
        """Stored; it is validated when it is used."""
        if self.config is not None:
            raise Refusal(500, "VM is already created")
        self.config = config

    def vm_add_net(self, config: Any, descriptors: list[int]) -> Any:
        wanted = self._created()
        changed = {**wanted, "net": [*wanted.get("net", []), config]}
        rules.validate(changed)
        if self.guest is not None:
            for tap in descriptors:
                rules.take_tap(tap, config)
                self._plug(self.guest, tap, config)
        self._taps += descriptors
        self.config = changed
        return self._added(config)

    def vm_add_disk(self, config: Any, _: list[int]) -> Any:
        wanted = self._created()
        changed = {**wanted, "disks": [*wanted.get("disks", []), config]}
        rules.validate(changed)
        if self.guest is not None:
            rules.open_disk(config)
        self.config = changed
        return self._added(config)

    def vm_add_pmem(self, config: Any, _: list[int]) -> Any:
        wanted = self._created()
        changed = {**wanted, "pmem": [*wanted.get("pmem", []), config]}
        rules.validate(changed)
        if self.guest is not None:
            self._tree |= rules.open_pmem(config)
        self.config = changed
        return self._added(config)

    def _added(self, config: dict[str, Any]) -> Any:
        return None if self.guest is None else {"id": config["id"], "bdf": "0000:00:08.0"}

    def vm_remove_device(self, argument: Any, _: list[int]) -> None:
        """Of a running VM only these kinds of devices are taken out here."""
        self._running()
        wanted = self._created()
        for kind in ("net", "disks", "pmem"):
            kept = [one for one in wanted.get(kind, []) if one["id"] != argument["id"]]
            if len(kept) < len(wanted.get(kind, [])):
                self.config = {**wanted, kind: kept}
                for name in (argument["id"], rules.parent_of(argument["id"])):
                    self._tree.pop(name, None)
                return
        raise Refusal(404, DEVICES, f"No device with id {argument['id']}")

    def vm_boot(self, _: Any, __: list[int]) -> None:
        if self.guest is not None or self.half_booted:
            raise Refusal(500, "VM is already created")
        self._emit("vm", "booting")
        if self.config is None:
            raise Refusal(404, "VM config is missing")
        rules.validate(self.config)
        if self.config.get("platform", {}).get("sev_snp"):
            self.ended = self.failed = True
            rules.panic()
        self._boot(self.config)
        self._emit("vm", "booted")

    def vm_pause(self, _: Any, __: list[int]) -> None:
        guest = self._running()
        self._emit("vm", "pausing")
        if self.paused:
            raise transition("pause", "Paused")
        guest.signal(signal.SIGSTOP)
        self.paused = True
        self._emit("vm", "paused")

    def vm_resume(self, _: Any, __: list[int]) -> None:
        guest = self._running()
        self._emit("vm", "resuming")
        if not self.paused:
            raise transition("resume", "Running")
        guest.signal(signal.SIGCONT)
        self.paused = False
        self._emit("vm", "resumed")

    def vm_info(self, _: Any, __: list[int]) -> Any:
        config = self._created()
        state = "Created" if self.guest is None else "Paused" if self.paused else "Running"
        taken = min(self._requested, int(self._switches.get("takes", "1000000")) << 20)
        size = config["memory"]["size"] + taken
        told = {"config": config, "state": state, "memory_actual_size": size}
        return told if self.guest is None else {**told, "device_tree": self._tree}

    def vm_resize(self, wanted: Any, _: list[int]) -> None:
        """CPUs first; what was done stays done where the memory is refused then."""
        config = self._created()
        if self.guest is None:
            if cpus := wanted.get("desired_vcpus"):
                config["cpus"]["boot_vcpus"] = cpus
            config["memory"]["size"] = wanted.get("desired_ram") or config["memory"]["size"]
            return
        self._emit("vm", "resizing")
        if (cpus := wanted.get("desired_vcpus")) is not None:
            self._cpus = rules.resized_cpus(config["cpus"], cpus)
        if (memory := wanted.get("desired_ram")) is not None:
            self._requested = rules.resized_memory(config["memory"], memory, self._requested)
        self._emit("vm", "resized")

    def vm_counters(self, _: Any, __: list[int]) -> Any:
        self._running()
        return {}

    def vm_shutdown(self, _: Any, __: list[int]) -> None:
        self._running()
        self._pull_the_plug()
        self._emit("vm", "shutdown")

    def vm_delete(self, _: Any, __: list[int]) -> None:
        if self.config is None:
            return
        if self.guest is not None:
            self.vm_shutdown(None, [])
        elif self.half_booted:
            self._unplug()
            self._emit("vm", "shutdown")
        self.half_booted = False
        for tap in self._taps:
            os.close(tap)
        self._taps = []
        self.config = None
        self._emit("vm", "deleted")

    def vm_reboot(self, _: Any, __: list[int]) -> None:
        self._emit("vm", "rebooting")
        self._running()
        config = self._created()
        self._pull_the_plug()
        self._boot(config)
        self._emit("vm", "rebooted")

    # --- what happens by itself ------------------------------------------------------------------

    def powered_off(self) -> None:
        """The guest ended."""
        assert self.guest is not None
        self.on_end(self.guest)
        self.guest.reap()
        self.guest = None
        self._unplug()
        self._emit("vm", "shutdown")
        self.vmm_shutdown(None, [])

    def reset(self) -> None:
        """The guest resets the machine."""
        if self.guest is not None:
            self.vm_reboot(None, [])

    # --- parts -----------------------------------------------------------------------------------

    def _created(self) -> dict[str, Any]:
        if self.config is None:
            raise not_created()
        return self.config

    def _running(self) -> Guest:
        if self.guest is None:
            raise Refusal(500, "VM is not running")
        return self.guest

    def _boot(self, config: dict[str, Any]) -> None:
        for tap, network in zip(self._taps, config.get("net", []), strict=True):
            rules.take_tap(tap, network)
        if "tpm" in config:
            self._tpm = rules.connect_tpm(config["tpm"]["socket"])
        for disk in config.get("disks", []):
            rules.open_disk(disk)
        self._tree = {}
        for one in config.get("pmem", []):
            self._tree |= rules.open_pmem(one)
        path = config["vsock"]["socket"]
        if config.get("landlock_enable") and not os.path.dirname(path):
            raise Refusal(500, DEVICES, "Cannot create virtio-vsock backend", "Permission denied")
        self._vsock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._vsock.bind(path)
            self._vsock.listen()
            for member in ("kernel", "initramfs"):
                if not os.path.isfile(config["payload"][member]):
                    self.half_booted = True
                    raise Refusal(500, f"Cannot open {member} file", "No such file or directory")
            shares = [share["socket"] for share in config.get("fs", [])]
            agent = self._switches.get("guest") != "none"
            self.guest = Guest(path, shares, agent=agent, tpm=self._tpm)
            self._cpus, self._requested = config["cpus"]["boot_vcpus"], 0
            for tap, network in zip(self._taps, config.get("net", []), strict=True):
                self._plug(self.guest, tap, network)
        except OSError as error:
            self._unplug()
            raise Refusal(500, DEVICES, "Cannot create virtio-vsock backend", str(error)) from error
        self.on_boot(self.guest)

    def _plug(self, guest: Guest, tap: int, network: dict[str, Any]) -> None:
        if self._switches.get("guest") != "none" and "mac" in network:
            guest.plug(tap, network["mac"])

    def _pull_the_plug(self) -> None:
        assert self.guest is not None
        self.on_end(self.guest)
        self.guest.kill()
        self.guest = None
        self._unplug()

    def _unplug(self) -> None:
        """The devices of a VM that is gone."""
        self.paused = False
        if self._vsock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._vsock.getsockname())
            self._vsock.close()
            self._vsock = None


class Program:
    """The loop around Vmm: its socket, its guest's end, its signals."""

    def __init__(self, api: int, events: int, switches: dict[str, str]) -> None:
        self._started = time.monotonic()
        self._events, self._switches = events, switches
        os.set_blocking(events, False)
        self._selector = selectors.DefaultSelector()
        self._vmm = Vmm(switches, self.emit)
        self._vmm.on_boot, self._vmm.on_end = self._watch, self._forget
        Server(socket.socket(fileno=api), self._selector, self._handle)
        wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._signalled(wakeup))

    def run(self) -> int:
        """Until the VM and the VMM are shut down; the exit status."""
        self.emit("vmm", "starting")
        while not self._vmm.ended:
            for key, _ in self._selector.select():
                key.data()
        return int(self._vmm.failed)

    def emit(self, source: str, event: str, properties: dict[str, str] | None = None) -> None:
        """Tell the event monitor; what does not fit is lost."""
        text = json.dumps(
            {
                "timestamp": {"secs": int(time.monotonic() - self._started), "nanos": 1},
                "source": source,
                "event": event,
                "properties": properties,
            },
            indent=2,
        )
        data = text.encode() + b"\n\n"
        if self._switches.get("garble-event") == event:
            data = data[:20] + b"\n\n"
        data *= int(self._switches.get("events", "1"))
        with contextlib.suppress(OSError):
            os.write(self._events, data)

    def _watch(self, guest: Guest) -> None:
        self._selector.register(guest.pidfd, selectors.EVENT_READ, self._vmm.powered_off)

    def _forget(self, guest: Guest) -> None:
        self._selector.unregister(guest.pidfd)

    def _signalled(self, wakeup: int) -> None:
        for number in os.read(wakeup, 64):
            if number == signal.SIGUSR1:
                self._vmm.reset()
            else:
                self._vmm.vmm_shutdown(None, [])

    def _handle(self, request: Request) -> Answer | None:
        name = request.path.removeprefix("/api/v1/")
        if path := self._switches.get("trace"):
            with open(path, "a") as file:
                line = [request.method, name, request.body.decode(), len(request.descriptors)]
                file.write(json.dumps(line) + "\n")
        for misbehaviour in ("hang", "die", "garble", "refuse"):
            if self._switches.get(misbehaviour) == name:
                return getattr(self, f"_{misbehaviour}")()
        return self._answer(request, name)

    def _answer(self, request: Request, name: str) -> Answer:
        call = getattr(self._vmm, name.replace(".", "_").replace("-", "_"), None)
        if call is None or not request.path.startswith("/api/v1/vm"):
            return Answer(404, b'["Not Found"]')
        if request.method != ("GET" if name in GETS else "PUT") or (
            bool(request.body) != (name in WITH_BODY)
        ):
            return Answer(400, b'["Bad Request"]')
        try:
            argument = json.loads(request.body) if request.body else None
        except ValueError as error:
            return Answer(400, json.dumps(["Failed to deserialize JSON", str(error)]).encode())
        try:
            openapi.check_request(request.method, name, request.body)
            answer = _made(name, lambda: call(argument, request.descriptors))
            openapi.check_answer(request.method, name, answer.status, answer.body)
        except openapi.Violation as violation:
            sys.stderr.write(f"simulator: {violation}\n")
            return _failure(Refusal(500, str(violation)), name)
        return answer

    def _hang(self) -> None:
        return None

    def _die(self) -> None:
        sys.stderr.write("cloud-hypervisor: 0.1s: <vmm> ERROR:simulated.rs:1 -- it dies here\n")
        sys.stderr.flush()
        os._exit(1)

    def _garble(self) -> Answer:
        return Answer(0, raw=b"\x00\x01 this is no HTTP \r\n\r\n")

    def _refuse(self) -> Answer:
        return _failure(Refusal(500, "it was told to", "by a test"), "vm.boot")


def _made(name: str, call: Callable[[], Any]) -> Answer:
    """The answer to a call."""
    try:
        result = call()
    except Refusal as refusal:
        return _failure(refusal, name)
    body = b"" if result is None else json.dumps(result).encode()
    return Answer(200 if body or name == "vmm.shutdown" else 204, body)


def _failure(refusal: Refusal, name: str) -> Answer:
    chain = ["Error from API", FAILURES.get(name, name), *refusal.causes]
    return Answer(refusal.status, json.dumps(chain).encode())


def features(switches: dict[str, str]) -> list[str]:
    """What was built in."""
    return switches.get("features", "fw_cfg,igvm,io_uring,kvm,sev_snp").split(",")


def parse(words: list[str]) -> dict[str, str]:
    """The options; ends the program where it is given one that the real one does not have."""
    found = {}
    remaining = list(words)
    while remaining:
        option = remaining.pop(0)
        if option not in OPTIONS:
            sys.stderr.write(f"error: unexpected argument '{option}' found\n")
            sys.exit(2)
        found[option] = remaining.pop(0) if OPTIONS[option] else ""
    return found


def main() -> None:
    """What the real one's main does."""
    switches = dict(word.partition("=")[::2] for word in os.environ.get("SIMULATOR", "").split())
    if sys.argv[1:] == ["--version", "-v"]:
        print(f"cloud-hypervisor v{switches.get('version', '54.0.0')}-simulated")
        print(f"Migration Protocol Versions: 0\nEnabled features: {json.dumps(features(switches))}")
        return
    if "unjudged" in switches:
        openapi.SPECIFICATION = None
    os.umask(0o077)
    options = parse(sys.argv[1:])
    api, events = (
        int(options[name].removeprefix("fd=")) for name in ("--api-socket", "--event-monitor")
    )
    for descriptor in (api, events):
        os.set_inheritable(descriptor, False)
    sys.exit(Program(api, events, switches).run())


if __name__ == "__main__":
    main()
