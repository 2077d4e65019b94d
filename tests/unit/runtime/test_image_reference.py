"""Who names the image, and that an image never names anything itself."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import containers
from sealrun_runtime import image_reference
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.image_reference import (
    ImageReference,
    StoredImage,
    choose,
    find,
    refuse_annotations_of_image,
)

EXAMPLES = Path(__file__).parents[3] / "../shared/reference/examples"
DIGEST = "sha256:" + "ab" * 32
CRIO = "io.kubernetes.cri-o."


def container(
    annotations: dict[str, str] | None = None, bundle: str = "/bundle", rootfs: str = "/rootfs"
) -> ContainerSpec:
    return containers.spec(
        bundle=bundle, rootfs=rootfs, args=("sh",), annotations=annotations or {}
    )


def manifest(*media_types: str, annotations: dict[str, str] | None = None) -> bytes:
    document: dict[str, Any] = {"layers": [{"mediaType": one} for one in media_types]}
    if annotations is not None:
        document["annotations"] = annotations
    return json.dumps(document).encode()


GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"


def test_our_annotation_is_taken_as_it_is() -> None:
    found = find(
        container({"io.sealrun.image": "127.0.0.1:5000/a/b:1", CRIO + "Image": "x/y"}), None
    )
    assert found == ("127.0.0.1:5000/a/b:1", "annotation io.sealrun.image")


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"Image": "r.test/a:1"}, "r.test/a:1"),
        ({"Image": "a", "ImageName": "r.test/a:1"}, "r.test/a:1"),
        (
            {"ImageName": "r.test/a:1", "ImageRepoDigests": f"r.test/a@{DIGEST}"},
            f"r.test/a@{DIGEST}",
        ),
        (
            {"ImageName": "r.test/a:1", "ImageRepoDigests": f"q.test/b@{DIGEST},r.test/a@{DIGEST}"},
            f"r.test/a@{DIGEST}",
        ),
        ({"ImageName": "", "ImageRepoDigests": f"q.test/b@{DIGEST}"}, f"q.test/b@{DIGEST}"),
        ({"ImageName": "r.test/a:1", "ImageRepoDigests": "junk,,"}, "r.test/a:1"),
    ],
)
def test_crio_prefers_a_digest_of_what_was_asked_for(
    annotations: dict[str, str], expected: str
) -> None:
    found = find(container({CRIO + key: value for key, value in annotations.items()}), None)
    assert found.reference == expected


def test_crio_s_digest_of_a_stub_is_that_of_what_it_stands_for() -> None:
    base = "org.opencontainers.image.base."
    named = {f"{base}name": "r.test/a:1", f"{base}digest": DIGEST}
    asked = {
        f"{CRIO}Image": "r.test/a:1",
        f"{CRIO}ImageName": "r.test/a:1",
        f"{CRIO}ImageRepoDigests": f"r.test/a@sha256:{'cd' * 32}",
    }
    for known_as, expected in (
        (("r.test/a:1",), f"r.test/a@{DIGEST}"),
        (("q.test/b:1",), asked[f"{CRIO}ImageRepoDigests"]),  # it may not speak for another one
    ):
        stored = StoredImage("", known_as, manifest(annotations=named))
        assert find(container(asked), stored).reference == expected
    stored = StoredImage("", ("r.test/a:1",), manifest(GZIP, annotations=named))
    assert find(container(asked), stored).reference == asked[f"{CRIO}ImageRepoDigests"]


def test_what_crio_has_under_a_local_name_only_is_no_registry_s() -> None:
    local = {"Image": "localhost/a:1", "ImageRepoDigests": f"localhost/a@{DIGEST}"}
    with pytest.raises(InvalidRequest, match="no image reference: "):
        find(container({CRIO + key: value for key, value in local.items()}), None)


CONTAINERD = "io.kubernetes.cri.image-name"


def test_containerd_says_the_name() -> None:
    found = find(container({CONTAINERD: f"docker.io/library/a:1@{DIGEST}"}), None)
    assert found == (f"docker.io/library/a:1@{DIGEST}", f"annotation {CONTAINERD}")
    ours = container({CONTAINERD: "r.test/a:1", "io.sealrun.image": "q.test/b:1"})
    assert find(ours, None).reference == "q.test/b:1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpine", "docker.io/library/alpine"),
        ("alpine:3", "docker.io/library/alpine:3"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        ("who/app:1", "docker.io/who/app:1"),
        ("a/b/c", "docker.io/a/b/c"),
        ("docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("index.docker.io/who/app", "docker.io/who/app"),
        ("r.test/app", "r.test/app"),
        ("registry:5000/app", "registry:5000/app"),
    ],
)
def test_containerd_2_says_what_the_pod_says(name: str, expected: str) -> None:
    """Without its registry, where that is Docker's."""
    assert find(container({CONTAINERD: name}), None).reference == expected


