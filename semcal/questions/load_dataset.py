"""One call for every source of questions: a named dataset, a table of one's own, the bundled atlas."""

from __future__ import annotations

from pathlib import Path

from semcal.errors import UserError, above, nearest
from semcal.questions.build import build
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.question import Dataset
from semcal.questions.rows import FORMATS
from semcal.questions.tables import read_table

ATLAS = ("atlas-facts", "atlas-routes", "atlas-myths")


def load_dataset(
    source: str | Path,
    *,
    n: int | None = None,
    exemplars: int = 0,
    seed: int = 0,
    path: str | Path | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Questions in an order that the seed determines, and exemplars for few-shot prompts, which are never evaluated.

    >>> dataset = semcal.load_dataset("atlas-facts", n=100, exemplars=2)
    >>> len(dataset.questions), len(dataset.exemplars)
    (100, 2)

    Args:
        source: A named dataset ("gsm8k", "triviaqa", …); your own file (.jsonl, .json, .csv, .tsv or .parquet) with
            columns id, question and answers (see `semcal.questions.tables.read_table`); or one of the bundled world,
            "atlas-facts", "atlas-routes" and "atlas-myths".
        n: Questions to evaluate; None keeps all (1,000 of the atlas).
        exemplars: Questions to set aside.
        seed: Determines order and choice.
        path: The original file of a named dataset; None reads it from the Hub.
        split, revision: Of a named dataset on the Hub; split as `datasets` reads it, e.g. "train[:1000]".

    Raises:
        UserError: an unknown name, a file that is missing or malformed, too few questions.
    """
    file, name = Path(source), str(source)
    if name in NAMED:
        questions = read_named(name, None if path is None else Path(path), split=split, revision=revision)
        return build(name, questions, n=n, exemplars=exemplars, seed=seed)
    if path is not None or split is not None or revision is not None:
        hint = nearest(name, NAMED)
        raise UserError(f"path, split and revision belong to a named dataset, and {name!r} is none{hint}")
    if name in ATLAS:
        datasets = above("experiments.config.datasets")
        config = datasets.AtlasConfig(kind="atlas", family=name.removeprefix("atlas-"), n=n, seed=seed)
        return datasets.load_dataset(config, exemplars)
    if file.suffix.lower() not in filter(None, FORMATS):
        known = (*NAMED, *ATLAS)
        raise UserError(
            f"no dataset {name!r}{nearest(name, known)}; expected a .jsonl, .csv or .parquet file, or one of "
            f"{', '.join(known)}"
        )
    return build(file.stem, read_table(file), n=n, exemplars=exemplars, seed=seed)
