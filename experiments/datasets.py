"""From a dataset's configuration to its questions."""

from __future__ import annotations

from pathlib import Path

from experiments.config import AtlasConfig, ContinuationConfig, DatasetConfig, JsonlConfig, TriviaqaConfig
from experiments.organisms.atlas.questions import atlas_questions
from experiments.organisms.atlas.world import World
from semcal.questions import Dataset, build, read_continuations, read_jsonl, read_simpleqa, read_triviaqa


def load_dataset(config: DatasetConfig, exemplars: int) -> Dataset:
    """The questions of a dataset, `exemplars` of them set aside for few-shot prompts.

    Raises:
        UserError: a file that is missing or not in its format, too few questions.
    """
    if isinstance(config, AtlasConfig):
        world, n = World(config.world_seed), config.n or 1000
        # An exemplar takes the other questions of its group with it, hence the surplus.
        questions = atlas_questions(world, config.family, n + 10 * exemplars, seed=config.seed)
        return build(config.name, questions, n=n, exemplars=exemplars, seed=config.seed, aliases=world.aliases)
    path = Path(config.path)
    if isinstance(config, ContinuationConfig):
        questions = read_continuations(
            path, split=config.split, prompt_words=config.prompt_words, answer_words=config.answer_words
        )
        return build(config.name, questions, n=config.n, exemplars=0, seed=config.seed, continuation=True)
    if isinstance(config, JsonlConfig):
        questions = read_jsonl(path)
    elif isinstance(config, TriviaqaConfig):
        questions = read_triviaqa(path)
    else:
        questions = read_simpleqa(path)
    return build(config.name, questions, n=config.n, exemplars=exemplars, seed=config.seed)
