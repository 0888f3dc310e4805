"""Files of Argo CD from its Go module: the definition of Applications, and health checks with cases.

Argo CD itself is not built: it replaces modules by folders of its repository that no module proxy serves.
"""

from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.peers import goprogram

SOURCE: Final = Path(__file__).parent / "argocdmodule"
MODULE: Final = "github.com/argoproj/argo-cd/v3"


def version() -> str:
    """The pinned version."""
    return goprogram.pinned(SOURCE, MODULE)


def folder() -> Path:
    """Link to the module; complete or absent."""
    return cache_directory() / "peers" / f"argocd-{version()}"


def definitions() -> Path:
    """File of the CustomResourceDefinition of Applications."""
    return folder() / "manifests" / "crds" / "application-crd.yaml"


def health_checks() -> Path:
    """Folder of the health checks: GROUP/KIND/health.lua, with cases in health_test.yaml."""
    return folder() / "resource_customizations"


def is_installed() -> bool:
    """Whether the cache has the files of the present pin."""
    return definitions().exists()


def install() -> None:
    """Download the module unless it is there.

    Raises:
        ClusterError: there is no Go compiler, or the module could not be downloaded.
    """
    if is_installed():
        return
    folder().parent.mkdir(parents=True, exist_ok=True)
    folder().unlink(missing_ok=True)
    folder().symlink_to(goprogram.download(SOURCE, MODULE))