@pytest.mark.parametrize("name", ["localhost/a:1", DIGEST, "ab" * 32])
def test_containerd_has_an_image_that_no_registry_has(name: str) -> None:
    with pytest.raises(InvalidRequest, match="no image reference: "):
        find(container({CONTAINERD: name}), None)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("alpine", "write it as"),
        ("library/alpine", "it names no registry"),
        ("localhost/a:1", "it names no registry"),
        ("docker://r.test/a", "write it as"),
        ("r.test/", "write it as"),
        ("r.test/a b", "write it as"),
        ("r.test/a\nb", "it has characters"),
        ("r.test/ä", "it has characters"),
        ("r.test/" + "a" * 600, "or too many"),
    ],
)
def test_what_no_guest_could_pull_is_refused_before_a_vm_boots(reference: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        find(container({"io.sealrun.image": reference}), None)
    assert text in caught.value.text
    assert "io.sealrun.image" in caught.value.remedy


def test_nobody_names_an_image() -> None:
    for stored in (None, StoredImage("", (), b"")):
        with pytest.raises(InvalidRequest, match="no image reference: "):
            find(container(), stored)


@pytest.mark.parametrize(
    ("name", "known_as", "stored", "expected"),
    [
        ("r.test/a:1", ("r.test/a:1",), manifest(GZIP, GZIP), "r.test/a@{}"),
        ("r.test/a:1", ("r.test/a:1",), manifest(DOCKER_GZIP), "r.test/a@{}"),
        ("r.test:5000/a", ("r.test:5000/a:latest",), manifest(GZIP), "r.test:5000/a@{}"),
        ("r.test/a:1", ("r.test/a:1", "localhost/a:1"), manifest(GZIP), "r.test/a@{}"),
        # Built here and never pushed; known elsewhere too; no layer; not stored: the tag decides.
        ("r.test/a:1", ("r.test/a:1",), manifest(PLAIN), "r.test/a:1"),
        ("r.test/a:1", ("r.test/a:1",), manifest(GZIP, PLAIN), "r.test/a:1"),
        ("r.test/a:1", ("r.test/a:1", "q.test/a:1"), manifest(GZIP), "r.test/a:1"),
        ("r.test/a:1", ("r.test/a:1",), manifest(), "r.test/a:1"),
        ("r.test/a:1", (), b"", "r.test/a:1"),
        ("r.test:5000/a", (), b"", "r.test:5000/a:latest"),
        (f"r.test/a@{DIGEST}", ("r.test/a:1",), manifest(GZIP), f"r.test/a@{DIGEST}"),
    ],
)
def test_podmans_name_and_the_registrys_digest(
    name: str, known_as: tuple[str, ...], stored: bytes, expected: str
) -> None:
    found = find(container(), StoredImage(name, known_as, stored))
    digest = f"sha256:{hashlib.sha256(stored).hexdigest()}"
    assert found == (expected.format(digest), "Podman's storage")


def test_a_local_name_has_no_registry_and_the_others_are_named() -> None:
    stored = StoredImage("localhost/a:1", ("localhost/a:1", "r.test/a:1"), manifest(PLAIN))
    with pytest.raises(InvalidRequest) as caught:
        find(container(), stored)
    assert "localhost/a:1 has no registry" in caught.value.text
    assert "io.sealrun.image" in caught.value.remedy
    assert "r.test/a:1" in caught.value.remedy


@pytest.mark.parametrize(
    "name",
    [
        "io.sealrun.image",
        "io.sealrun.init-data",
        "io.sealrun.memory",
        "io.sealrun.anything-to-come",
        "org.systemd.property.CollectMode",
        "io.katacontainers.config.hypervisor.cc_init_data",
        CRIO + "ImageName",
        CRIO + "Image",
        CRIO + "ImageRepoDigests",
        "io.kubernetes.cri.image-name",
    ],
)
def test_an_image_names_nothing_itself(name: str) -> None:
    stored = StoredImage("r.test/a:1", (), manifest(annotations={name: "evil"}))
    with pytest.raises(InvalidRequest, match=f"the image itself sets the annotation {name}"):
        refuse_annotations_of_image(container({name: "evil"}), stored)
    refuse_annotations_of_image(container({name: "the user's own"}), stored)
    with pytest.raises(InvalidRequest, match="cannot tell who set the annotation"):
        refuse_annotations_of_image(container({name: "?"}), StoredImage("r.test/a:1", (), b""))


def test_other_annotations_of_an_image_do_not_matter() -> None:
    stored = StoredImage("r.test/a:1", (), manifest(annotations={"org.test": "x"}))
    refuse_annotations_of_image(container({"org.test": "x", "io.sealrun.memory": "512"}), stored)
    refuse_annotations_of_image(container({"io.sealrun.memory": "512"}), None)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Podman's storage as it was found on a real machine, with a manifest put into it."""
    containers = EXAMPLES / "podman-storage-containers.json"
    if not containers.exists():
        pytest.skip("../shared/reference/examples is not here")
    for directory in ("overlay-containers", "overlay-images"):
        (tmp_path / directory).mkdir()
    shutil.copy(containers, tmp_path / "overlay-containers/containers.json")
    images = EXAMPLES / "podman-storage-images.json"
    shutil.copy(images, tmp_path / "overlay-images/images.json")
    image = json.loads(images.read_text())[0]["id"]
    (tmp_path / "overlay-images" / image).mkdir()
    (tmp_path / "overlay-images" / image / "manifest").write_bytes(manifest(GZIP))
    return tmp_path


def in_storage(storage: Path, container_id: str = "") -> ContainerSpec:
    entries = json.loads((storage / "overlay-containers/containers.json").read_text())
    container_id = container_id or entries[0]["id"]
    return container(bundle=f"{storage}/overlay-containers/{container_id}/userdata")


def test_crio_s_bundle_is_elsewhere_than_its_storage(tmp_path: Path) -> None:
    """Its bundle is below the run root; the root file system's path leads to the images."""
    graph, container_id, image_id = tmp_path / "graph", "1" * 64, "2" * 64
    for directory in ("overlay-containers", f"overlay-images/{image_id}"):
        (graph / directory).mkdir(parents=True)
    entry = {"id": container_id, "image": image_id}
    entry["metadata"] = json.dumps({"image-name": "r.test/a:1"})
    (graph / "overlay-containers/volatile-containers.json").write_text(json.dumps([entry]))
    images = [{"id": image_id, "names": ["r.test/a:1"]}]
    (graph / "overlay-images/images.json").write_text(json.dumps(images))
    evil = manifest(GZIP, annotations={"io.sealrun.image": "evil.test/a:1"})
    (graph / "overlay-images" / image_id / "manifest").write_bytes(evil)
    made = container(
        {"io.sealrun.image": "evil.test/a:1"},
        bundle=f"{tmp_path}/run/overlay-containers/{container_id}/userdata",
        rootfs=f"{graph}/overlay/{'3' * 64}/merged",
    )
    stored = image_reference.stored_image(made)
    assert stored == StoredImage("r.test/a:1", ("r.test/a:1",), evil)
    with pytest.raises(InvalidRequest, match="the image itself sets the annotation"):
        refuse_annotations_of_image(made, stored)


def test_podmans_storage(storage: Path) -> None:
    stored = image_reference.stored_image(in_storage(storage))
    assert stored is not None
    assert stored.name == "localhost/bb:1"
    assert stored.known_as == ("127.0.0.1:5055/bb:1", "localhost/bb:1")
    assert stored.manifest == manifest(GZIP)


def test_what_is_not_in_podmans_storage(storage: Path) -> None:
    assert image_reference.stored_image(in_storage(storage, "0" * 64)) is None
    assert image_reference.stored_image(container(bundle="/run/bundle")) is None
    path = "/nowhere/overlay-containers/x/userdata"
    assert image_reference.stored_image(container(bundle=path)) is None


def test_containers_that_do_not_outlive_a_boot_are_found_too(storage: Path) -> None:
    directory = storage / "overlay-containers"
    spec = in_storage(storage)
    (directory / "containers.json").rename(directory / "volatile-containers.json")
    stored = image_reference.stored_image(spec)
    assert stored is not None
    assert stored.name == "localhost/bb:1"


def test_a_short_name_becomes_a_full_one(storage: Path) -> None:
    path = storage / "overlay-containers/containers.json"
    path.write_text(path.read_text().replace("localhost/bb:1", "bb:1"))
    stored = image_reference.stored_image(in_storage(storage))
    assert stored is not None
    assert stored.name == "127.0.0.1:5055/bb:1"


@pytest.mark.parametrize(
    "name", ["overlay-containers/containers.json", "overlay-images/images.json"]
)
def test_a_storage_of_another_form_is_an_error(storage: Path, name: str) -> None:
    spec = in_storage(storage)
    (storage / name).write_text('{"version": 9}')
    with pytest.raises(InvalidRequest, match="cannot find the image in Podman's storage"):
        image_reference.stored_image(spec)


LOCAL = StoredImage("localhost/built:1", ("localhost/built:1",), b"")
PULLED = StoredImage("r.test/a:1", ("r.test/a:1",), b"")
BUNDLE_ROOT = ImageReference("", "bundle")


@pytest.mark.parametrize(
    ("stored", "source", "expected"),
    [
        (PULLED, "auto", "r.test/a:1"),
        (PULLED, "guest", "r.test/a:1"),
        (PULLED, "bundle", ""),
        (LOCAL, "auto", ""),
        (LOCAL, "bundle", ""),
        (None, "auto", ""),
        (StoredImage("", (), b""), "auto", ""),
        (StoredImage("0123456789ab", (), b""), "auto", ""),
    ],
)
def test_the_bundle_is_the_root_where_nothing_could_be_pulled(
    tmp_path: Path, stored: StoredImage | None, source: Any, expected: str
) -> None:
    chosen = choose(container(rootfs=str(tmp_path)), stored, source, shared_root=True)
    assert chosen.reference == expected
    assert (chosen == BUNDLE_ROOT) is (expected == "")


@pytest.mark.parametrize(
    ("stored", "source", "shared_root", "texts"),
    [
        (LOCAL, "guest", True, ["localhost/built:1 has no registry"]),
        (None, "guest", True, ["no image reference: neither an annotation nor Podman names one"]),
        (LOCAL, "auto", False, ["localhost/built:1 has no registry", "does not allow a root"]),
        (PULLED, "bundle", False, ["the init-data does not allow a root that the host shares"]),
    ],
)
def test_who_says_no_to_the_bundle_as_the_root(
    tmp_path: Path, stored: StoredImage | None, source: Any, shared_root: bool, texts: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(container(rootfs=str(tmp_path)), stored, source, shared_root=shared_root)
    assert all(text in caught.value.text for text in texts)


def test_a_root_that_is_not_there_is_said_beside_the_image_that_is_not_either() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(container(rootfs="/does/not/exist"), None, "auto", shared_root=True)
    assert "no image reference" in caught.value.text
    assert "$.root.path: /does/not/exist is not a directory" in caught.value.text
    assert "io.sealrun.image" in caught.value.remedy


def test_an_annotation_that_names_no_image_is_no_wish_for_the_bundle(tmp_path: Path) -> None:
    spec = container({"io.sealrun.image": "busybox"}, rootfs=str(tmp_path))
    with pytest.raises(InvalidRequest, match="cannot use image reference 'busybox'"):
        choose(spec, None, "auto", shared_root=True)


@pytest.mark.parametrize(
    ("layers", "name", "digest", "expected"),
    [
        ((), "r.test/a:1", DIGEST, DIGEST),
        ((), "r.test/b:1", DIGEST, ""),  # it stands for another image
        ((), "r.test/a:1", "sha256:..", ""),
        ((PLAIN,), "r.test/a:1", DIGEST, ""),  # it has content of its own
    ],
)
def test_a_stub_says_which_image_it_stands_for(
    layers: tuple[str, ...], name: str, digest: str, expected: str
) -> None:
    base = "org.opencontainers.image.base"
    said = {f"{base}.name": name, f"{base}.digest": digest}
    stored = StoredImage("r.test/a:1", ("r.test/a:1",), manifest(*layers, annotations=said))
    assert stored.registry_digest() == expected
