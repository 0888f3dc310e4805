# SPDX-License-Identifier: Apache-2.0
"""Settings name the invalid variables."""

import pytest

from finetune_operator.runtime.settings import Settings, SettingsError

NEEDED = {"POD_NAMESPACE": "finetune-system", "TRAINER_IMAGE": "trainer:1"}


def test_two_variables_are_enough() -> None:
    settings = Settings.from_environment(NEEDED)
    assert settings.trainer_image == "trainer:1"
    assert settings.watch_namespaces == ()


def test_namespaces_are_separated_by_commas() -> None:
    settings = Settings.from_environment({**NEEDED, "WATCH_NAMESPACES": "team-a, team-b,"})
    assert settings.watch_namespaces == ("team-a", "team-b")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("", {"kubernetes.io/metadata.name": "monitoring"}),
        ("observability", {"kubernetes.io/metadata.name": "observability"}),
        ("*", {}),
    ],
)
def test_the_monitoring_namespace_is_a_name_or_stands_for_all(given: str, labels: dict[str, str]) -> None:
    settings = Settings.from_environment({**NEEDED, "MONITORING_NAMESPACE": given})
    assert settings.monitoring_labels == labels
    with pytest.raises(SettingsError, match="MONITORING_NAMESPACE"):
        Settings.from_environment({**NEEDED, "MONITORING_NAMESPACE": "Not A Namespace"})


def test_arguments_replace_variables() -> None:
    arguments = ("--workers=3", "--relist-seconds=300")
    settings = Settings.from_environment({**NEEDED, "WORKERS": "5"}, arguments)
    assert (settings.workers, settings.relist_seconds) == (3, 300)
    for wrong in ("--worker=3", "workers=3", "--workers"):
        with pytest.raises(SettingsError, match=f"remove {wrong}"):
            Settings.from_environment(NEEDED, [wrong])


def test_metadata_of_new_service_accounts_comes_from_json_and_from_names() -> None:
    variables = {"RUNNER_ANNOTATIONS": '{"role": "x"}', "RUNNER_IMAGE_PULL_SECRETS": "a,b"}
    settings = Settings.from_environment({**NEEDED, **variables})
    assert settings.runner_annotations == {"role": "x"}
    assert settings.runner_image_pull_secrets == ("a", "b")
    with pytest.raises(SettingsError, match="RUNNER_ANNOTATIONS"):
        Settings.from_environment({**NEEDED, "RUNNER_ANNOTATIONS": "role=x"})


def test_an_empty_variable_counts_as_absent() -> None:
    assert Settings.from_environment({**NEEDED, "WORKERS": ""}).workers == 16


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment(
            {"POD_NAMESPACE": "finetune-system", "WORKERS": "many", "LOG_LEVEL": "LOUD"}
        )
    for variable in ("TRAINER_IMAGE", "WORKERS", "LOG_LEVEL"):
        assert variable in str(raised.value)
