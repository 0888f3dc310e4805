# SPDX-License-Identifier: Apache-2.0
"""Detecting from the cache whether an apply would change anything."""

from finetune_operator.engine.executor import Stamp
from finetune_operator.plan import Manifest

STAMP = Stamp("example.com/applied")


def service(**spec: object) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "ns"},
        "spec": {"ports": [{"port": 80}], "selector": {"revision": "r1"}, **spec},
    }


def stored(manifest: Manifest) -> Manifest:
    """The object as the API server stores it, with defaults and metadata."""
    applied = STAMP.on(manifest)
    ports = [{"protocol": "TCP", "targetPort": port["port"], **port} for port in applied["spec"]["ports"]]
    return {
        **applied,
        "metadata": {**applied["metadata"], "uid": "u", "resourceVersion": "7"},
        "spec": {"clusterIP": "10.0.0.1", **applied["spec"], "ports": ports},
    }


def test_what_was_applied_needs_no_second_apply_whatever_defaults_were_added() -> None:
    assert STAMP.matches(stored(service()), STAMP.on(service()))


def test_a_changed_value_needs_an_apply() -> None:
    assert not STAMP.matches(stored(service()), STAMP.on(service(selector={"revision": "r2"})))


def test_a_field_that_is_applied_no_longer_needs_an_apply() -> None:
    assert not STAMP.matches(stored(service(type="NodePort")), STAMP.on(service()))


def test_somebody_elses_change_of_an_applied_field_needs_an_apply() -> None:
    changed = stored(service())
    changed["spec"]["selector"] = {"revision": "other"}
    assert not STAMP.matches(changed, STAMP.on(service()))


def test_a_label_that_somebody_else_added_to_a_selector_needs_an_apply() -> None:
    changed = stored(service())
    changed["spec"]["selector"] = {"revision": "r1", "tier": "gold"}
    assert not STAMP.matches(changed, STAMP.on(service()))


def test_the_stamp_does_not_hang_on_the_state_that_was_seen() -> None:
    seen = service()
    seen["metadata"] = {**seen["metadata"], "uid": "u", "resourceVersion": "7"}
    assert STAMP.on(seen)["metadata"]["annotations"] == STAMP.on(service())["metadata"]["annotations"]
    assert "resourceVersion" not in STAMP.on(seen)["metadata"]
    assert STAMP.on(seen)["metadata"]["uid"] == "u"


def test_other_annotations_stay() -> None:
    annotated = service()
    annotated["metadata"]["annotations"] = {"team": "red"}
    assert STAMP.on(annotated)["metadata"]["annotations"]["team"] == "red"
