#!/usr/bin/python3 -ISE
"""A program that stands where the shim stands, for tests of the command line alone: it boots no VM.

It keeps the control protocol and the state directory as client.py and store.py describe them. What
it does is said by the container's annotation `test.shim`, words separated by blanks:

    exit=N          on start: write `out` to stdout, then exit with N (default: run until killed)
    refuse=KIND     answer create with `error KIND <test.text> <test.remedy>`
    die             end without an answer to create, with a last word on stderr
    hang            never answer create; end when the caller goes away
    deaf            never answer anything after create
    helper          keep a child process, recorded as `vmm`, that outlives us
    oom             exit for want of memory

A container, and an exec of the program `report`, write what their stand-in says to their stdout, with
the size of their terminal; `signal 15` ends them. Other programs that an exec finds: `cat`, and
`exit N`, which writes `out` first. Requests but the hot ones, and what
stand-ins say, are noted in the file `requests`.
"""

import array
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import struct
import sys
import termios


class Program:
    """What runs: the container's first one, or an exec."""

    def __init__(self, pid: int, descriptors: list[int], args: list[str]) -> None:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        *self.stdio, self.link = descriptors
        self.pid = pid
        self.args = args

    def watched(self) -> list[int]:
        return [self.link, *(self.stdio[:1] if self.args == ["cat"] else [])]

    def say(self, text: str) -> None:
        try:
            size = fcntl.ioctl(self.stdio[1], termios.TIOCGWINSZ, b"\0" * 8)
        except OSError:
            size = b"\0" * 8
        rows, columns, _, _ = struct.unpack("HHHH", size)
        with contextlib.suppress(OSError):  # its terminal has hung up
            os.write(self.stdio[1], f"{text} {rows}x{columns}\n".encode())

    def finish(self, code: int | None) -> None:
        for descriptor in self.stdio:
            os.close(descriptor)
        if code is not None:
            os.write(self.link, f"{code}\n".encode())
        os.close(self.link)


