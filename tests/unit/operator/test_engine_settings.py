"""Settings say which variable is wrong."""

import pytest

from finetune_operator.settings import Settings, SettingsError

NEEDED = {"POD_NAMESPACE": "finetune-system", "TRAINER_IMAGE": "trainer:1"}


def test_two_variables_are_enough() -> None:
    settings = Settings.from_environment(NEEDED)
    assert settings.trainer_image == "trainer:1"
    assert settings.watch_namespaces == ()


def test_namespaces_are_separated_by_commas() -> None:
    settings = Settings.from_environment({**NEEDED, "WATCH_NAMESPACES": "team-a, team-b,"})
    assert settings.watch_namespaces == ("team-a", "team-b")


def test_the_monitoring_namespace_is_a_json_object_of_labels() -> None:
    default = Settings.from_environment(NEEDED)
    assert default.monitoring_namespace == {"kubernetes.io/metadata.name": "monitoring"}
    given = Settings.from_environment({**NEEDED, "MONITORING_NAMESPACE": '{"team": "observability"}'})
    assert given.monitoring_namespace == {"team": "observability"}
    everywhere = Settings.from_environment({**NEEDED, "MONITORING_NAMESPACE": "{}"})
    assert everywhere.monitoring_namespace == {}
    with pytest.raises(SettingsError, match="MONITORING_NAMESPACE"):
        Settings.from_environment({**NEEDED, "MONITORING_NAMESPACE": "monitoring"})


def test_an_empty_variable_counts_as_absent() -> None:
    assert Settings.from_environment({**NEEDED, "WORKERS": ""}).workers == 8


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment(
            {"POD_NAMESPACE": "finetune-system", "WORKERS": "many", "LOG_LEVEL": "LOUD"}
        )
    for variable in ("TRAINER_IMAGE", "WORKERS", "LOG_LEVEL"):
        assert variable in str(raised.value)
