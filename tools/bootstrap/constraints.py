# SPDX-License-Identifier: Apache-2.0
"""Write constraints/*.txt: every dependency with its version and hashes, without the address of an index.

python3 -m tools.bootstrap.constraints [--upgrade]
"""

import sys

from tools.bootstrap.uv import PINS, ROOT, Uv

FOLDER = PINS.parent
# Versions are those for the oldest supported Python; the hashes cover the wheels of all.
COMPILE = (
    *("pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
    *("--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu"),
    *("--no-annotate", "--custom-compile-command", "make constraints"),
    *("--override", FOLDER / "overrides.in", "--config-file", FOLDER / "uv.toml"),
)


def main(options: list[str]) -> None:
    uv = Uv()
    uv.run(*COMPILE, *options, "--output-file", PINS, FOLDER / "uv.in")
    uv.run(*COMPILE, *options, "--output-file", FOLDER / "docs.txt", FOLDER / "docs.in")
    vllm = ("--override", FOLDER / "vllm-overrides.in", "--output-file", FOLDER / "vllm.txt")
    uv.run(*COMPILE, *options, *vllm, FOLDER / "vllm.in")
    everything = FOLDER / "dev.txt"
    project = ("--no-emit-package", "finetune-operator", ROOT / "pyproject.toml")
    uv.run(*COMPILE, *options, "--extra", "dev", "--output-file", everything, *project)
    for extra in ("operator", "trainer"):
        target = FOLDER / f"{extra}.txt"
        # Start empty, so that all versions come from the full set: tests and images have equal packages.
        target.unlink(missing_ok=True)
        uv.run(*COMPILE, "--constraint", everything, "--extra", extra, "--output-file", target, *project)


if __name__ == "__main__":
    main(sys.argv[1:])
