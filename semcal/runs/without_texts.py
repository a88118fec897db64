"""What was measured in a run, kept without what may not be published: no text of a question, prompt, sample or gold
answer, no token ids, no activations.

The copy is a run folder of its own kind, with digests of its own. It holds what tables, reliability diagrams and
verdicts are computed from, so that they come out the same to the last digit:

- `config.yaml` and `calibration.json` as they are, and of `manifest.json` what says how the run was made; absolute
  paths are cut to their last part.
- `classes.parquet`. The label of a class, a normalised answer, becomes its place in the alphabetical order of all
  labels of the run (`c00417`), not a hash: an answer of one word is found by hashing a dictionary. The order must stay,
  since ties are broken by it. Counts and masses stay exact: rounded, they would change figures. `log_seen`, which
  `semcal probe` alone reads, is left out.
- `questions.parquet`: id and group as they are, since what is drawn for a question hangs on its id, and runs are paired
  by both; text and gold answers as `fingerprint`s, by which runs of other machines are seen to ask the same.
- `probes.parquet`, `probe_losses.parquet` (KL gaps at the last prompt token) and `interventions/rows.parquet` where the
  run has them.
- `looks/tilt/remedies.csv`, `looks/gates/gates.csv` and `looks/sweep/kinds.csv` as they are, where `semcal tilt`,
  `semcal gate` and `semcal score --semantics sweep` were called, and `training.json`, a few numbers on how the model
  was trained, where that is known.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.files import replacing, sweep
from semcal.runs.run import GATES, REMEDIES, SWEPT, WITHOUT_TEXTS, Run
from semcal.semantics.class_table import LOG_SEEN, UNEXPLORED, UNPARSED

_NAMED = (UNPARSED, UNEXPLORED, "(other)")  # labels that mean something, and are no answers
_OF_MANIFEST = (
    *(
        "started",
        "model",
        "revision",
        "weights_hash",
        "adapter",
        "base",
        "tokenizer_hash",
        "quantised",
        "dtype",
        "device",
    ),
    *("sampling", "sampling_work", "sampling_seconds", "questions", "python", "packages", "exact", "exemplars"),
    *("engine", "cot_without_steps", "checks"),
)
_OF_LOSSES = ["question_id", "position", "rung", "layer", "gap_nats"]
_FINGERPRINT = re.compile("sha256:[0-9a-f]{16}")


def fingerprint(texts: Sequence[str], question_id: str) -> str:
    """What stands for texts of a question; that of a fingerprint alone is itself."""
    if len(texts) == 1 and _FINGERPRINT.fullmatch(texts[0]):
        return texts[0]
    whole = "\0".join([question_id, *texts])
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def fingerprints(questions: pd.DataFrame) -> pd.DataFrame:
    """`Run.questions` with id, text, group and answers alone, texts and answers as fingerprints."""
    ids = [str(i) for i in questions["id"]]
    return pd.DataFrame(
        {
            "id": ids,
            "text": [fingerprint([text], i) for i, text in zip(ids, questions["text"], strict=True)],
            "group": questions["group"].to_numpy(),
            "answers": [[fingerprint(list(a), i)] for i, a in zip(ids, questions["answers"], strict=True)],
        }
    )


def keep_without_texts(run: Run, into: Path, training: Mapping[str, Any] | None = None) -> None:
    """Write a scored run to `into/NAME`, which is there whole or not at all; one that is there is replaced.

    Args:
        training: How its model was trained, in summary and without texts; None where that is not known.

    Raises:
        UserError: ids of its questions are themselves texts; the disk is full or cannot be written.
    """
    sweep(into)
    with replacing(into) as staged:
        _write(run, new := Run(staged / run.name))
        if training:
            new.write_training(without_folders(training))
        if (there := into / run.name).exists():
            os.rename(there, staged / ".old")
        os.rename(staged / run.name, there)
        shutil.rmtree(staged)


def _write(run: Run, new: Run) -> None:
    questions, losses = run.questions(), run.probe_losses()
    _refuse_texts(run, questions)
    groups = _groups(questions)
    questions["group"] = [groups[label] for label in questions["group"]]
    new.write_config(without_folders(run.config()))
    manifest = run.manifest()
    kept = {name: manifest[name] for name in _OF_MANIFEST if name in manifest}
    new.write_manifest(without_folders(kept) | {WITHOUT_TEXTS: True})
    new.write_compact("questions.parquet", fingerprints(questions))
    classes = run.classes()
    coded = {"class": _codes(classes["class"].tolist()), "group": [groups[label] for label in classes["group"]]}
    new.write_compact("classes.parquet", classes.assign(**coded).drop(columns=LOG_SEEN))
    tables = {"probes.parquet": run.probes(), "interventions/rows.parquet": run.interventions()}
    if "gap_nats" in losses:
        tables["probe_losses.parquet"] = losses.loc[losses["position"] == LAST_PROMPT_TOKEN, _OF_LOSSES]
    for name, table in tables.items():
        if not table.empty:
            new.write_compact(name, table)
    new.take(run.contents((REMEDIES, GATES, SWEPT)))
    new.write_calibration(run.calibration())


def _refuse_texts(run: Run, questions: pd.DataFrame) -> None:
    names = {_plain(name) for name in questions["id"]}
    if found := sorted(name for name in names & _texts(questions) if not name.isdecimal()):
        raise UserError(
            f"{run.folder}: {found[0]!r} is the id of a question, and a question or gold answer; ids are kept as they "
            "are, so give the dataset others that are no texts"
        )


def _groups(questions: pd.DataFrame) -> dict[str, str]:
    """Label of a group -> what is kept of it: itself or, where one is a question or gold answer, or the beginning of
    one, as of texts to continue, a number in the order of the labels, so that resamples stay the same."""
    labels = sorted(set(questions["group"]))
    named = tuple(name for label in labels if not (name := _plain(label)).isdecimal())
    if any(text.startswith(named) for text in _texts(questions)):
        return {label: f"group-{at:06d}" for at, label in enumerate(labels)}
    return {label: label for label in labels}


def _texts(questions: pd.DataFrame) -> set[str]:
    """Questions and gold answers, made `_plain`."""
    forms = (*questions["text"], *(form for forms in questions["answers"] for form in forms))
    return {_plain(text) for text in forms}


def _plain(text: object) -> str:
    """In lower case, with single spaces."""
    return " ".join(str(text).casefold().split())


def _codes(labels: Sequence[str]) -> list[str]:
    """Labels that sort as the given ones do, and say nothing."""
    distinct = sorted(set(labels) - set(_NAMED))
    width = len(str(len(distinct)))
    of = {label: f"{'!' if label < UNPARSED else 'c'}{i:0{width}d}" for i, label in enumerate(distinct)}
    return [label if label in _NAMED else of[label] for label in labels]


def without_folders(value: Any) -> Any:
    """A configuration or manifest whose absolute paths are cut to their last part."""
    if isinstance(value, dict):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
