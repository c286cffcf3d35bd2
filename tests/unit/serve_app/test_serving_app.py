"""The application as Serve builds it from a config."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError
from ray.serve import Application

from serve_app.app import app, build_app, deployment_options
from serve_app.settings import AppSettings, ServingSettings


def test_flat_pairs_of_the_command_line_and_nested_values_mean_the_same() -> None:
    flat = AppSettings.model_validate({"serving.min_replicas": "1", "num_shards": "3"})
    nested = AppSettings.model_validate({"serving": {"min_replicas": 1}, "num_shards": 3})
    assert flat == nested


@pytest.mark.parametrize(
    "arguments", [{"min_replica": 1}, {"serving.min_replica": 1}, {"serving": {"prot": 1}}]
)
def test_a_misspelt_argument_is_an_error(arguments: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AppSettings.model_validate(arguments)


def test_serve_sees_the_type_of_the_arguments() -> None:
    [parameter] = inspect.signature(build_app).parameters.values()
    assert parameter.annotation is AppSettings, "Serve converts only to a class, not to its name"


def test_serve_build_finds_an_application_to_write_a_config_from() -> None:
    assert isinstance(app, Application)


def test_the_replica_refuses_before_serve_does() -> None:
    serving = ServingSettings(max_ongoing_requests=8)
    assert deployment_options(serving)["max_ongoing_requests"] > 8


def test_settings_travel_to_the_replica_unchanged() -> None:
    settings = AppSettings.model_validate({"serving": {"deadline_s": 3.5}, "num_shards": 5})
    assert AppSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_every_setting_says_what_it_is() -> None:
    for section in (ServingSettings, AppSettings):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
