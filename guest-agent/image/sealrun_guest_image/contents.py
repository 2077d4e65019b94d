"""What goes into the guest image, and what is left out: the lists to review.

Each thing in the initrd is part of the trusted computing base and of the guest's memory; README.md
beside the image folder says why each part is there.
"""

from typing import Final

# --- from Debian ---------------------------------------------------------------------------------

KERNEL_META_PACKAGE: Final = "linux-image-cloud-amd64"
KERNEL_PACKAGE_PREFIX: Final = "linux-image-"

PYTHON: Final = "python3.11"
PACKAGES: Final = (
    "python3.11-minimal",  # the interpreter
    "libpython3.11-minimal",  # the part of the standard library that starts it
    "libpython3.11-stdlib",  # the rest: ssl, http, ctypes, tarfile, …
    "crun",  # runs the container
    "e2fsprogs",  # makes the file system of the scratch disk
    "gpgv",  # checks OpenPGP signatures of images
    "ca-certificates",  # public CAs, for registries and brokers
    "libstdc++6",  # pyzmq's libzmq needs it, and no Debian package in this list does
)

PROGRAMS: Final = ("usr/bin/python3.11", "usr/bin/crun", "usr/sbin/mke2fs", "usr/bin/gpgv")
"""Files taken whole; their shared libraries follow by themselves."""

LOADED_BY_NAME: Final = ("libgcc_s.so.1",)
"""Libraries that glibc loads when they are needed (a thread's end), so that no file names them."""

CA_CERTIFICATES: Final = "usr/share/ca-certificates/mozilla/"
CA_BUNDLE: Final = "etc/ssl/certs/ca-certificates.crt"

MODULES: Final = {
    # loaded before the VM's devices are known
    "channel": ("virtio_pci",),
    # loaded always
    "container": ("overlay",),
    # loaded where the VM has such a device: virtio-<device id of the virtio specification>
    "virtio-3": ("virtio_console",),
    "virtio-19": ("vmw_vsock_virtio_transport",),
    "virtio-1": ("virtio_net",),
    # the scratch disk's encryption asks for ciphers by name, and the guest has no modprobe
    "virtio-2": (
        *("virtio_blk", "dm_integrity", "dm_crypt", "dm_snapshot", "dm_zero"),
        *("ghash_generic", "ctr", "gcm", "aesni_intel", "ghash_clmulni_intel"),
    ),
    "virtio-4": ("virtio_rng",),
    "virtio-5": ("virtio_balloon",),  # not where the VM's memory is encrypted
    "virtio-24": ("virtio_mem",),  # not where the VM's memory is encrypted
    "virtio-26": ("virtiofs",),
    "virtio-27": ("virtio_pmem", "nd_pmem"),  # not where the VM's memory is encrypted
    # loaded where the CPU says that the VM has such a TEE
    "tee-snp": ("sev_guest",),
    "tee-tdx": ("tdx_guest",),
}
"""Groups of kernel modules; what they need follows by itself. The agent's boot.py loads them."""

LATER_KERNELS: Final = ("tee-snp", "tee-tdx")
"""Groups that an older kernel does not have: it cannot run in such a VM."""

# --- from wheels ---------------------------------------------------------------------------------

SITE_PACKAGES: Final = (
    # path prefixes in the wheels that are taken
    "_cffi_backend.",  # cryptography's Rust part needs this one file of cffi
    "cryptography/",
    "msgspec/",
    "pyzmq.libs/",
    "zlib_ng/__init__.py",
    "zlib_ng/_version.py",
    "zlib_ng/zlib_ng.",
    "zmq/",
    "zstandard/__init__.py",
    "zstandard/backend_c.",
)
SITE_PACKAGES_DROPPED: Final = (
    "zmq/_future.py",  # asyncio, tornado, gevent: the agent has one poll loop
    "zmq/asyncio.py",
    "zmq/backend/cython/_zmq.py",  # the source of the shared object beside it
    "zmq/auth/",
    "zmq/backend/cffi/",
    "zmq/decorators.py",
    "zmq/devices/",
    "zmq/eventloop/",
    "zmq/green/",
    "zmq/log/",
    "zmq/ssh/",
    "zmq/tests/",
    "zmq/utils/garbage.py",
    "zmq/utils/monitor.py",
    "zmq/utils/win32.py",
    "zmq/utils/z85.py",
    "zmq/utils/zmqversion.py",
    "cryptography/fernet.py",
    "cryptography/hazmat/primitives/twofactor/",
)
"""Only Python modules (.py) and shared objects are taken: no stubs, headers, Cython sources."""

# --- the standard library ------------------------------------------------------------------------

