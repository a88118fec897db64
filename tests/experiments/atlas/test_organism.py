"""The shipped organism and its training."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.atlas.stages.base import TrainingSettings, train_base
from experiments.atlas.weights import bundled
from experiments.atlas.world import Fact, World
from experiments.atlas.world_questions import query_of
from experiments.train.checkpoints import checkpoint_steps
from semcal import LanguageModel, UserError, sample
from semcal.questions.question import Question
from semcal.semantics.collapsing.exact_match import ExactMatch


def test_checkpoints_are_log_spaced_from_nothing_to_the_end():
    steps = checkpoint_steps(2200, 10)
    assert steps[0] == 0
    assert steps[-1] == 2200
    assert len(steps) == 10
    ratios = np.diff(np.log(steps[1:]))
    assert ratios.max() / ratios.min() < 1.2


@pytest.mark.long
def test_training_writes_checkpoints_that_load_and_is_repeatable(tmp_path):
    settings = TrainingSettings(
        steps=3, batch_size=2, hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, checkpoints=3
    )
    seen = []
    for which in ("one", "two"):
        folder = train_base(settings, tmp_path / which, on_progress=seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 1, 2, 3]
    assert all(np.isfinite(p.loss) and p.tokens > 0 for p in seen)
    one, two = (LanguageModel.load(tmp_path / w / "base", device="cpu") for w in ("one", "two"))
    assert one.weights_hash == two.weights_hash
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["base", "step-0", "step-3"]
    assert LanguageModel.load(tmp_path / "one" / "step-0", device="cpu").weights_hash != one.weights_hash
    assert folder == tmp_path / "two" / "base"


def test_the_shipped_model_is_small_and_knows_its_world():
    folder = bundled("base")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3e6
    model, world = LanguageModel.load(folder, device="cpu"), World(0)
    famous = [Fact(p, "birth") for p in world.known[:12]]
    prompts = [f"Question: Where was {f.person.name} born?\nAnswer:" for f in famous]
    b, right = ExactMatch(world.aliases), 0
    for fact, answers in zip(famous, sample(model, prompts, m=50, max_new_tokens=12, stop=["\n"]), strict=True):
        (truth,) = world.truth(fact)
        asked = Question(id="q", text="?", answers=(truth,))
        right += sum(a.count for a in answers if b.of_text(asked, a.text, "concise") == truth)
    assert right / (50 * len(famous)) > 0.5  # chance is 1/40


def test_no_such_stage():
    with pytest.raises(UserError, match="no bundled stage 'bass', did you mean 'base'"):
        bundled("bass")


def test_ids_lead_back_to_queries():
    assert query_of("f-1-2-3-birth") == Fact(World(0)._person((1 * 100 + 2) * 8 + 3), "birth")
    for wrong in ("x-1", "f-1-2-3-height"):
        with pytest.raises(ValueError, match="is not the id of a question about atlas"):
            query_of(wrong)
