# SPDX-License-Identifier: Apache-2.0
"""Content of the images: bills of materials as CycloneDX JSON, and a size budget for each image."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from tools.images.buildah import ImageError

Inventory = dict[str, Any]
"""Output of inventory.py."""

BASE: Final = "finetune.dev:base-image"
BYTES: Final = "finetune.dev:bytes"
PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", re.MULTILINE)
VALIDATOR: Final = JsonStrictValidator(SchemaVersion.V1_6)


def bill_of_materials(image: str, base: str, inventory: Inventory, constraints: Path) -> str:
    """The bill of materials of `image` as JSON.

    Args:
        image: full name with tag.
        base: name of its base image.
        inventory: content of the image.
        constraints: file that pins its Python packages.

    Raises:
        ImageError: the result is not valid CycloneDX.
    """
    name, _, tag = image.rpartition(":")
    subject = Component(
        name=name.rpartition("/")[2], version=tag, type=ComponentType.CONTAINER, bom_ref=image
    )
    bom = Bom(
        # Equal images have equal bills.
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, image),
        metadata=BomMetaData(
            component=subject,
            properties=[
                Property(name=BASE, value=base),
                Property(name=BYTES, value=str(inventory["bytes"])),
            ],
        ),
        components=[
            _interpreter(inventory),
            *_python(inventory, pinned_hashes(constraints)),
            *_debian(inventory),
        ],
    )
    bom.register_dependency(subject, bom.components)
    document: str = JsonV1Dot6(bom).output_as_string(indent=2)
    problem = VALIDATOR.validate_str(document)
    if problem is not None:
        raise ImageError(f"the bill of materials of {image} is not valid CycloneDX: {problem}")
    return document


def size(bill: Path, image: str) -> int | None:
    """Size of the image in bytes according to the file `bill`; None if that belongs to another image."""
    if not bill.exists():
        return None
    metadata = json.loads(bill.read_text())["metadata"]
    if metadata["component"]["bom-ref"] != image:
        return None
    properties = {each["name"]: each["value"] for each in metadata["properties"]}
    return int(properties[BYTES])


def pinned_hashes(constraints: Path) -> dict[str, tuple[str, ...]]:
    """SHA-256 of each installable file, by normalised package name."""
    return {
        _normalised(pin[1]): tuple(re.findall(r"sha256:([0-9a-f]{64})", pin[3]))
        for pin in PIN.finditer(constraints.read_text())
    }


def _interpreter(inventory: Inventory) -> Component:
    version = inventory["interpreter"]
    return Component(
        name="python",
        version=version,
        type=ComponentType.APPLICATION,
        purl=PackageURL("generic", name="python", version=version),
        bom_ref=f"python@{version}",
    )


def _python(inventory: Inventory, hashes: dict[str, tuple[str, ...]]) -> Iterator[Component]:
    licenses = LicenseFactory()
    for package in inventory["python"]:
        name, version = _normalised(package["name"]), package["version"]
        purl = PackageURL("pypi", name=name, version=version)
        # The installer verified that the file was one of these, but does not record which one.
        files = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(purl.to_string()),
            comment="one of the files with these hashes",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in hashes.get(name, ())],
        )
        yield Component(
            name=package["name"],
            version=version,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[licenses.make_from_string(package["license"])] if package["license"] else (),
            external_references=[files] if name in hashes else (),
        )


def _debian(inventory: Inventory) -> Iterator[Component]:
    distribution = inventory["distribution"]
    for package in inventory["debian"]:
        purl = PackageURL(
            "deb",
            distribution.partition("-")[0],
            package["name"],
            package["version"],
            qualifiers={"arch": package["architecture"], "distro": distribution},
        )
        yield Component(name=package["name"], version=package["version"], purl=purl, bom_ref=purl.to_string())


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


MEBIBYTE: Final = 1 << 20
BUDGETS: Final = {
    "finetune-operator": 360 * MEBIBYTE,
    # SciPy takes 100 MiB; datasketch needs it for the hashes of near duplicates.
    "finetune-trainer-cpu": 2200 * MEBIBYTE,
    # The C compiler that Triton needs takes 200 MiB.
    "finetune-trainer-cuda": 7700 * MEBIBYTE,
}
"""Maximum bytes of all files, uncompressed, including the base image."""


def check_budget(image: str, size: int) -> str:
    """Size and budget of the image as text.

    Args:
        image: a key of `BUDGETS`.
        size: its size in bytes.

    Raises:
        ImageError: it is too large.
    """
    budget = BUDGETS[image]
    text = f"{image}: {size / MEBIBYTE:,.0f} MiB of {budget / MEBIBYTE:,.0f} MiB"
    if size > budget:
        raise ImageError(
            f"{text}: the image is too large. Check the packages that were added to its constraints, or raise"
            " its budget in tools/images/bill.py and give the reason there"
        )
    return text
