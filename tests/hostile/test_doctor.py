"""`semcal doctor` says before hours are spent what a run would stop at, or get wrong."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from semcal import LanguageModel, UserError
from tests.conftest import save_checkpoint, word_tokenizer


def examine(*args, **settings):
    from experiments.sample.doctor import examine

    return examine(*map(str, args), device="cpu", **settings)


def outcomes(found) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


def nan_weights(folder):
    model = LanguageModel.load(save_checkpoint(folder), device="cpu").model
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")
    model.save_pretrained(folder)


def encoder_decoder(folder):
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, num_layers=1, num_heads=4, d_ff=48)
    ).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def looks_ahead(folder):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(vocab_size=64, **small))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def short_context(folder):
    save_checkpoint(folder, "gpt2")
    config = json.loads((folder / "config.json").read_text())
    model = LanguageModel.load(folder, device="cpu").model
    model.config.n_positions = config["n_positions"] = 24
    model.transformer.wpe.weight = torch.nn.Parameter(model.transformer.wpe.weight[:24].clone())
    model.save_pretrained(folder)


def no_weights(folder):
    save_checkpoint(folder)
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("broken", "failed", "said"),
    [
        (nan_weights, "loading", "holds NaN or infinity"),
        (encoder_decoder, "loading", "encoder-decoder"),
        (looks_ahead, "sampling", "not a causal language model"),
        (short_context, "prompts", "context of 24"),
        (no_weights, "loading", "safetensors"),
        (lambda folder: None, "loading", "no folder"),  # noqa: ARG005
    ],
)
def test_what_a_run_would_stop_at_is_a_row_of_the_table(tmp_path, broken, failed, said):
    broken(tmp_path / "model")
    found = examine(tmp_path / "model")
    rows = outcomes(found)
    assert [name for name, outcome in rows.items() if outcome == "failed"] == [failed]
    (why,) = [check.why for check in found.checks if check.name == failed]
    assert said in why
    assert "\n" not in why
    assert not found.passed
    assert found.verdict.startswith(f"do not run it: {failed} failed")
    assert set(list(rows.values())[list(rows).index(failed) + 1 :]) == {"not made"}


def test_a_sampler_that_goes_wrong_is_a_failed_check(tmp_path, monkeypatch):
    from semcal.sampling import engine

    real = engine.draw

    def draw(logits, settings, rows, uniform):
        tokens, logprobs, bad = real(logits, settings, rows, uniform)
        return tokens, logprobs * 1.01, bad

    monkeypatch.setattr(engine, "draw", draw)
    found = examine(save_checkpoint(tmp_path / "model", scale=4.0))
    assert outcomes(found)["equality with plain passes"] == "failed"
    assert not found.passed


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mamba"])
def test_a_sound_model_is_ready(tmp_path, architecture):
    if architecture == "mamba":
        torch.manual_seed(0)
        config = MambaConfig(
            vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, bos_token_id=0, eos_token_id=1
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        word_tokenizer().save_pretrained(tmp_path)
    else:
        save_checkpoint(tmp_path, architecture)
    found = examine(tmp_path)
    assert set(outcomes(found).values()) == {"passed"}
    assert found.verdict == "ready: 8 checks passed, 0 could not be made"
    (path,) = [check.why for check in found.checks if check.name == "equality with plain passes"]
    assert ("path expanded" if architecture == "mamba" else "path shared-prefix") in path


def test_the_questions_of_a_file_are_asked(tmp_path):
    questions = tmp_path / "colours.jsonl"
    rows = [{"id": f"q{i}", "question": f"the {c} ?", "answers": [c]} for i, c in enumerate(["red", "blue", "green"])]
    questions.write_text("\n".join(map(json.dumps, rows)))
    found = examine(save_checkpoint(tmp_path / "model"), questions)
    assert found.dataset == "colours"
    assert found.passed
    assert "3 of colours" in found.checks[1].why


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("atlas:base", "no-such.jsonl"), "no-such.jsonl"),
        (("http://localhost:1/v1",), "is a server"),
    ],
)
def test_what_cannot_be_examined_is_one_line(args, message):
    with pytest.raises(UserError, match=message):
        examine(*args)


@pytest.mark.parametrize("sound", [True, False])
def test_the_command_ends_with_its_verdict(tmp_path, capsys, monkeypatch, sound):
    from experiments import cli

    assert "doctor" in {command.callback.__name__ for command in cli.app.registered_commands}
    folder = save_checkpoint(tmp_path / "model") if sound else tmp_path / "absent"
    monkeypatch.setattr("sys.argv", ["semcal", "doctor", str(folder), "--device", "cpu", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == (0 if sound else 2)
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is sound
    assert len(said["checks"]) == (8 if sound else 7)