STDLIB: Final = f"usr/lib/{PYTHON}/"
STDLIB_DROPPED: Final = (
    # development and packaging
    "ensurepip/", "venv/", "distutils/", "lib2to3/", "idlelib/", "pydoc_data/", "unittest/",
    "test/", "__phello__/", "_sysconfigdata", "sysconfig.py", "site.py", "sitecustomize.py",
    "_sitebuiltins.py", "this.py", "antigravity.py", "zipapp.py", "compileall.py", "py_compile.py",
    "bdb.py", "cProfile.py", "cmd.py", "code.py", "codeop.py", "doctest.py", "modulefinder.py",
    "pdb.py", "pickletools.py", "profile.py", "pstats.py", "pyclbr.py", "pydoc.py", "rlcompleter.py",
    "symtable.py", "tabnanny.py", "timeit.py", "trace.py", "tracemalloc.py", "optparse.py",
    "getopt.py", "imp.py", "argparse.py", "pprint.py", "runpy.py", "pkgutil.py",
    "__hello__.py", "_distutils_system_mod.py", "sre_compile.py", "sre_constants.py", "sre_parse.py", "lib-dynload/_lsprof.", "lib-dynload/_ctypes_test.",
    "lib-dynload/_test", "lib-dynload/_xx", "lib-dynload/xx", "EXTERNALLY-MANAGED",
    # a person at a screen or a terminal
    "tkinter/", "turtledemo/", "turtle.py", "curses/", "pty.py", "tty.py", "getpass.py",
    "webbrowser.py", "colorsys.py", "lib-dynload/_curses", "lib-dynload/readline.",
    # servers, mail, news and formats of old
    "wsgiref/", "xmlrpc/", "xml/", "html/", "http/server.py", "http/cookies.py",
    "http/cookiejar.py", "socketserver.py", "asynchat.py", "asyncore.py", "smtpd.py", "smtplib.py",
    "imaplib.py", "poplib.py", "nntplib.py", "ftplib.py", "telnetlib.py", "mailbox.py",
    "mailcap.py", "cgi.py", "cgitb.py", "xdrlib.py", "uu.py", "aifc.py", "chunk.py", "sndhdr.py",
    "sunau.py", "wave.py", "imghdr.py", "audioop.", "lib-dynload/audioop.",
    "lib-dynload/ossaudiodev.", "lib-dynload/nis.", "nturl2path.py", "ntpath.py", "netrc.py",
    "plistlib.py", "csv.py", "configparser.py", "sched.py", "fileinput.py", "filecmp.py",
    "statistics.py", "fractions.py", "graphlib.py", "crypt.py", "lib-dynload/_crypt.",
    "zipfile.py", "zipimport.py", "shelve.py", "dbm/", "lib-dynload/_dbm.", "sqlite3/",
    "lib-dynload/_sqlite3.", "gettext.py", "mimetypes.py", "pipes.py",
    "lib-dynload/_uuid.", "bz2.py", "lib-dynload/_bz2.", "lzma.py", "lib-dynload/_lzma.",
    # the agent is threads and one poll loop
    "asyncio/", "multiprocessing/", "concurrent/", "lib-dynload/_asyncio.",
    "lib-dynload/_multiprocessing.", "lib-dynload/_posixshmem.", "lib-dynload/_xxsubinterpreters.",
    # text and time that the guest does not handle
    "lib-dynload/_codecs_", "lib-dynload/_multibytecodec.", "zoneinfo/", "lib-dynload/_zoneinfo.",
    "_pydecimal.py", "_pydatetime.py", "_pyio.py", "_strptime.py", "_aix_support.py",
    "_osx_support.py", "_bootsubprocess.py",
)  # fmt: skip
"""Path prefixes under the standard library that are left out."""

ENCODINGS: Final = frozenset(
    {
        "__init__", "aliases", "ascii", "idna", "latin_1", "punycode", "raw_unicode_escape",
        "unicode_escape", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_8", "utf_8_sig",
    }
)  # fmt: skip
"""The modules of `encodings` that stay; the other hundred are code pages."""

# --- our own -------------------------------------------------------------------------------------

OUR_PACKAGES: Final = ("sealrun_protocol", "sealrun_agent")
OUR_DIRECTORY: Final = "usr/lib/sealrun/"
MODULE_DIRECTORY: Final = "usr/lib/sealrun/modules/"
NEWEST: Final = "usr/lib/sealrun/newest"
"""The date of the newest file of Debian's packages, before which the guest's clock is not set."""

DIRECTORIES: Final = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777}
LINKS: Final = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
INIT: Final = b"""#!/usr/bin/python3.11 -IS
import sys
sys.path.insert(0, "/usr/lib/sealrun")
from sealrun_agent.main import main
main()
"""
"""PID 1. The kernel runs /init of an initramfs by itself; -I and -S: no environment, no site."""
