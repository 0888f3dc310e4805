"""traefik as a gateway of the Gateway API, built from its Go module.

Some of the modules that it needs are not on every module proxy: those have stand-ins without function in
`traefikprogram`. None of them is used by a gateway. It is for tests: nothing that the project ships has it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import httpx

from tools.bootstrap.cache import cache_directory
from tools.cluster.processes import WITH_PARENT
from tools.cluster.waiting import until
from tools.images.tags import content_key
from tools.peers import goprogram

SOURCE: Final = Path(__file__).parent / "traefikprogram"
MODULE: Final = "github.com/traefik/traefik/v3"
LEGO: Final = "github.com/go-acme/lego/v5"
DNS_PROVIDERS: Final = Path("providers", "dns")
LEFT_OUT: Final = (DNS_PROVIDERS, Path("cmd"), Path("e2e"))
"""Parts of lego that no gateway needs. The clients of its DNS providers are most of a build."""
CLASS: Final = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "traefik"},
    "spec": {"controllerName": "traefik.io/gateway-controller"},
}
"""Of the Gateways that it serves."""
ADMIN_PORT: Final = 8001
START_SECONDS: Final = 60
FILES: Final = ("tools/peers/traefik.py", "tools/peers/traefikprogram")
"""Files that determine the program."""


def version() -> str:
    """The pinned version."""
    return goprogram.pinned(SOURCE, MODULE)


def program() -> Path:
    """The program; complete or absent."""
    return cache_directory() / "peers" / f"traefik-{content_key(FILES)}" / "traefik"


def is_installed() -> bool:
    """Whether the cache has the program for the present pins."""
    return program().exists()


def install() -> None:
    """Build the program unless the cache has it.

    Raises:
        ClusterError: there is no Go compiler, or a module could not be downloaded.
        subprocess.CalledProcessError: the build failed; its message is on the terminal.
    """
    with (
        goprogram.installing(program().parent, "traefik", cpu_minutes=6) as part,
        TemporaryDirectory() as scratch,
    ):
        if part is None:
            return
        module = Path(scratch, "module")
        shutil.copytree(SOURCE, module)
        _copy_lego(module)
        goprogram.build(module, part / program().name)


@contextmanager
def running(kubeconfig: Path, port: int, folder: Path) -> Iterator[None]:
    """The gateway runs during the block and listens on `port` of 127.0.0.1. Its log is in `folder`.

    Raises:
        ClusterError: it did not start.
    """
    options = (
        "--providers.kubernetesgateway=true",
        "--providers.kubernetesgateway.statusaddress.ip=127.0.0.1",
        f"--entrypoints.web.address=127.0.0.1:{port}",
        f"--entrypoints.traefik.address=127.0.0.1:{ADMIN_PORT}",
        "--ping=true",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    )
    log = folder / "traefik.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*WITH_PARENT, program(), *options],
            env={"KUBECONFIG": str(kubeconfig), "PATH": os.environ["PATH"]},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            until(f"traefik, whose log is in {log}", _answers, START_SECONDS)
            yield
        finally:
            process.terminate()


def _answers() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{ADMIN_PORT}/ping", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _copy_lego(module: Path) -> None:
    """Copy lego into the module, with a list of DNS providers that is empty."""
    found = goprogram.download(SOURCE, LEGO)
    for file in found.rglob("*"):
        path = file.relative_to(found)
        is_needed = path.name == "go.mod" or (path.suffix == ".go" and not path.stem.endswith("_test"))
        if is_needed and not any(path.is_relative_to(part) for part in LEFT_OUT):
            target = module / "lego" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    providers = module / "lego" / DNS_PROVIDERS
    providers.mkdir(parents=True)
    (module / "dns.go.txt").rename(providers / "dns.go")
