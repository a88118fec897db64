# ruff: noqa: F811 (fixtures of another folder)
"""What a sampler could do wrong behind our back is noticed on every run: stopped with its figure, or shown loudly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from experiments.sample import sample_cell as sampling
from probes.activations.capture import ResidualCapture
from semcal import LanguageModel, Run, UserError
from semcal.sampling import branches, engine, enumeration
from semcal.sampling.decoding import decoders
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
from tests.conftest import save_checkpoint, word_tokenizer
from tests.experiments.conftest import questions_file, run_dict, study_dict  # noqa: F401

SIX = [
    "samples per question",
    "where answers end",
    "law of the sampler",
    "equality with plain passes",
    "token at the captured position",
    "captured activations",
]


@pytest.fixture
def study(study_dict):
    return study_dict | {"probes": {"enabled": False}}


def made(run) -> dict[str, dict]:
    return {check["name"]: check for check in run.manifest()["checks"]}


def not_analysed(monkeypatch):
    """Sampling is what these tests are about."""
    monkeypatch.setattr("experiments.pipeline.run_study.analyse", lambda *_, **__: None)
    monkeypatch.setattr("experiments.pipeline.run_study.write_study", lambda *_, **__: None)


# ---- what is recorded and shown ------------------------------------------------------------------------------------


def test_every_run_records_six_checks_with_their_figures_and_shows_them(tmp_path, study):
    (run,) = run_dict(tmp_path, study, drawn=True)
    checks = made(run)
    assert list(checks) == SIX
    assert {c["outcome"] for c in checks.values()} == {"passed"}
    assert checks["samples per question"]["figure"] == checks["token at the captured position"]["figure"] == 0
    assert 0 < checks["equality with plain passes"]["figure"] < 1e-4 < checks["equality with plain passes"]["limit"]
    assert 0 < checks["captured activations"]["figure"] < 1e-4
    page = (run.folder / "report.html").read_text()
    assert "Checks made" in page
    (work,) = run.manifest()["sampling_work"]
    assert 0 < work["check_cpu_seconds"] < work["cpu_seconds"]
    assert f"of the {work['cpu_seconds']:,.0f} CPU seconds of sampling" in page
    assert all(name in page for name in SIX)


def test_what_could_not_be_checked_is_said_with_its_reason(tmp_path, study, monkeypatch):
    not_analysed(monkeypatch)
    (run,) = run_dict(
        tmp_path, study | {"capture": {"positions": []}}, "sampling.exact.epsilon=0.05", "sampling.top_k=3"
    )
    checks = made(run)
    outcomes = {name: check["outcome"] for name, check in checks.items()}
    passed = {"equality with plain passes": "passed", "where answers end": "passed"}
    assert outcomes == dict.fromkeys(SIX, "not made") | passed
    assert "enumerated" in checks["law of the sampler"]["why"]
    assert "nothing is captured" in checks["token at the captured position"]["why"]
    assert "drawn answers" not in checks["equality with plain passes"]["why"]  # top-k is cut at an edge


def test_the_way_of_decoding_is_chosen_once_per_run(tmp_path, study, monkeypatch):
    not_analysed(monkeypatch)
    chosen, real = [], sampling.choose_path

    def choose_path(*args):
        chosen.append(real(*args))
        return chosen[-1]

    for module in (sampling, engine, enumeration):
        monkeypatch.setattr(module, "choose_path", choose_path)
    (run,) = run_dict(tmp_path, study, "datasets.0.n=24", "sampling.exact.epsilon=0.5")
    assert len(run.manifest()["shards"]) == 3
    assert len(chosen) == 1


def test_a_run_that_takes_over_samples_takes_over_their_checks(tmp_path, study, monkeypatch):
    not_analysed(monkeypatch)
    both = study | {"semantics": [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]}
    one, other = run_dict(tmp_path, both)
    assert list(made(one)) == SIX
    assert made(other) == made(one)


def test_a_law_that_failed_once_stays_failed_when_a_run_is_resumed():
    from experiments.sample.run_checks import merged
    from semcal.sampling.checks import Check

    before = [Check.of("law of the sampler", 0.5, 0.1, "then"), Check.of("samples per question", 1, 0, "then")]
    now = [Check.of("law of the sampler", 0.0, 0.1, "now"), Check.of("samples per question", 0, 0, "now")]
    found = merged([vars(check) for check in before], now)
    assert [c["outcome"] for c in found] == ["failed", "passed"]


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def lost_sample(monkeypatch):
    real = branches.Branches.close

    def close(self):
        for question, answered in real(self):
            some = answered.samples
            less = some[:-1] if some[-1].count == 1 and len(some) > 1 else some
            yield question, type(answered)(answered.key, less)

    monkeypatch.setattr(branches.Branches, "close", close)


def other_token(monkeypatch):
    real = ResidualCapture.prefilled

    def prefilled(self, batch):
        real(self, type(batch)(batch.keys, batch.ids.roll(1, -1), batch.mask, batch.positions, batch.offset))

    monkeypatch.setattr(ResidualCapture, "prefilled", prefilled)


def other_place(monkeypatch):
    from probes.activations import capture

    real = capture._Plan.of.__func__

    def of(cls, batch, where):
        return real(cls, batch, [{p: [places[0] - 1] for p, places in w.items()} for w in where])

    monkeypatch.setattr(capture._Plan, "of", classmethod(of))


def other_question(monkeypatch):
    """Activations of a neighbour in the batch, under the right token ids."""
    from probes.activations import capture

    real = capture._Plan.take
    monkeypatch.setattr(capture._Plan, "take", lambda self, hidden: real(self, hidden.roll(1, 0)))


def stale_cache(monkeypatch):
    """The answer so far is forgotten from the sixth token on, beyond what is tried at the start."""
    real = decoders.TreeDecoder.extend

    def extend(self, tokens, slots, lengths, rows=None):
        out = real(self, tokens, slots, lengths, rows)
        return out.roll(1, -1) if int(lengths.max()) >= 5 else out

    monkeypatch.setattr(decoders.TreeDecoder, "extend", extend)


def wrong_logprobs(monkeypatch):
    real = engine.draw

    def draw(logits, settings, rows, uniform):
        tokens, logprobs, bad = real(logits, settings, rows, uniform)
        return tokens, logprobs * 1.01, bad

    monkeypatch.setattr(engine, "draw", draw)


def rule_that(changed):
    """A stop rule that gives another verdict: `changed(rule, verdict, tokens, rows)`."""

    def wrong(monkeypatch):
        real = StopRule.finished

        def finished(self, drawn, rows):
            return changed(self, real(self, drawn, rows), drawn, rows)

        monkeypatch.setattr(StopRule, "finished", finished)

    return wrong


runs_past_stops = rule_that(lambda rule, _, drawn, __: rule.eos[drawn])
runs_past_the_end_of_sequence = rule_that(lambda rule, done, drawn, _: done & ~rule.eos[drawn])
ends_early = rule_that(lambda _, done, __, rows: done | torch.tensor([len(row) > 2 for row in rows]))
ends_a_token_late = rule_that(
    lambda rule, done, _, rows: (
        done | torch.tensor([any(s in rule.decode(row[:-1]) for s in rule.stop) for row in rows])
        if not done.any()
        else torch.zeros_like(done)
    )
)


def stops_at_the_added_token_alone(monkeypatch):
    """A stop string that is an added token is looked for as this token, not in the text."""

    def stop_rule(self, stop):
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        ends = {added[s] for s in stop if s in added}
        return StopRule(self.decode, [s for s in stop if s not in added], self.eos_ids | ends, self.output_size)

    monkeypatch.setattr(LanguageModel, "stop_rule", stop_rule)


def shows_what_ended_it(monkeypatch):
    monkeypatch.setattr("semcal.models.checkpoint.cut", lambda text, _: text)


def forgotten_temperature(monkeypatch):
    real = engine.draw

    def draw(logits, settings, rows, uniform):
        return real(logits / 0.7, settings, rows, uniform)

    monkeypatch.setattr(engine, "draw", draw)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lost_sample, r"samples per question, question '\w+' has 7 samples, M is 8"),
        (other_token, r"token at the captured position, last_prompt_token of 'q\d+'"),
        (other_place, r"token at the captured position, last_prompt_token of 'q\d+'"),
        (other_question, r"captured activations, 2 prompts"),
        (stale_cache, r"equality with plain passes, path shared-prefix: .* 2 drawn answers"),
        (wrong_logprobs, r"equality with plain passes, path shared-prefix: .* 2 drawn answers"),
        (forgotten_temperature, r"equality with plain passes, path shared-prefix: .* 2 drawn answers"),
    ],
)
def test_a_wrong_number_stops_the_run_before_it_is_written(tmp_path, study, monkeypatch, wrong, message):
    not_analysed(monkeypatch)
    wrong(monkeypatch)
    settings = ["sampling.max_new_tokens=8", "sampling.shard_size=24", "sampling.max_rows=64"]
    with pytest.raises(
        UserError, match=rf"check failed: {message}.*at most .* is right.*no question is saved yet"
    ) as e:
        run_dict(tmp_path, study, *settings)
    assert "\n" not in str(e.value)
    (manifest,) = [Run(p.parent).manifest() for p in (tmp_path / "runs").rglob("manifest.json")]
    assert "failed" in {check["outcome"] for check in manifest["checks"]}
    assert not list((tmp_path / "runs").rglob("samples/*.parquet"))


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory):
    """Line breaks are added tokens that are not special, one for a single and one for a double break."""
    folder = save_checkpoint(tmp_path_factory.mktemp("ends") / "m")
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    tokenizer.save_pretrained(folder)
    return folder


ELSEWHERE = {
    "past-stops": runs_past_stops,
    "past-eos": runs_past_the_end_of_sequence,
    "early": ends_early,
    "late": ends_a_token_late,
    "added-token-alone": stops_at_the_added_token_alone,
    "shown": shows_what_ended_it,
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("wrong", "settings"),
    [pytest.param(wrong, [], id=name) for name, wrong in ELSEWHERE.items()]
    + [pytest.param(runs_past_stops, ["sampling.exact.epsilon=0.5"], id="past-stops-enumerated")],
)
def test_an_answer_that_ends_elsewhere_stops_the_run(tmp_path, study, gemma_like, monkeypatch, wrong, settings):
    not_analysed(monkeypatch)
    wrong(monkeypatch)
    models = [{"path": str(gemma_like), "name": "m", "device": "cpu"}]
    settings = [*settings, "sampling.max_new_tokens=8", "sampling.shard_size=24", "sampling.max_rows=64"]
    with pytest.raises(UserError, match=r"check failed: where answers end, of 'q\d+'.*no question is saved yet") as e:
        run_dict(tmp_path, study | {"models": models}, *settings)
    assert "\n" not in str(e.value)
    assert not list((tmp_path / "runs").rglob("samples/*.parquet"))


def draws_of(law, n, m, seed=0, logits=None):
    """n questions with m draws each, by inverse CDF from a law that may not be the one that is stated."""
    from semcal.sampling.checks import LawWatch
    from semcal.sampling.drawing import draw

    rng, watch = np.random.default_rng(seed), LawWatch(Sampling(m=m, seed=seed))
    for i in range(n // 8):
        stated = torch.from_numpy(rng.normal(size=(8, 50)) * (2 if logits is None else logits)).float()
        rows = np.repeat(np.arange(8), m)
        tokens, _, _ = draw(law(stated), Sampling(m=m), rows, rng.random(len(rows)))
        watch.first([Prompt(f"{i}-{j}", (0,)) for j in range(8)], stated, rows, tokens)
        watch.later(stated, rows, tokens)
    return watch.check()


def top_ten(logits):
    return logits.masked_fill(logits < logits.topk(10, -1).values[:, -1:], -torch.inf)


@pytest.mark.parametrize(
    "law", [lambda x: x / 0.7, lambda x: x / 1.5, top_ten, lambda x: x.roll(1, 0), lambda x: x.flip(-1)],
    ids=["cold", "hot", "top-k", "rows-exchanged", "tokens-exchanged"],
)  # fmt: skip
def test_draws_from_another_law_fail_the_test_of_the_law(law):
    assert draws_of(law, 400, 8).outcome == "failed"


@pytest.mark.parametrize("sharpness", [0.01, 2, 30])
def test_draws_from_the_stated_law_pass_whatever_its_shape(sharpness):
    checks = [draws_of(lambda x: x, 80, 8, seed, sharpness) for seed in range(30)]
    assert {c.outcome for c in checks} == {"passed"}
    # The distance has the law that its limit assumes: its mean is 0.87 / √n (Kolmogorov).
    n = 80 * 4 + 8 * (10 // 4)
    assert np.mean([c.figure for c in checks]) == pytest.approx(0.87 / math.sqrt(n), rel=0.15)


def test_a_law_that_fails_is_shown_loudly_and_the_run_is_finished(tmp_path, study, monkeypatch, caplog):
    real = engine.draw

    def forgotten_top_k(logits, settings, rows, uniform):
        tokens, _, bad = real(logits, Sampling(m=settings.m, top_k=2), rows, uniform)
        law = logits.double().log_softmax(-1)
        return tokens, law[torch.from_numpy(rows), torch.from_numpy(tokens)].numpy(), bad

    monkeypatch.setattr(engine, "draw", forgotten_top_k)
    flat = [{"path": str(save_checkpoint(tmp_path / "flat", scale=0.1)), "name": "flat", "device": "cpu"}]
    (run,) = run_dict(tmp_path, study | {"models": flat}, drawn=True)
    assert made(run)["law of the sampler"]["outcome"] == "failed"
    assert "CHECK FAILED: law of the sampler" in caplog.text
    assert "CHECK FAILED: law of the sampler" in (run.folder / "report.html").read_text()
