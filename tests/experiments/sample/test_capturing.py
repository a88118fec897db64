"""A study that captures more than the default: every position and hook, probed, resumed, refused before sampling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import pre_tokenizers

from experiments.config.study import load_study
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import LanguageModel, Run, UserError
from semcal.runs.files import write_atomically
from tests.conftest import save_checkpoint, word_tokenizer
from tests.experiments.conftest import Reporter, run_dict, write_study

IN_PROMPT = ["last_prompt_token", "last_question_token", "question_mean", "all_question_tokens"]
IN_ANSWER = ["after_1_tokens", "after_4_tokens", "chain_0", "chain_50", "chain_100", "before_answer"]
CAPTURE = {
    "positions": IN_PROMPT + IN_ANSWER,
    "hooks": ["blocks.*.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.*.attn.hook_z"],
}


def line_tokenizer():
    """As `word_tokenizer`, and a line break is a token of its own."""
    tokenizer = word_tokenizer()
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("lines") / "llama", scale=4.0)
    line_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def capturing(study_dict):
    """24 questions, not probed: most of these tests are about what lies on disk."""
    fewer = {"datasets": [study_dict["datasets"][0] | {"n": 24}], "probes": {"enabled": False}}
    return study_dict | fewer | {"capture": CAPTURE}


def read_everything(run: Run) -> dict[str, np.ndarray]:
    arrays = [f"{p}{heads}" for p in IN_PROMPT + IN_ANSWER for heads in ("", "/attn_z")]
    return {a: run.activations(a).values for a in arrays} | {"samples": run.activations("chain_0").samples}


@pytest.mark.parametrize("more", [{}, {"prompting.vary": "run"}, {"sampling.exact.epsilon": 0.05}])
def test_every_position_holds_what_hugging_face_computes_there(tmp_path, capturing, checkpoint, more):
    (run,) = run_dict(tmp_path, capturing, *(f"{k}={v}" for k, v in more.items()))
    model, questions, samples = LanguageModel.load(checkpoint, device="cpu"), run.questions(), run.samples()
    stored = {p: run.activations(p) for p in CAPTURE["positions"]}
    first = {p: s.rows.cumsum() - s.rows for p, s in stored.items()}
    assert stored["all_question_tokens"].layers[:2] == ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
    chains = stored["chain_0"]
    assert 0 < chains.present.sum() < 24  # the others answered with nothing at all
    for at in np.flatnonzero(chains.present)[::3]:
        prompt = model.encode(questions["prompt"][at])
        words = questions["text"][at].split()
        asked = [model.tokenizer.convert_tokens_to_ids(w) for w in words]
        start = max(i for i in range(len(prompt)) if prompt[i : i + len(asked)] == tuple(asked))
        span = slice(start, start + len(asked))
        assert (
            stored["all_question_tokens"].token_ids[first["all_question_tokens"][at] :][: len(asked)].tolist() == asked
        )
        answer = samples.iloc[chains.samples[first["chain_0"][at]]]
        assert answer["question_id"] == questions["id"][at]
        ids = (*prompt, *answer["token_ids"])
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0].numpy()
        expected = {
            "last_prompt_token": hidden[len(prompt) - 1],
            "last_question_token": hidden[span][-1],
            "question_mean": hidden[span].mean(0),
            "chain_0": hidden[len(prompt) - 1],
            "after_1_tokens": hidden[len(prompt)],
        }
        for position, value in expected.items():
            ours = stored[position].values[first[position][at], 0]
            np.testing.assert_allclose(ours, value, rtol=1e-3, atol=1e-5, err_msg=position)
    lengths = samples["token_ids"].map(len)
    some = stored["after_4_tokens"]
    assert 0 < some.present.sum() < 24
    assert (lengths.iloc[some.samples] >= 4).all()


@pytest.mark.long
@pytest.mark.pictures
def test_probes_have_rows_for_each_position_on_the_questions_that_have_it(tmp_path, capturing):
    positions = ["all_question_tokens", "last_prompt_token", "after_4_tokens", "after_1_tokens"]
    study = capturing | {
        "capture": CAPTURE | {"positions": positions},
        "probes": {"permutations": 2, "folds": 3, "targets": ["b_confidence"]},
    }
    (run,) = run_dict(tmp_path, study, drawn=True)
    probes = run.probes()
    assert list(probes["position"].unique()) == positions[1:]
    for position, table in probes.groupby("position"):
        stored = run.activations(str(position))
        assert set(table["n"]) == {stored.present.sum()}
        assert list(table.loc[table["rung"] == "linear", "layer"]) == list(stored.layers)
    assert "after_4_tokens" in (run.folder / "report.html").read_text()
    assert (run.folder / "figures" / "layers.png").is_file()


@pytest.mark.long
def test_killed_between_activations_and_samples_a_shard_is_made_again_whole(tmp_path, capturing, monkeypatch):
    (whole,) = run_dict(tmp_path, capturing, "name=whole")
    written = []

    def dies(self, key, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(key)
        table = pd.DataFrame(list(rows)).astype({"count": "Int64", "logprob": float})
        write_atomically(self._path("samples", f"{key}.parquet"), lambda p: table.to_parquet(p, index=False))

    with monkeypatch.context() as broken:
        broken.setattr(Run, "write_samples", dies)
        prepared = prepare_study(load_study(write_study(tmp_path, capturing), ["name=broken"]))
        with pytest.raises(KeyboardInterrupt):
            run_study(prepared, Reporter())
    (run,) = prepared.runs
    assert len(list((run.folder / "activations").glob("*.safetensors"))) == 3
    assert len(run.missing_shards()) == len(run.shard_keys()) - 2
    (again,) = run_dict(tmp_path, capturing, "name=broken")
    pd.testing.assert_frame_equal(again.samples(), whole.samples())
    for name, values in read_everything(whole).items():
        np.testing.assert_array_equal(read_everything(again)[name], values, err_msg=name)


def test_a_hook_the_model_has_not_is_refused_before_anything_is_written_that_binds(tmp_path, capturing):
    study = capturing | {"capture": {"hooks": ["blocks.7.hook_resid_post"]}}
    with pytest.raises(UserError, match=r"'blocks\.7\.hook_resid_post' matches nothing in LlamaForCausalLM, did you"):
        run_dict(tmp_path, study)
    (run,) = run_dict(tmp_path, study, "capture.hooks=['blocks.2.hook_resid_post']")
    assert run.activations("last_prompt_token").layers == ("blocks.2.hook_resid_post",)


def test_another_capture_is_another_configuration(tmp_path, capturing):
    study_dict = capturing | {"capture": {}}
    (run,) = run_dict(tmp_path, study_dict)
    for override in ("capture.dtype=float16", "capture.positions=['last_prompt_token','chain_50']"):
        with pytest.raises(UserError, match=r"another configuration \(capture\."):
            run_dict(tmp_path, study_dict, override)
    (half,) = run_dict(tmp_path, study_dict, "capture.dtype=float16", "name=half")
    assert half.manifest()["samples_key"] != run.manifest()["samples_key"]
    np.testing.assert_allclose(
        half.activations("last_prompt_token").values, run.activations("last_prompt_token").values, rtol=1e-3, atol=1e-4
    )


def test_questions_are_found_in_a_conversation_as_well(tmp_path, capturing):
    path = save_checkpoint(tmp_path / "chat", scale=4.0)
    tokenizer = line_tokenizer()
    tokenizer.chat_template = "{{ bos_token }} Question: {% for m in messages %}{{ m['content'] }}{% endfor %} Answer:"
    tokenizer.save_pretrained(path)
    study = capturing | {
        "models": [{"path": str(path), "name": "chat", "device": "cpu", "prompt": "chat"}],
        "capture": {"positions": ["last_question_token"]},
    }
    (run,) = run_dict(tmp_path, study)
    last = [tokenizer.convert_tokens_to_ids(text.split()[-1]) for text in run.questions()["text"]]
    assert run.activations("last_question_token").token_ids.tolist() == last
    hidden = "{{ bos_token }}{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    tokenizer.chat_template = hidden
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match="does not contain its text verbatim; capture at last_prompt_token instead"):
        run_dict(tmp_path, study, "name=upper")
