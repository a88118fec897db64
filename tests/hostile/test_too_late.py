# ruff: noqa: F811 (fixtures of another folder)
"""What float16 cannot hold is refused at the first prefill, and a message about what is saved tells the truth."""

from __future__ import annotations

import pytest
import torch

from experiments.sample import sample_cell as sampling
from semcal import LanguageModel, UserError
from semcal.sampling.engine import Sampler
from tests.conftest import save_checkpoint
from tests.experiments.conftest import questions_file, run_dict, study_dict  # noqa: F401


@pytest.fixture(scope="module")
def massive(tmp_path_factory):
    """A Llama whose residual stream reaches 70,000 after the first block, as real models' first tokens do."""
    folder = save_checkpoint(tmp_path_factory.mktemp("massive") / "llama", scale=4.0)
    model = LanguageModel.load(folder, device="cpu").model
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3] *= 1e8
    model.save_pretrained(folder)
    return folder


def study(study_dict, folder, **capture):
    models = [{"path": str(folder), "name": "massive", "device": "cpu"}]
    return study_dict | {"models": models, "probes": {"enabled": False}, "capture": {"dtype": "float16"} | capture}


def count_steps(monkeypatch):
    steps, real = [], Sampler._take_off
    monkeypatch.setattr(Sampler, "_take_off", lambda *a: steps.append("flight") or real(*a))
    extend = sampling.Sampler.sample
    monkeypatch.setattr(sampling.Sampler, "sample", lambda *a, **k: _counted(extend(*a, **k), steps))
    return steps


def _counted(found, steps):
    for answered in found:
        steps.append(answered.key)
        yield answered


@pytest.mark.parametrize("positions", [["last_prompt_token"], ["question_mean"], ["chain_0"], ["after_1_tokens"]])
def test_float16_that_overflows_is_refused_at_the_first_prefill(tmp_path, study_dict, massive, monkeypatch, positions):
    steps = count_steps(monkeypatch)
    with pytest.raises(
        UserError, match=r"blocks\.0\.hook_resid_post reach [\d,]+, and float16 holds at most 65,504"
    ) as e:
        run_dict(tmp_path, study(study_dict, massive, positions=positions))
    assert steps == ["flight"], "answers were finished before the refusal"
    assert "set capture.dtype to float32" in str(e.value)
    assert "no question is saved yet" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_model_that_overflows_in_float16_is_told_of_the_wider_dtypes(tmp_path, study_dict, massive, monkeypatch):
    steps = count_steps(monkeypatch)
    narrow = study(study_dict, massive)
    narrow["models"] = [narrow["models"][0] | {"dtype": "float16"}]
    with pytest.raises(UserError, match=r"holds NaN or infinity in float16; .* set dtype: bfloat16 or float32"):
        run_dict(tmp_path, narrow)
    assert steps == [], "something was sampled before the refusal"


@pytest.mark.held_before
def test_the_same_activations_are_stored_in_float32(tmp_path, study_dict, massive):
    (run,) = run_dict(tmp_path, study(study_dict, massive, dtype="float32"))
    assert abs(run.activations("last_prompt_token").layer("blocks.0.hook_resid_post")).max() > 65_504


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_message_says_how_many_questions_are_saved(tmp_path, study_dict, monkeypatch, after):
    real, calls = Sampler.sample, []

    def sample(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise UserError("out of GPU memory with a single question")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "sample", sample)
    said = "no question is saved yet" if after == 0 else f"{8 * after} of 48 questions are saved, and the same command"
    with pytest.raises(UserError, match=said):
        run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})


def test_a_model_that_is_refused_at_the_start_does_not_claim_saved_shards(tmp_path, study_dict, monkeypatch):
    real = torch.nn.Module.__call__

    def nan(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        if hasattr(out, "logits"):
            out.logits[..., 5] = float("nan")
        return out

    monkeypatch.setattr(torch.nn.Module, "__call__", nan)
    with pytest.raises(UserError, match=r"logits of new token 0 .* no question is saved yet"):
        run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})
