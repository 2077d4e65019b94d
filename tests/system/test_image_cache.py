"""An image that Podman never downloads, out of the host's cache, in real VMs."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import layers
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]


def test_a_stub_runs_and_its_blobs_leave_the_registry_once(
    podman: podmans.Podman,
    registry: registries.Registry,
    operator_settings: Callable[[str], None],
    tmp_path: Path,
) -> None:
    layout = tmp_path / "layout"
    layers.write_layout(
        layout,
        [workloads.busybox_tar(), layers.tar([layers.file("only", b"in the guest")])],
        process={"Cmd": ["/bin/sh", "-c", "cat /only; echo; echo $FROM"], "Env": ["FROM=image"]},
    )
    digest = registries.push(layout, registry, "test/stub:1")
    name = f"{registry.address}/test/stub:1"
    operator_settings(
        f'[image]\ninsecure_registries = ["{registry.address}"]\ntransport = "cache"\n'
        f'[cache]\ndirectory = "{tmp_path}/cache"\nsize = 100\n'
    )
    made = subprocess.run(["sealrun", "image", "stub", name], capture_output=True, check=True)
    assert made.stdout.decode() == f"{name}\n"
    before = registry.requests("/v2/test/stub/blobs")
    try:
        for _ in range(2):
            annotations = workloads.open_annotations(
                f"{registry.address}/test/stub@{digest}", registry.address
            )
            del annotations["io.sealrun.image"]  # the stub says it
            ended = podman.run([], annotations, image=name)
            assert (ended.status, ended.stdout) == (0, b"in the guest\nimage\n"), ended.stderr
    finally:
        podmans.remove_image(name)
    assert registry.requests("/v2/test/stub/blobs") == before + 3  # two layers, a configuration
    listed = subprocess.run(["sealrun", "cache", "list"], capture_output=True, check=True)
    assert digest in listed.stdout.decode()
    freed = subprocess.run(["sealrun", "cache", "prune"], capture_output=True, check=True)
    assert int(freed.stdout.split()[0]) > 0
    size = subprocess.run(["sealrun", "cache", "size"], capture_output=True, check=True)
    assert size.stdout == b"0\n"
