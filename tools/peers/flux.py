"""source-controller and kustomize-controller of Flux, built from their Go modules, and their definitions.

They are for tests: nothing that the project ships has them.
"""

import shutil
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.images.tags import content_key
from tools.peers import goprogram

SOURCE: Final = Path(__file__).parent / "fluxprogram"
FILES: Final = ("tools/peers/flux.py", "tools/peers/fluxprogram")
"""Files that determine the installation."""
CONTROLLERS: Final = ("source-controller", "kustomize-controller")


def version() -> str:
    """The pinned version of both controllers."""
    (found,) = {goprogram.pinned(SOURCE, _module(name)) for name in CONTROLLERS}
    return found


def program(controller: str) -> Path:
    """The program of a controller; complete or absent."""
    return _folder() / controller


def definitions() -> Path:
    """Folder of the CustomResourceDefinitions of both controllers; complete or absent."""
    return _folder() / "definitions"


def is_installed() -> bool:
    """Whether the cache has the programs for the present pins."""
    return _folder().exists()


def install() -> None:
    """Build the programs unless the cache has them.

    Raises:
        ClusterError: there is no Go compiler, or a module could not be downloaded.
        subprocess.CalledProcessError: the build failed; its message is on the terminal.
    """
    with goprogram.installing(_folder(), "Flux", cpu_minutes=10) as part:
        if part is None:
            return
        (part / "definitions").mkdir()
        for name in CONTROLLERS:
            for file in (goprogram.download(SOURCE, _module(name)) / "config" / "crd" / "bases").iterdir():
                shutil.copyfile(file, part / "definitions" / file.name)
        goprogram.build(SOURCE, part)


def _folder() -> Path:
    return cache_directory() / "peers" / f"flux-{content_key(FILES)}"


def _module(controller: str) -> str:
    return f"github.com/fluxcd/{controller}"
