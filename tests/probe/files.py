"""Runs in a container: uses the file system at /data (writable), /other (writable) and /ro (read-only)
in many ways and prints what came of each as one JSON object. Nothing in it depends on the runtime.

With the argument `hostile`, tries what a container must not achieve, with all capabilities.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import socket
import stat
import subprocess
import sys
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
RESULTS = {}


def attempt(name, work):
    """What `work` returns, or the name of its error."""
    try:
        result = work()
    except OSError as error:
        result = errno.errorcode[error.errno]
    RESULTS[name] = result


def put(path, data=b"x", flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, flags, 0o644)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def content(path):
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def large():
    data = hashlib.shake_256(b"seed").digest(3 * 1024 * 1024 + 17)
    put("/data/large", data)
    with open("/data/large", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def append():
    first = os.open("/data/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = os.open("/data/log", os.O_WRONLY | os.O_APPEND)
    for number in range(3):
        os.write(first, b"a%d " % number)
        os.write(second, b"b%d " % number)
    return content("/data/log")


def links():
    put("/data/one", b"linked")
    os.link("/data/one", "/data/two")
    os.symlink("one", "/data/soft")
    os.symlink("/nowhere", "/data/dangling")
    return [
        os.stat("/data/two").st_nlink,
        os.stat("/data/one").st_ino == os.stat("/data/two").st_ino,
        os.readlink("/data/soft"),
        content("/data/soft"),
        os.path.lexists("/data/dangling"),
    ]


def rename():
    put("/data/from", b"new")
    put("/data/to", b"old")
    os.rename("/data/from", "/data/to")
    return [content("/data/to"), os.path.exists("/data/from")]


def unlinked():
    put("/data/gone", b"still here")
    fd = os.open("/data/gone", os.O_RDWR)
    os.unlink("/data/gone")
    os.write(fd, b"STILL")
    return [os.pread(fd, 99, 0).decode(), os.fstat(fd).st_nlink]


def mapped():
    put("/data/mapped", b"." * 8192)
    with open("/data/mapped", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
        memory[4096:4102] = b"mapped"
        memory.close()
    return content("/data/mapped").strip(".")


def fifo():
    os.mkfifo("/data/fifo", 0o640)
    writer = threading.Thread(target=lambda: put("/data/fifo", b"through", os.O_WRONLY))
    writer.start()
    data = content("/data/fifo")
    writer.join()
    return data


def endpoint():
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind("/data/socket")
        listener.listen()
        caller.connect("/data/socket")
        caller.send(b"hello")
        return listener.accept()[0].recv(9).decode()


def locks():
    put("/data/lock")
    with open("/data/lock", "r+b") as first, open("/data/lock", "r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "exclusive"
    return "not exclusive"


def attributes():
    os.setxattr("/data/one", "user.mine", b"value")
    return [os.listxattr("/data/one"), os.getxattr("/data/one", "user.mine").decode()]


def metadata():
    put("/data/meta", b"12345")
    os.chmod("/data/meta", 0o4751)
    os.chown("/data/meta", 12, 34)
    os.chmod("/data/meta", 0o6751)
    os.utime("/data/meta", ns=(1_000_000_007, 2_000_000_009))
    os.truncate("/data/meta", 100)
    about = os.stat("/data/meta")
    return [oct(about.st_mode), about.st_uid, about.st_gid, about.st_size, about.st_atime_ns]


def many():
    os.mkdir("/data/many")
    for number in range(300):
        put(f"/data/many/{number:03}", b"")
    os.makedirs("/data/deep/" + "/".join("d" * 30))
    put(b"/data/many/\xff\n\x01")
    put("/data/many/" + "n" * 255)
    names = sorted(os.listdir(b"/data/many"))
    return [len(names), hashlib.sha256(b"/".join(names)).hexdigest()]


def execute():
    put("/data/script", b"#!/usr/bin/python3 -ISE\nprint('ran')\n")
    os.chmod("/data/script", 0o755)
    return subprocess.run(["/data/script"], capture_output=True, text=True).stdout


def copied():
    put("/data/source", b"copy me" * 1000)
    with open("/data/source", "rb") as source, open("/data/target", "wb") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 3000)
        os.sendfile(target.fileno(), source.fileno(), 3000, 4000)
    return hashlib.sha256(content("/data/target").encode()).hexdigest()


def sparse():
    fd = os.open("/data/sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 1 << 20)
    os.posix_fallocate(fd, 0, 4096)
    size = os.fstat(fd).st_size
    return [size, os.pread(fd, 3, 1 << 20).decode(), os.pread(fd, 4, 0) == bytes(4)]


def read_only():
    return {
        "read": content("/ro/file"),
        **{
            name: _error(work)
            for name, work in {
                "write": lambda: put("/ro/file"),
                "create": lambda: put("/ro/new"),
                "chmod": lambda: os.chmod("/ro/file", 0o777),
                "chown": lambda: os.chown("/ro/file", 1, 1),
                "utime": lambda: os.utime("/ro/file"),
                "unlink": lambda: os.unlink("/ro/file"),
                "mkdir": lambda: os.mkdir("/ro/new"),
                "xattr": lambda: os.setxattr("/ro/file", "user.x", b"y"),
                "rename": lambda: os.rename("/ro/file", "/ro/other"),
                "link": lambda: os.link("/ro/file", "/ro/other"),
            }.items()
        },
    }


def _error(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"


def use():
    """Everything that is the same on any file system."""
    for work in (
        large, append, links, rename, unlinked, mapped, fifo, endpoint, locks, attributes, metadata,
        many, execute, copied, sparse, read_only,
    ):  # fmt: skip
        attempt(work.__name__, work)
    for name, work in {
        "exists": lambda: put("/data/one", flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        "no directory": lambda: os.listdir("/data/one"),
        "not empty": lambda: os.rmdir("/data/many"),
        "too long": lambda: put("/data/" + "n" * 256),
        "across": lambda: os.rename("/data/one", "/other/one"),
        "linked across": lambda: os.link("/data/one", "/other/one"),
        "loop": lambda: (os.symlink("loop", "/data/loop"), content("/data/loop")),
        "name_max": lambda: os.statvfs("/data").f_namemax,
        "direct": lambda: put("/data/direct", flags=os.O_WRONLY | os.O_CREAT | os.O_SYNC),
    }.items():
        attempt(name, work)


def mount(source, target, kind, flags):
    """mount(2)."""
    arguments = [None if word is None else word.encode() for word in (source, target, kind)]
    if LIBC.mount(*arguments, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def hostile():
    """A container that has all capabilities, or a guest whose kernel it took over."""
    bind, remount = 0x1000, 0x20
    attempt("remount", lambda: mount(None, "/ro", None, bind | remount))
    RESULTS["after remount"] = read_only()
    for name, kind, number in (("disk", stat.S_IFBLK, (8, 0)), ("mem", stat.S_IFCHR, (1, 1))):
        device = os.makedev(*number)
        attempt(name, lambda n=name, k=kind, d=device: os.mknod(f"/data/{n}", k | 0o666, d))
    for name in ("trusted.overlay.opaque", "trusted.x"):
        attempt(name, lambda name=name: os.setxattr("/data", name, b"y"))
    os.symlink(sys.argv[2], "/data/escape")
    attempt("escape", lambda: content("/data/escape"))
    attempt("up", lambda: sorted(set(os.listdir("/data/../..")) & {"secret", "volume"}))


if sys.argv[1:2] == ["hostile"]:
    hostile()
else:
    use()
json.dump(RESULTS, sys.stdout)
sys.stdout.flush()
# What is written by a mapping alone, by a program that ends before anybody synchronizes anything.
with open("/data/last", "wb") as file:
    file.truncate(4096)
with open("/data/last", "r+b") as file:
    mmap.mmap(file.fileno(), 0)[:4] = b"last"
os._exit(0)
