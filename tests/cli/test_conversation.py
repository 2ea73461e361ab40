"""`nearplane run DIR` without a prompt: line by line, in the chat template."""

import pytest
from typer.testing import CliRunner

from nearplane.cli.app import app
from nearplane.cli.conversation import Conversation
from nearplane.evaluate.writing import Words, ends
from nearplane.export.load import load, load_tokenizer
from nearplane.types import NearplaneError
from tests.cli.conftest import checkpoint, model_dir, nearplane, text

__all__ = ["checkpoint", "model_dir", "nearplane", "text"]


@pytest.fixture
def talk(checkpoint):
    return Conversation(load(checkpoint), load_tokenizer(checkpoint), 4)


def test_lines_are_answered_until_the_end(checkpoint):
    words = ["run", str(checkpoint), "--tokens", "4"]
    done = CliRunner().invoke(app, words, input="the nearest\n\nplane\n/exit\nnever read\n")
    assert done.exit_code == 0, done.output
    assert done.output.count("a second]") == 2
    # the end of what is piped ends it, too
    assert CliRunner().invoke(app, words, input="the\n").exit_code == 0


def test_what_was_said_is_read_again(talk):
    talk.answer("the nearest")
    talk.answer("plane")
    roles = [message["role"] for message in talk.messages]
    assert roles == ["user", "assistant"] * 2 and talk.messages[2]["content"] == "plane"


def test_ctrl_c_ends_the_answer_alone(talk, capsys, monkeypatch):
    def interrupted(model, tokenizer, inputs, tokens, words):
        words.put(inputs["input_ids"][0])
        words.put(inputs["input_ids"][0, :1])
        raise KeyboardInterrupt

    monkeypatch.setattr("nearplane.evaluate.writing.written", interrupted)
    talk.answer("the nearest")
    assert "[1 tokens" in capsys.readouterr().out and len(talk.messages) == 2


def test_a_line_without_room_is_said(talk, capsys, monkeypatch):
    monkeypatch.setattr("nearplane.model.positions.position_limit", lambda model: 128)
    talk.answer("plane " * 200)
    assert "no room in 128 positions" in capsys.readouterr().out and not talk.messages


def test_models_without_a_template_are_refused(talk):
    talk.tokenizer.chat_template = None
    with pytest.raises(NearplaneError, match="no chat template .* give a PROMPT"):
        Conversation(talk.model, talk.tokenizer, 4)


def test_a_text_ends_where_the_model_or_the_tokenizer_says(talk):
    talk.model.generation_config.eos_token_id = [7, 9]
    assert ends(talk.model, talk.tokenizer) == [1, 7, 9]
    words = Words(talk.tokenizer)
    assert words.text == "" and words.count == -1
