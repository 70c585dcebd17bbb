"""Settings of the page: options before environment before defaults, mistakes in one sentence."""

import pytest

from page.models.inference_queue import on_gpu
from page.server.settings import EMBEDDED_MODELS, Settings, parse_settings


def test_defaults_offer_the_embedded_models_and_training():
    settings = parse_settings([], {})
    assert settings.models == (str(EMBEDDED_MODELS / "magnetic-tile"),)
    assert settings.hub_models == ()
    assert settings.training
    assert not settings.mcp
    assert settings.port is None
    assert settings.max_batch == Settings.max_batch


def test_space_trains_only_if_its_owner_says_so():
    assert not parse_settings([], {"SPACE_ID": "org/space"}).training
    assert parse_settings([], {"SPACE_ID": "org/space", "TRAINING": "on"}).training


def test_options_win_over_the_environment():
    environ = {"MODELS": "a, org/b", "GRADIO_SERVER_PORT": "7000", "MAX_BATCH": "9", "HUB_MODELS": "org/*"}
    settings = parse_settings(["--port", "7001", "--mcp", "on"], environ)
    assert settings.models == ("a", "org/b")
    assert settings.hub_models == ("org/*",)
    assert (settings.port, settings.max_batch, settings.mcp) == (7001, 9, True)
    assert "org/*" in settings.describe()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "many"], "--port is 'many'; a whole number from 1 is accepted."),
        (["--max_batch", "0"], "--max_batch is '0'; a whole number from 1 is accepted."),
        (["--training", "perhaps"], "--training is 'perhaps'; on and off are accepted."),
        (["--models", ","], "--models names no checkpoint."),
    ],
)
def test_mistakes_end_the_command_with_one_sentence(argv, words, capsys):
    with pytest.raises(SystemExit):
        parse_settings(argv, {})
    assert capsys.readouterr().err.strip().endswith(words)


def test_help_names_every_variable(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    text = capsys.readouterr().out
    for variable in ("MODELS", "HUB_MODELS", "TRAINING", "GRADIO_SERVER_PORT", "MAX_UPLOAD_MB", "GRADIO_MCP_SERVER"):
        assert f"${variable}" in text


def test_function_stays_itself_where_no_gpu_is_lent(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert on_gpu(len) is len
