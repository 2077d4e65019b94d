"""From packages, wheels and our sources to the tree of the initrd and the kernel's bytes."""

import lzma
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from sealrun_guest_image import apt, bytecode, contents, elf, kernel, wheels
from sealrun_guest_image.errors import BuildError
from sealrun_guest_image.tree import Device, Directory, Entry, File, Link, Tree

VMLINUX = "vmlinux"
BZIMAGE = "vmlinuz"
_LIBRARY_DIRECTORIES = ("usr/lib/x86_64-linux-gnu/", "usr/lib/")


class Sources(NamedTuple):
    """What the image is made of, all of it on disk.

    packages, kernel_package: files in `package_directory`; wheels: files in `wheel_directory`;
    own: the directory that holds our Python packages."""

    packages: list[apt.Package]
    kernel_package: apt.Package
    package_directory: str
    wheels: list[wheels.Wheel]
    wheel_directory: str
    own: str


class Image(NamedTuple):
    """kernel: the file that a VMM starts by itself, `kernel_name` its name (vmlinux or vmlinuz);
    bzimage: the file that firmware starts, which may be the same; tree: the initrd's.

    contributors: names of the packages, but for the kernel's, and files of the wheels of which
    something is in the tree."""

    kernel: bytes
    kernel_name: str
    bzimage: bytes
    tree: Tree
    contributors: set[str]


class _Debian:
    """What all packages would install together, and of which of them something was taken."""

    def __init__(self, sources: Sources) -> None:
        self._tree = Tree()
        self._origin: dict[str, str] = {}
        self.contributors: set[str] = set()
        self.newest = 0
        for package in sources.packages:
            for path, entry in apt.contents(package, sources.package_directory):
                self._tree.add(path, entry)
                self._origin[path] = package.name
                self.newest = max(self.newest, _changed(entry))

    def __contains__(self, path: str) -> bool:
        return path in self._tree

    def below(self, directory: str) -> Iterator[str]:
        """The paths of files and links under `directory` (with its slash), sorted."""
        for path, entry in self._tree.walk():
            if path.startswith(directory) and isinstance(entry, File | Link):
                yield path

    def take(self, path: str) -> bytes:
        """The content of the file at `path`, links followed. Raises BuildError without one."""
        path = self._tree.resolve(path)
        self.contributors.add(self._origin[path])
        return self._tree.file(path).data


def assemble(sources: Sources) -> Image:
    """Everything in its place. Raises BuildError."""
    debian = _Debian(sources)
    tree = Tree()
    _add_skeleton(tree)
    for path in contents.PROGRAMS:
        tree.add(path, File(elf.without_sections(debian.take(path)), 0o755))
    tree.add(contents.CA_BUNDLE, File(_ca_bundle(debian)))
    from_wheels = {wheel.file: list(_site_packages(sources, wheel)) for wheel in sources.wheels}
    modules = [*_stdlib(debian), *chain.from_iterable(from_wheels.values()), *_own(sources.own)]
    _add_python(tree, modules)
    _add_libraries(tree, debian)
    bzimage, newest = _add_kernel_modules(tree, sources)
    # Not the time of the build: the same inputs give the same image.
    tree.add(contents.NEWEST, File(b"%d\n" % max(newest, debian.newest)))
    bare = kernel.vmlinux(bzimage)
    file, name = (bzimage, BZIMAGE) if bare is None else (bare, VMLINUX)
    contributors = debian.contributors | {file for file, taken in from_wheels.items() if taken}
    return Image(file, name, bzimage, tree, contributors)


def _add_skeleton(tree: Tree) -> None:
    for path, mode in contents.DIRECTORIES.items():
        tree.add(path, Directory(mode))
    for path, target in contents.LINKS.items():
        tree.add(path, Link(target))
    # The kernel opens it for PID 1's stdin, stdout and stderr before anything is mounted.
    tree.add("dev/console", Device(5, 1, 0o600))
    tree.add("init", File(contents.INIT, 0o755))


class _Module(NamedTuple):
    """A Python module's source or a shared object, and where it goes."""

    path: str
    data: bytes
    level: int = 2


def _stdlib(debian: _Debian) -> Iterator[_Module]:
    for path in debian.below(contents.STDLIB):
        name = path.removeprefix(contents.STDLIB)
        if not path.endswith((".py", ".so")):
            continue
        if name.startswith("encodings/"):
            if name[10:].removesuffix(".py") not in contents.ENCODINGS:
                continue
        elif name.startswith(contents.STDLIB_DROPPED):
            continue
        yield _Module(path, debian.take(path))


def _site_packages(sources: Sources, wheel: wheels.Wheel) -> Iterator[_Module]:
    for name, file in wheels.contents(wheel, sources.wheel_directory):
        if (
            name.startswith(contents.SITE_PACKAGES)
            and not name.startswith(contents.SITE_PACKAGES_DROPPED)
            and (name.endswith((".py", ".so")) or ".so." in name)
        ):
            yield _Module(contents.OUR_DIRECTORY + name, file.data)