class Shim:
    def __init__(self, directory: str, listener: socket.socket) -> None:
        os.chdir(directory)
        self.listener = listener
        with open("shim.json", "rb") as file:
            self.handover = json.load(file)
        self.annotations = self.handover["container"]["annotations"]
        self.words = dict(
            (*word.split("=", 1), "")[:2] for word in self.annotations.get("test.shim", "").split()
        )
        self.status = "creating"
        self.first: Program | None = None
        self.execs: list[Program] = []

    def programs(self) -> list[Program]:
        return [*self.execs, *([self.first] if self.first else [])]

    def serve(self) -> None:
        while True:
            watched = {fd: one for one in self.programs() for fd in one.watched()}
            ready, _, _ = select.select([self.listener.fileno(), *watched], [], [])
            for descriptor in ready:
                if descriptor in watched:
                    if watched[descriptor] in self.programs():
                        self.readable(watched[descriptor], descriptor)
                    continue
                connection, _ = self.listener.accept()
                with connection:
                    message, rights, _, _ = connection.recvmsg(1 << 18, socket.CMSG_SPACE(64))
                    if message:
                        given = array.array("i")
                        for _, _, data in rights:
                            given.frombytes(data[: len(data) - len(data) % given.itemsize])
                        self.answer(connection, message.decode().split("\0"), list(given))

    def readable(self, program: Program, descriptor: int) -> None:
        """Its stand-in says something, or is gone; or there is input."""
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # a terminal that has hung up
            data = b""
        if descriptor != program.link:
            if data:
                os.write(program.stdio[1], data)
            else:
                self.finish(program, 0)
        elif not data:
            self.finish(program, None)
        else:
            for line in data.decode().splitlines():
                self.note(["link", line])
                program.say(line)
                if line == "signal 15":
                    self.finish(program, 143)

    def answer(self, connection: socket.socket, fields: list[str], descriptors: list[int]) -> None:
        verb = fields[0]
        if "deaf" in self.words and verb != "create":
            select.select([connection], [], [])
            return
        if verb == "create":
            self.create(connection, fields, descriptors)
        elif verb == "start" and self.status == "created":
            self.start(connection)
        elif verb == "kill" and self.status in ("created", "running", "paused"):
            connection.send(b"ok")
            if int(fields[2]) not in (0, signal.SIGWINCH, signal.SIGCONT):
                self.finish(self.first, 128 + int(fields[2]))
        elif verb == "delete" and (self.status == "stopped" or fields[2] == "1"):
            if self.first:
                self.finish(self.first, None)
            connection.send(b"ok")
            os._exit(0)
        elif verb in ("exec", "pause", "resume", "update", "ps", "stats", "attest"):
            self.note(fields)
            connection.send("\0".join(self.carry_out(verb, fields, descriptors)).encode())
        else:
            connection.send(f"error\0wrong-state\0{verb} in state {self.status}\0".encode())

    def carry_out(self, verb: str, fields: list[str], descriptors: list[int]) -> list[str]:
        if verb == "exec" and self.status in ("created", "running"):
            return self.execute(fields, descriptors)
        if verb == "pause" and self.status in ("created", "running"):
            self.set_status("paused")
            return ["ok"]
        if verb == "resume" and self.status == "paused":
            self.set_status("running")
            return ["ok"]
        if verb == "update" and self.status != "stopped":
            return ["ok"]
        if verb == "ps" and self.status != "stopped":
            processes = [{"pid": 7, "ppid": 1, "uid": 33, "command": "sleep\x1b[31m 9"}]
            pids = [one.pid for one in reversed(self.programs())]
            return ["ok", json.dumps({"pids": pids, "processes": processes})]
        if verb == "attest" and self.status != "stopped":
            text = "sealrun attest: fresh evidence over the nonce " + fields[2]
            report = base64.b64encode(hashlib.sha384(text.encode()).digest()).decode()
            evidence = {"tee": "sample", "evidence": {"svn": "1", "report_data": report}}
            return ["ok", json.dumps(evidence)]
        if verb == "stats" and self.status != "stopped":
            return ["ok", '{"pids":{"current":1},"memory":{"raw":{"oom_kill":1}}}']
        return ["error", "wrong-state", f"{verb} in state {self.status}", ""]

    def execute(self, fields: list[str], descriptors: list[int]) -> list[str]:
        program = Program(int(fields[3]), descriptors, json.loads(fields[4])["args"])
        if program.args[0] not in ("cat", "report", "exit"):
            program.finish(None)
            return ["error", "program-not-found", "the program to run is not in the image", ""]
        self.execs.append(program)
        if program.args[0] == "exit":
            os.write(program.stdio[1], b"out\n")
            self.finish(program, int(program.args[1]))
        elif program.args[0] == "report":
            program.say("begin")
        return ["ok"]

    def create(self, connection: socket.socket, fields: list[str], descriptors: list[int]) -> None:
        self.first = Program(int(fields[2]), descriptors, [])
        if "helper" in self.words:
            self.keep_helper()
        connection.send(b"progress\0boot\0starting the virtual machine")
        connection.send(b"progress\0pull\0layer 1 of 1\x1b[31m")
        if "die" in self.words:
            sys.stderr.write("the simulated shim dies here\n")
            sys.stderr.flush()
            os._exit(3)
        if "hang" in self.words:
            select.select([connection], [], [])
            os._exit(4)
        if "refuse" in self.words:
            text, remedy = (self.annotations.get(f"test.{one}", "") for one in ("text", "remedy"))
            connection.send("\0".join(("error", self.words["refuse"], text, remedy)).encode())
            os._exit(5)
        self.set_status("created")
        connection.send(b"ok")

    def start(self, connection: socket.socket) -> None:
        self.set_status("running")
        connection.send(b"ok")
        if self.first and "exit" in self.words:
            os.write(self.first.stdio[1], b"out\n")
            self.finish(self.first, int(self.words["exit"]))

    def finish(self, program: Program | None, code: int | None) -> None:
        if program is None:
            return
        if program in self.execs:
            self.execs.remove(program)
        else:
            if "oom" in self.words:
                self.annotations["io.sealrun.oom"] = "true"
            self.first = None
            self.set_status("stopped")
        program.finish(code)

    def note(self, fields: list[str]) -> None:
        with open("requests", "a") as file:
            file.write(json.dumps(fields) + "\n")

    def set_status(self, status: str) -> None:
        self.status = status
        document = {
            "ociVersion": "1.0.2",
            "id": self.handover["id"],
            "status": status,
            "pid": self.first.pid if self.first else 0,
            "bundle": self.handover["container"]["bundle"],
            "annotations": self.annotations,
        }
        with open("state.json.new", "w") as file:
            json.dump(document, file, separators=(",", ":"))
        os.rename("state.json.new", "state.json")

    def keep_helper(self) -> None:
        child = os.fork()
        if child == 0:
            os.execv("/bin/sleep", ["sleep", "1000"])
        with open(f"/proc/{child}/stat") as file:
            started = file.read().rpartition(") ")[2].split()[19]
        with open("processes", "a") as file:
            file.write(f"vmm {child} {started}\n")


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    listener = socket.socket(fileno=int(arguments["--listen-fd"]))
    listener.set_inheritable(False)  # who holds it keeps the shim alive in the CLI's eyes
    Shim(arguments["--directory"], listener).serve()


if __name__ == "__main__":
    main()
