"""The run folder: what a run wrote, shard by shard, and how to read it back as tables.

A run survives `kill -9` at any time: every file is written under a temporary name and renamed, a shard of questions is
there whole or not at all, and its name carries a content key, so that a resumed run neither loses nor repeats a
question and never mixes with another configuration. Until a shard is complete, each finished portion of it is a line of
a file beside it (`partial_shard.py`). Results that belong together replace the old ones together (`Run.replacing`).
Digests of the files are written down with them, and a file that was changed since is refused (`digests.py`). No pickle
is written or read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow
import yaml

from semcal.errors import UserError
from semcal.questions.question import Question
from semcal.runs.claims import writing
from semcal.runs.digests import DIGESTS, Unchanged, changed, compare, digest, read_digests, write_recorded
from semcal.runs.files import content_key, finish, is_whole, link_or_copy, newest, plain, replacing, write_atomically
from semcal.runs.made_by import again
from semcal.runs.partial_shard import SAMPLE_COLUMNS, PartialShard, Portion, read_partial
from semcal.runs.stored_activations import Activations, StoredActivations, load, save
from semcal.runs.stored_samples import check_samples
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.alias_table import Aliases
from semcal.well_formed import well_formed

if TYPE_CHECKING:
    from semcal.runs.run_plots import RunPlots

_T = TypeVar("_T")
_KEPT = ("*.yaml", "*.json", "*.parquet", "samples/*.parquet", "activations/*.safetensors", "interventions/*.parquet")
REMEDIES, GATES = "looks/tilt/remedies.csv", "looks/gates/gates.csv"  # of `semcal tilt` and `semcal gate`
SWEPT = "looks/sweep/kinds.csv"  # of `semcal score --semantics sweep`
TRAINING = "training.json"  # how the model was trained, in a run that was kept
WITHOUT_TEXTS = "without_texts"  # key of the manifest of a run that `semcal.runs.without_texts` kept
# Those of libyaml, where it is there, are ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_ATTEMPTS = 3  # a set of results may be replaced while one of them is read


@dataclass(frozen=True)
class Shard:
    """Consecutive questions of a run that are written together.

    Attributes:
        key: file name without suffix: index and content key.
        question_ids: its questions, in order.
    """

    key: str
    question_ids: tuple[str, ...]


def shards(samples_key: str, question_ids: Sequence[str], size: int) -> list[Shard]:
    """Cut the questions of a run into shards of `size`; the key of each covers what it holds and how it was made."""
    parts = [tuple(question_ids[i : i + size]) for i in range(0, len(question_ids), size)]
    return [Shard(f"{i:05d}-{content_key(samples_key, part)}", part) for i, part in enumerate(parts)]


@dataclass(frozen=True, init=False)
class Run:
    """One run folder. `Run.open` reads an existing one:

    >>> run = semcal.Run.open(folder)
    >>> run.table().sort_values("confidence")["question_id"].tolist()
    ['b', 'a']
    """

    folder: Path
    _staged: Path | None = field(default=None, repr=False, compare=False)  # where results wait to replace old ones

    def __init__(self, folder: str | Path) -> None:
        object.__setattr__(self, "folder", Path(folder))
        object.__setattr__(self, "_staged", None)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run.

        Raises:
            UserError: the folder does not hold a run.
        """
        run = cls(folder)
        if not run._path("config.yaml").is_file():
            problem = "it has no config.yaml" if run.folder.is_dir() else "there is no such folder"
            raise UserError(f"{folder} is not a run folder: {problem}; `semcal ls` lists the runs")
        return run

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def plot(self) -> RunPlots:
        """The figures of its calibration, with defaults: `run.plot.reliability()`; those of probes are in
        `probes.plot(run)`."""
        from semcal.runs.run_plots import RunPlots  # Matplotlib, which few readers of a run need

        return RunPlots(self)

    def _path(self, *parts: str) -> Path:
        """Where a file is read."""
        if self._staged is not None and (staged := self._staged.joinpath(*parts)).exists():
            return staged
        return newest(self.folder, *parts)

    def place(self, *parts: str) -> Path:
        """Where a file is to be written, so that it takes part in `replacing`."""
        if self._staged is not None:
            return self._staged.joinpath(*parts)
        finish(self.folder)
        return self.folder.joinpath(*parts)

    @contextmanager
    def replacing(self) -> Iterator[Run]:
        """The same run, to write new results to: they replace the old ones together, at the end of the block.

        Until then, and if the block fails or is killed, the old ones stay as they are. Within the block, the new ones
        are read.
        """
        with replacing(self.folder) as staged:
            new = Run(self.folder)
            object.__setattr__(new, "_staged", staged)
            yield new

    # ---- files -----------------------------------------------------------------------------------------------

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file and its digest."""
        write_recorded(name, self.place(*name.split("/")), write, lambda: self._path(DIGESTS))

    def _read(self, name: str, read: Callable[[Path], _T]) -> _T:
        """What `read` makes of a file, which must be as it was written.

        Raises:
            UserError: it was changed since.
        """
        for _ in range(_ATTEMPTS):
            known, path = read_digests(self._path(DIGESTS)).get(name), self._path(*name.split("/"))
            try:
                if known is None or digest(path) in known:
                    return read(path)
            except FileNotFoundError:
                continue  # another process moves it to its place
        if not path.is_file():
            raise UserError(f"{path} is missing; {again(self.folder)} makes it again")
        raise changed(path, name, self.folder)

    def unchanged(self) -> Unchanged:
        """All files of the run that are kept for results, compared with their digests; each is read."""
        kept = [p for pattern in _KEPT for p in sorted(self.folder.glob(pattern))]
        names = [p.relative_to(self.folder).as_posix() for p in kept if ".partial" not in p.name]
        known = read_digests(self._path(DIGESTS))
        names += [name for name in (REMEDIES, GATES, SWEPT) if name in known]
        return compare({name: self._path(*name.split("/")) for name in names if name != DIGESTS}, known)

    # ---- configuration ---------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The resolved configuration, exactly as run.

        Raises:
            UserError: config.yaml is no mapping.
        """
        path = self._path("config.yaml")
        try:
            found = self._read("config.yaml", lambda p: yaml.load(p.read_text(encoding="utf-8"), _LOADER))
        except (yaml.YAMLError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no configuration; delete it, and {again(self.folder)} writes it again")
        return found

    def write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        self._write("config.yaml", lambda p: p.write_text(text, encoding="utf-8"))

    def manifest(self) -> dict[str, Any]:
        """Versions, hashes, timings and the names of the shards; empty before sampling started."""
        return self._json_if_any("manifest.json")

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self._write_json("manifest.json", manifest)

    def change_manifest(self, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Write what `change` makes of the manifest as it is now; other processes may change it, too."""
        with writing(self.folder):
            self.write_manifest(change(self.manifest()))

    # ---- questions ------------------------------------------------------------------------------------------

    def write_questions(self, table: pd.DataFrame, aliases: Aliases) -> None:
        """`table`: as `questions` returns it; `aliases`: what B knows of the forms of answers."""
        self._write_parquet("questions.parquet", table)
        self._write_json("aliases.json", asdict(aliases))

    def questions(self) -> pd.DataFrame:
        """One row per question: id, text, group, answers, others, incorrect, choices, prompt and its tokens and hash.

        `written` is the gold answer as the run's style writes it, `written_ids` its token ids after the prompt, empty
        where they are not known.
        """
        return self._parquet("questions.parquet")

    def write_prompt_ids(self, ids: Sequence[Sequence[int]]) -> None:
        """The token ids that the model reads for each question; activations are checked against them when read."""
        table = pd.DataFrame({"token_ids": [np.array(i, dtype=np.int32) for i in ids]})
        self._write_parquet("prompts.parquet", table)

    def prompt_ids(self) -> list[tuple[int, ...]]:
        """The token ids that the model read for each question, where activations were captured."""
        return [tuple(map(int, ids)) for ids in self._parquet("prompts.parquet")["token_ids"]]

    def question_records(self) -> list[Question]:
        """The questions as records.

        Raises:
            UserError: their texts were not kept.
        """
        table = self.questions()
        if self.manifest().get(WITHOUT_TEXTS):
            raise UserError(f"{self.folder} holds what was measured without texts; this needs the run that it is of")
        return [
            Question(
                id=row["id"],
                text=row["text"],
                answers=tuple(row["answers"]),
                group=row["group"],
                others=tuple(map(tuple, row["others"])),
                incorrect=tuple(row["incorrect"]),
                choices=tuple(row["choices"]),
            )
            for row in table.to_dict("records")
        ]

    def aliases(self) -> Aliases:
        """The forms of answers that B knows, as when the run was sampled: no file of the dataset is read again.

        Raises:
            UserError: a run of an earlier version, whose B knew the aliases of each question's own gold answer.
        """
        stored = self._json_if_any("aliases.json")
        if stored.keys() != {f.name for f in fields(Aliases)}:
            raise UserError(
                f"{self.folder} was sampled by an earlier version of semcal, which kept no aliases of all questions; "
                f"{again(self.folder)} again, which takes them over and keeps the samples"
            )
        return Aliases(**stored)

    def has_aliases(self, aliases: Aliases) -> bool:
        """Whether these are the stored ones, in this version's form."""
        return self._json_if_any("aliases.json") == asdict(aliases)

    # ---- shards ---------------------------------------------------------------------------------------------

    def has_shard(self, key: str, *, with_activations: bool) -> bool:
        """Whether a shard is finished: its files are there, and none is cut short."""
        return all(is_whole(path) for path in self._shard_files(key, with_activations=with_activations))

    def _shard_files(self, key: str, *, with_activations: bool) -> list[Path]:
        activations = [self._path("activations", f"{key}.safetensors")] if with_activations else []
        return [self._path("samples", f"{key}.parquet"), *activations]

    def damaged(self) -> list[Path]:
        """Files of finished shards that are cut short, as a power cut or a full disk may leave them."""
        files = (f for key in self.shard_keys() for f in self._shard_files(key, with_activations=True))
        return [path for path in files if path.is_file() and not is_whole(path)]

    def write_samples(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with SAMPLE_COLUMNS. Halves of surrogate pairs in their texts become U+FFFD."""
        rows = [{**row, "text": well_formed(row["text"])} for row in rows]
        table = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype({"count": "Int64", "logprob": float})
        self._write(f"samples/{key}.parquet", lambda p: table.to_parquet(p, index=False))
        self.discard_partial(key)

    def partial(self, key: str) -> list[Portion]:
        """The finished portions of an unfinished shard."""
        return read_partial(self._path("samples", f"{key}.partial.jsonl"))

    def open_partial(self, key: str, kept: Sequence[Portion] = ()) -> PartialShard:
        """To keep further portions of a shard after these, until `write_samples` writes all of it."""
        return PartialShard(self.place("samples", f"{key}.partial.jsonl"), kept)

    def discard_partial(self, key: str) -> None:
        """Forget the finished portions of a shard."""
        self._path("samples", f"{key}.partial.jsonl").unlink(missing_ok=True)
        for path in self._path("activations").glob(f"{key}.partial-*.safetensors"):
            path.unlink()

    def tidy(self) -> None:
        """Remove the portions of finished shards, which a process that was killed just then did not live to remove."""
        left = [*self._path("samples").glob("*.partial.jsonl"), *self._path("activations").glob("*.partial-*")]
        missing = set(self.missing_shards()) if left else set()
        for path in left:
            if path.name.partition(".")[0] not in missing:
                path.unlink()

    def write_partial_activations(
        self, key: str, number: int, questions: Sequence[str], found: Mapping[str, Activations]
    ) -> None:
        """What was captured in a portion, to be written before its samples are kept."""
        path = self.place("activations", f"{key}.partial-{number:04d}.safetensors")
        write_atomically(path, lambda p: save(p, found, shard=content_key(key, questions)))

    def partial_activations(self, key: str, number: int, questions: Sequence[str]) -> dict[str, Activations]:
        """What `write_partial_activations` wrote for these questions, by position; empty if it is gone or damaged."""
        path = self._path("activations", f"{key}.partial-{number:04d}.safetensors")
        return load(path, questions, content_key(key, questions)) if is_whole(path) else {}

    def questions_saved(self) -> int:
        """Number of questions whose samples are on disk, in finished shards or on the way to one."""
        keys, manifest = self.shard_keys(), self.manifest()
        if not keys:
            return 0
        captured = bool(manifest.get("positions"))
        last, size = len(keys) - 1, manifest.get("shard_size", 0)
        sizes = [size] * last + [manifest.get("questions", 0) - last * size]
        return sum(
            n if self.has_shard(key, with_activations=captured) else sum(map(len, self.partial(key)))
            for key, n in zip(keys, sizes, strict=True)
        )

    def write_activations(
        self,
        key: str,
        found: Mapping[str, Activations],
        *,
        dtype: str = "float32",
        answer_rows: np.ndarray | None = None,
    ) -> None:
        """What was found at each position of a shard; `answer_rows` as `semcal.runs.stored_activations.save` takes it.

        Raises:
            UserError: a value beyond the range of the dtype.
        """
        tokenizer = str(self.manifest().get("tokenizer_hash", ""))
        self._write(
            f"activations/{key}.safetensors",
            lambda p: save(p, found, dtype=dtype, answer_rows=answer_rows, tokenizer_hash=tokenizer, shard=key),
        )

    def adopt_shard(self, other: Run, key: str, *, with_activations: bool) -> bool:
        """Take over a finished shard with the same content key from another run (the same samples, another B)."""
        if other.folder == self.folder or not other.has_shard(key, with_activations=with_activations):
            return False
        for name in [f"samples/{key}.parquet", *([f"activations/{key}.safetensors"] if with_activations else [])]:
            other._read(name, lambda source, name=name: self._write(name, lambda p: link_or_copy(source, p)))
        return True

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Those of these files that are there, to be carried to another machine; `take` writes them there."""
        there = [name for name in names if self._path(*name.split("/")).is_file()]
        return {name: self._read(name, lambda p: p.read_bytes()) for name in there}

    def take(self, contents: Mapping[str, bytes]) -> None:
        """Write files that `contents` returned on another machine, in their order."""
        for name, content in contents.items():
            self._write(name, lambda p, content=content: p.write_bytes(content))

    def shard_keys(self) -> list[str]:
        """The shards this run consists of, in order, written or not."""
        return list(self.manifest().get("shards", []))

    def missing_shards(self) -> list[str]:
        captured = bool(self.manifest().get("positions"))
        return [k for k in self.shard_keys() if not self.has_shard(k, with_activations=captured)]

    @property
    def sampled(self) -> bool:
        """Whether every question has its samples (and activations, where they are captured)."""
        return bool(self.shard_keys()) and not self.missing_shards()

    def samples(self) -> pd.DataFrame:
        """One row per distinct answer: question_id, text, token_ids, count, logprob (nats), finish.

        `count` is missing after exact enumeration, `token_ids` is empty and `logprob` may be NaN for served models.

        Raises:
            UserError: a shard is missing or cannot be read; as `check_samples`.
        """
        tables = [self._parquet(f"samples/{key}.parquet") for key in self.shard_keys()]
        found = pd.concat(tables, ignore_index=True)
        try:
            check_samples(found, list(self.questions()["id"]))
        except UserError as error:
            raise UserError(f"{self.folder}: {error}; files were changed or lost: restore them, or run again") from None
        return found

    def samples_so_far(self) -> pd.DataFrame:
        """As `samples`, of the questions that are answered by now: in finished shards, or on the way to one."""
        tables = [pd.DataFrame(columns=list(SAMPLE_COLUMNS))]
        for key in self.shard_keys():
            if is_whole(self._path("samples", f"{key}.parquet")):
                tables.append(self._parquet(f"samples/{key}.parquet"))
            else:
                tables += [pd.DataFrame(rows) for portion in self.partial(key) for rows in portion.values()]
        return pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)

    def activations(self, position: str, layers: Sequence[str] | None = None) -> StoredActivations:
        """Activations at a position, or those of its heads at `POSITION/attn_z`; questions in the order of
        `questions()`. Values are read from disk when asked for: all of `layers`, or one at a time by `.layer(name)`.

        Args:
            layers: hook names; None: all that were captured.

        Raises:
            UserError: nothing was captured there, or activations that belong to another run.
        """
        try:
            prompts = self._path("prompts.parquet")
            found = StoredActivations.open(
                self._activation_files(),
                position,
                questions=tuple(self.questions()["id"]),
                tokenizer_hash=str(self.manifest().get("tokenizer_hash", "")),
                prompts=self._read("prompts.parquet", lambda p: p) if prompts.is_file() else prompts,
                samples=[self._read(f"samples/{key}.parquet", lambda p: p) for key in self.shard_keys()],
            )
            return found if layers is None else found.only(layers)
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from error

    def _activation_files(self) -> list[Path]:
        files = [self._path("activations", f"{key}.safetensors") for key in self.shard_keys()]
        missing = next((f for f in files if not f.is_file()), None)
        if missing is not None or not files:
            shard = missing.stem if missing else "any"
            raise UserError(f"no activations in shard {shard}; run its study again with capture.positions set")
        return [self._read(f"activations/{file.name}", lambda p: p) for file in files]

    # ---- results --------------------------------------------------------------------------------------------

    def write_classes(self, table: ClassTable) -> None:
        self._write_parquet("classes.parquet", table.to_frame())

    def class_table(self) -> ClassTable:
        """The class table of a scored run.

        Raises:
            UserError: the run was scored by an earlier version of semcal.
        """
        try:
            return ClassTable.from_frame(self.classes())
        except UserError as error:
            raise UserError(f"{error}; run its study again with `semcal run`, which keeps the samples") from None

    def classes(self) -> pd.DataFrame:
        """One row per question and class, unsampled gold classes included: see `ClassTable.to_frame`."""
        return self._parquet("classes.parquet")

    def table(self) -> pd.DataFrame:
        """One row per question of a scored run, in the order of `questions()`.

        Columns: question_id, group, text, gold (its gold answers), top_class (the most frequent class, the semantic
        answer), confidence (plug-in share of that class), confidence_by_mass (by the log-probabilities of the samples;
        NaN where unknown), correct (a share where classes are tied), tied, seen_mass (probability of the distinct
        answers seen; NaN where unknown), and probe_class, probe_confidence and probe_entropy (nats), the held-out
        prediction of the class probe (None and NaN where the run was not probed).

        Raises:
            UserError: the run was not scored yet.
        """
        questions, classes, predicted = self.question_records(), self.class_table(), self.probe_predictions()
        counted, by_mass = classes.by_count, classes.by_mass
        if predicted.empty:
            predicted = pd.DataFrame({"question_id": []})
        columns = ["class", "confidence", "entropy"]  # earlier versions of semcal wrote no entropy
        predicted = predicted.set_index("question_id").reindex(index=classes.questions, columns=columns)
        return pd.DataFrame(
            {
                "question_id": classes.questions,
                "group": classes.groups,
                "text": [q.text for q in questions],
                "gold": ["; ".join(forms[0] for forms in (q.answers, *q.others) if forms) for q in questions],
                "top_class": classes.top,
                "confidence": counted.plug_in,
                "confidence_by_mass": np.nan if by_mass is None else by_mass.plug_in,
                "correct": counted.correct,
                "tied": counted.tied,
                "seen_mass": classes.seen_mass,
                "probe_class": predicted["class"].astype(object).where(predicted["class"].notna(), None).to_numpy(),
                "probe_confidence": predicted["confidence"].to_numpy(dtype=float),
                "probe_entropy": predicted["entropy"].to_numpy(dtype=float),
            }
        )

    def write_intermediate(self, table: pd.DataFrame) -> None:
        """question_id, token, expected_confidence."""
        self._write_parquet("intermediate.parquet", table)

    def intermediate(self) -> pd.DataFrame:
        """One row per question and token index: see `semcal.semantics.answer_tree`."""
        return self._parquet("intermediate.parquet")

    def write_calibration(self, result: Mapping[str, Any]) -> None:
        self._write_json("calibration.json", result)

    def calibration(self) -> dict[str, Any]:
        """The figures of `semcal.calibration.calibrate` and the name of B; empty before `semcal score`."""
        return self._json_if_any("calibration.json")

    def write_probes(self, table: pd.DataFrame) -> None:
        self._write_parquet("probes.parquet", table)

    @property
    def holds_probes(self) -> bool:
        """Whether results of probes are kept here, shown or not."""
        return self._path("probes.parquet").is_file()

    def probes(self) -> pd.DataFrame:
        """One row per target and layer (see `probes.evaluation.layerwise`); empty before `semcal probe`, and where the
        run's configuration asks for no probes: what an earlier one asked for is kept, and not shown."""
        return self._of_probes("probes.parquet")

    def _of_probes(self, name: str) -> pd.DataFrame:
        found = self._parquet_if_any(name)
        asked_for = found.empty or self.config().get("probes", {}).get("enabled", True)
        return found if asked_for else pd.DataFrame()

    def write_interventions(self, table: pd.DataFrame) -> None:
        self._write_parquet("interventions/rows.parquet", table)

    def interventions(self) -> pd.DataFrame:
        """One row per intervention, random controls included (see `probes.interventions.effects`); empty before
        `semcal intervene`.

        Raises:
            UserError: interventions of an earlier version, which kept no answers to measure again.
        """
        if self._path("interventions.parquet").is_file():
            raise UserError(
                f"{self.folder}/interventions.parquet was written by an earlier version of semcal, which kept no "
                f"answers; delete this file and run `semcal intervene {self.folder}`"
            )
        return self._parquet_if_any("interventions/rows.parquet")

    def write_intervened(self, key: str, answers: pd.DataFrame) -> None:
        """The answers sampled under one intervention: question_id, text, count, logprob, finish."""
        self._write_parquet(f"interventions/{key}.parquet", answers)

    def intervened(self, key: str) -> pd.DataFrame:
        """What `write_intervened` wrote; empty before that."""
        return self._parquet_if_any(f"interventions/{key}.parquet")

    def write_probe_confidence(self, table: pd.DataFrame) -> None:
        self._write_parquet("probe_confidence.parquet", table)

    def probe_confidence(self) -> pd.DataFrame:
        """One row per source of confidence (see `probes.probe_confidence.confidence_row`); empty before it was
        measured."""
        return self._of_probes("probe_confidence.parquet")

    def write_probe_predictions(self, table: pd.DataFrame) -> None:
        self._write_parquet("probe_predictions.parquet", table)

    def probe_predictions(self) -> pd.DataFrame:
        """What the class probe answers, one row per question: question_id, class, confidence, entropy (of all that it
        predicts, nats) and correct; and confidence_in_mode, what the probe of B-confidence predicts. Every question is
        predicted by probes that saw none of its group; empty before `semcal probe`."""
        return self._of_probes("probe_predictions.parquet")

    def write_probe_losses(self, table: pd.DataFrame) -> None:
        self._write_parquet("probe_losses.parquet", table)

    def probe_losses(self) -> pd.DataFrame:
        """Held-out nats of every question, one row per question, position, rung and layer, for the target "classes": KL
        of the shares from marginal and probe (baseline_nats, probe_nats), the probe's KL gap and its part on the top
        class (gap_nats, gap_top_nats). Empty before `semcal probe`."""
        return self._of_probes("probe_losses.parquet")

    def write_learning_curve(self, table: pd.DataFrame) -> None:
        self._write_parquet("learning_curve.parquet", table)

    def learning_curve(self) -> pd.DataFrame:
        """KL gap of the generative rung by the number of questions it learnt from, on the held-out questions of one
        fold; empty where it was not fitted."""
        return self._of_probes("learning_curve.parquet")

    def remedies(self) -> pd.DataFrame:
        """One row per remedy: calibration error, accuracy and cost; empty before `semcal tilt`."""
        return self._csv_if_any(REMEDIES, "remedy", "tilt")

    def gates(self) -> pd.DataFrame:
        """One row per confidence and risk: the threshold that keeps it; empty before `semcal gate`."""
        return self._csv_if_any(GATES, "source", "gate")

    def swept(self) -> pd.DataFrame:
        """One row per kind of B: the ranges of excess and KL gap, and how they go together; empty before
        `semcal score --semantics sweep`."""
        return self._csv_if_any(SWEPT, "kind", "score --semantics sweep")

    def write_training(self, summary: Mapping[str, Any]) -> None:
        self._write_json(TRAINING, summary)

    def training(self) -> dict[str, Any]:
        """How the model was trained, in summary, of a run kept without its texts; empty where that is not known."""
        return self._json_if_any(TRAINING)

    def write_compact(self, name: str, table: pd.DataFrame) -> None:
        """Write a table in as few bytes as parquet can."""
        floats, half = table.select_dtypes("float64"), len(table) / 2
        many = [name for name, distinct in floats.nunique().items() if distinct > half]
        few = [name for name in table.columns if name not in many]
        how = {"compression": "zstd", "compression_level": 19, "use_dictionary": few, "use_byte_stream_split": many}
        self._write(name, lambda p: table.to_parquet(p, index=False, **how))

    def _write_parquet(self, name: str, table: pd.DataFrame) -> None:
        self._write(name, lambda p: table.to_parquet(p, index=False))

    def _parquet_if_any(self, name: str) -> pd.DataFrame:
        return self._parquet(name) if self._path(name).is_file() else pd.DataFrame()

    def _parquet(self, name: str) -> pd.DataFrame:
        path = self._path(name)
        if not path.is_file():
            raise UserError(f"{self.folder} has no {name} yet; {again(self.folder)} first")
        try:
            return self._read(name, pd.read_parquet)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise self._unreadable(path, error) from error

    def _csv_if_any(self, name: str, first: str, command: str) -> pd.DataFrame:
        """A table with a column `first`, which a command writes."""
        path = self._path(*name.split("/"))
        if not path.is_file():
            return pd.DataFrame()
        try:
            found = self._read(name, pd.read_csv)
        except (ValueError, OSError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); `semcal {command} {self.folder}` makes it again"
            ) from error
        if first not in found:
            raise UserError(f"{path} has no column {first}; `semcal {command} {self.folder}` makes it again")
        return found

    def _json_if_any(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            if not path.is_file():
                return {}
            return self._read(name, lambda p: json.loads(p.read_text(encoding="utf-8")))
        except ValueError as error:
            raise self._unreadable(path, error) from error

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
        self._write(name, lambda p: p.write_text(text, encoding="utf-8"))

    def _unreadable(self, path: Path, error: Exception) -> UserError:
        # Written once, with the manifest; whole shards are found again by their names.
        asked = path.name in ("questions.parquet", "prompts.parquet", "aliases.json")
        what = f"it and {path.parent / 'manifest.json'}" if asked else "it"
        return UserError(f"{path} cannot be read ({error}); delete {what}, and {again(self.folder)} makes it again")