def _own(directory: str) -> Iterator[_Module]:
    for path in own_sources(directory):
        with open(os.path.join(directory, path), "rb") as stream:
            # Our asserts stay: they guard what the agent relies on.
            yield _Module(contents.OUR_DIRECTORY + path, stream.read(), level=0)


def own_sources(directory: str) -> list[str]:
    """Our modules under `directory`, as sorted paths relative to it."""
    found = []
    for package in contents.OUR_PACKAGES:
        for where, names, files in os.walk(os.path.join(directory, package)):
            names[:] = [name for name in names if name != "__pycache__"]
            paths = (os.path.join(where, name) for name in files if name.endswith(".py"))
            found += [os.path.relpath(path, directory) for path in paths]
    if not found:
        raise BuildError(f"cannot find our packages in {directory}")
    return sorted(found)


def _add_python(tree: Tree, modules: Iterable[_Module]) -> None:
    modules = sorted(modules)
    sources = [
        bytecode.Source("/" + module.path, module.data, module.level)
        for module in modules
        if module.path.endswith(".py")
    ]
    for source, compiled in zip(sources, bytecode.compile_all(sources), strict=True):
        tree.add(source.path[1:] + "c", File(compiled))
    for module in modules:
        if not module.path.endswith(".py"):
            tree.add(module.path, File(elf.without_sections(module.data)))


def _add_libraries(tree: Tree, debian: _Debian) -> None:
    """The closure of what the tree's ELF files name, from the packages."""
    pending = [*contents.LOADED_BY_NAME]
    for _, entry in tree.walk():
        if isinstance(entry, File) and elf.is_elf(entry.data):
            pending += elf.needed(entry.data)
    bundled = {path.rpartition("/")[2] for path, _ in tree.walk() if ".libs/" in path}
    seen = set(bundled)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _library_path(debian, name)
        if name.startswith("/"):
            # The interpreter's path: the kernel follows it as it stands, so what it names is kept
            # as a link; the file follows by its name.
            file = path.rpartition("/")[2]
            tree.add(path, Link("/" + _library_path(debian, file)))
            pending.append(file)
            continue
        data = debian.take(path)
        tree.add(path, File(elf.without_sections(data), 0o755))
        pending += elf.needed(data)


def _library_path(debian: _Debian, name: str) -> str:
    if name.startswith("/"):
        top = name[1:].split("/", 1)[0]
        return f"usr{name}" if top in contents.LINKS else name[1:]
    for directory in _LIBRARY_DIRECTORIES:
        if directory + name in debian:
            return directory + name
    raise BuildError(f"cannot find the shared library {name} among the packages of the guest image")


def _ca_bundle(debian: _Debian) -> bytes:
    paths = list(debian.below(contents.CA_CERTIFICATES))
    if not paths:
        raise BuildError("cannot find any CA certificate among the packages of the guest image")
    return b"".join(debian.take(path).rstrip(b"\n") + b"\n" for path in paths)


def _changed(entry: Entry) -> int:
    return entry.changed if isinstance(entry, File) else 0


def _add_kernel_modules(tree: Tree, sources: Sources) -> tuple[bytes, int]:
    """Adds the modules and their order; returns the kernel's bzImage, and the date of the newest file."""
    bzimage, newest = b"", 0
    builtin: set[str] = set()
    modules: dict[str, bytes] = {}
    for path, entry in apt.contents(sources.kernel_package, sources.package_directory):
        file = path.rpartition("/")[2]
        newest = max(newest, _changed(entry))
        if not isinstance(entry, File):
            continue
        if path.startswith("boot/vmlinuz-"):
            bzimage = entry.data
        elif file == "modules.builtin":
            builtin = {
                kernel.canonical(line.rpartition("/")[2])
                for line in entry.data.decode().splitlines()
            }
        elif file.endswith(".ko"):
            modules[kernel.canonical(file)] = entry.data
        elif file.endswith(".ko.xz"):
            modules[kernel.canonical(file.removesuffix(".xz"))] = entry.data
    _add_modules(tree, modules, builtin)
    return bzimage, newest


def _add_modules(tree: Tree, modules: dict[str, bytes], builtin: set[str]) -> None:
    def content(name: str) -> bytes:
        if name not in modules:
            raise BuildError(f"cannot find the kernel module {name} in the kernel's package")
        data = modules[name]
        return data if elf.is_elf(data) else lzma.decompress(data)

    lines = []
    always = set(builtin)
    for group, wanted in contents.MODULES.items():
        if group in contents.LATER_KERNELS and not set(wanted) <= {*modules, *builtin}:
            continue
        order = kernel.load_order(wanted, always, lambda name: kernel.dependencies(content(name)))
        if not group.startswith(("virtio-", "tee-")):  # those cannot count on each other
            always.update(order)
        lines += [f"{group} {name}\n" for name in order]
        for name in order:
            # Whole, with sections: the kernel needs them, and the signature stands behind them.
            tree.add(f"{contents.MODULE_DIRECTORY}{name}.ko", File(content(name)))
    tree.add(f"{contents.MODULE_DIRECTORY}order", File("".join(lines).encode()))
