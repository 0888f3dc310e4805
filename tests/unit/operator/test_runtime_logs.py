# SPDX-License-Identifier: Apache-2.0
"""Logs as a collector reads them."""

import json
import subprocess
import sys

SAY = """
import logging
from finetune_operator.runtime import process
process.configure_logs("INFO", "json")
logging.getLogger("somewhere").info("created %s", "Job", extra={"kind": "Job"})
logging.getLogger("somewhere").debug("not said")
logging.getLogger("kopf.objects").info("not said either")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("somewhere").exception("failed")
"""


def test_every_record_is_one_json_object_a_line_with_its_fields() -> None:
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout
    first, second = [json.loads(line) for line in said.splitlines()]
    assert (first["level"], first["logger"], first["message"], first["kind"]) == (
        "INFO",
        "somewhere",
        "created Job",
        "Job",
    )
    assert first["time"].startswith("20")
    assert "ZeroDivisionError" in second["exc_info"]
