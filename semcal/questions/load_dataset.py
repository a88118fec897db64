"""One call for every source of questions: a named dataset, your own table, the bundled atlas.

`build` makes a Dataset of any list of questions: duplicates, groups, exemplars, the order of options, the choice of n.
"""

import gc
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from numbers import Number
from pathlib import Path
from typing import Any

from semcal.errors import UserError, above, nearest
from semcal.questions.alias_lists import gold_lists
from semcal.questions.cells import as_text, look, missing
from semcal.questions.held_out import held_out, touched
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.pool import unasked
from semcal.questions.question import STYLES, Dataset, Question
from semcal.questions.rows import FORMATS, Row, decoded, read_rows, repeated
from semcal.questions.wording import bare_text, normalise
from semcal.seeds import keyed_generator

logger = logging.getLogger(__name__)

ATLAS = ("atlas-facts", "atlas-routes", "atlas-myths")
# The columns of a table of your own.
NEEDED = ("question", "answers")
FIELDS = ("id", *NEEDED, "choices", "group", "incorrect", "others", "worked")
_HTML = re.compile(r"&(amp|lt|gt|quot|nbsp|apos|#\d+|#x[0-9a-fA-F]+);")
_ROUNDED = re.compile(r"-?\d([.,]\d+)?E\+\d\d+")
_MISSPELT = 0.75  # likeness of a column's title to one of FIELDS from which it is no column of the user's own
LISTS = ("answers", "choices", "incorrect", "others")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Millions of records without a cycle among them, which Python would look through again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def load_dataset(
    source: str | Path,
    *,
    n: int | None = None,
    exemplars: int = 0,
    seed: int = 0,
    path: str | Path | None = None,
    split: str | None = None,
    revision: str | None = None,
    exclude: str | Path | None = None,
) -> Dataset:
    """Questions in an order that the seed determines, and exemplars for few-shot prompts, which are never evaluated.

    >>> dataset = semcal.load_dataset("atlas-facts", n=100, exemplars=2)
    >>> len(dataset.questions), len(dataset.exemplars)
    (100, 2)

    Args:
        source: A named dataset ("gsm8k", "triviaqa", …); your own file (.jsonl, .json, .csv, .tsv or .parquet) with
            columns id, question and answers (see `read_table`); or one of the bundled world,
            "atlas-facts", "atlas-routes" and "atlas-myths".
        n: Questions to evaluate; None keeps all (1,000 of the atlas).
        exemplars: Questions to set aside, where they have worked solutions or options. Other datasets evaluate all of
            their questions, and their exemplars are the project's own pool (`semcal.questions.pool`).
        seed: Determines order and choice.
        path: The original file of a named dataset; None reads it from the Hub.
        split, revision: Of a named dataset on the Hub; split as `datasets` reads it, e.g. "train[:1000]".
        exclude: A table of questions that a model was trained on (`trained.jsonl` next to its weights); none is
            evaluated, nor any that shares a text or a group with one.

    Raises:
        UserError: an unknown name, a file that is missing or malformed, too few questions.
    """
    file, name = Path(source), str(source)
    trained = () if exclude is None else read_table(Path(exclude))
    if name in NAMED:
        questions = read_named(name, None if path is None else Path(path), split=split, revision=revision)
        return build(name, questions, n=n, exemplars=exemplars, seed=seed, trained=trained)
    if path is not None or split is not None or revision is not None:
        hint = nearest(name, NAMED)
        raise UserError(f"path, split and revision belong to a named dataset, and {name!r} is none{hint}")
    if name in ATLAS:
        if exclude is not None:
            raise UserError(f"exclude belongs to a named dataset or your own table, and {name} is neither")
        study = above("experiments.config.study")
        config = study.AtlasConfig(kind="atlas", family=name.removeprefix("atlas-"), n=n, seed=seed)
        return study.load_dataset(config, study.PromptingConfig(shots=0, exemplars=exemplars))
    if file.suffix.lower() not in filter(None, FORMATS):
        known = (*NAMED, *ATLAS)
        raise UserError(
            f"no dataset {name!r}{nearest(name, known)}; expected a .jsonl, .csv or .parquet file, or one of "
            f"{', '.join(known)}"
        )
    return build(file.stem, read_table(file), n=n, exemplars=exemplars, seed=seed, trained=trained)


@_uncollected()
def build(
    name: str,
    questions: Sequence[Question],
    *,
    n: int | None,
    exemplars: int,
    seed: int,
    aliases: Mapping[str, str] | None = None,
    trained: Sequence[Question] = (),
) -> Dataset:
    """Shuffle by seed, set `exemplars` questions with a worked solution or options aside, keep n of the others.

    If no question has either, none is set aside: the exemplars are those of `semcal.questions.pool`, without any whose
    text is evaluated here.

    Questions that share a normalised text or a group label, directly or through others, form one group. An exemplar
    never shares a group, and so never a text, with an evaluated question. Identical records are kept once. The options
    of a question are shuffled by seed and id. Groups that hold a question of `trained`, or share its text or label,
    are left out, of the exemplars too.

    Raises:
        UserError: two questions with one id, or fewer questions than n and the exemplars need.
    """
    by_id: dict[str, Question] = {}
    for question in questions:
        known = by_id.setdefault(question.id, question)
        if known is not question and known != question:
            raise UserError(
                f"{name}: two questions have the id {question.id!r} ({known.text[:40]!r} and {question.text[:40]!r}); "
                "give each an id of its own"
            )
    distinct = list(by_id.values())
    texts = {q.id: bare_text(q.text) for q in distinct}
    pool = held_out(_grouped(name, distinct, texts), touched(distinct, trained))
    if not pool:
        raise UserError(f"{name}: a model was trained on all of its questions; exclude fewer, or ask others")
    shown = [q for q in pool if q.worked or q.choices]  # what an exemplar can be made of
    if 0 < len(shown) < exemplars:
        kind = "questions" if len(shown) == len(pool) else "questions with a worked solution or options"
        raise UserError(f"{name}: exemplars is {exemplars}, but there are only {len(shown)} {kind}; lower exemplars")
    order = keyed_generator(seed, name, "order").permutation(len(pool))
    shuffled = [_options_shuffled(name, pool[i], seed) for i in order]
    aside = [q for q in shuffled if q.worked or q.choices][:exemplars]
    groups = {q.group for q in aside}
    rest = [q for q in shuffled if q.group not in groups]
    if n is not None and len(rest) < n:
        left_out = f" and {len(distinct) - len(pool)} that are excluded" if trained else ""
        raise UserError(
            f"{name}: n is {n}, but only {len(rest)} questions are left after {len(aside)} exemplars{left_out}; lower n"
        )
    if not rest:
        raise UserError(f"{name}: no question is left to evaluate after {len(aside)} exemplars; lower exemplars")
    lists = () if aliases else gold_lists(questions)
    evaluated = tuple(rest[:n])
    return Dataset(
        name,
        evaluated,
        tuple(aside) if shown else unasked(texts[q.id] for q in evaluated),
        aliases or {},
        lists,
        len(questions),
    )


def _grouped(name: str, questions: list[Question], texts: Mapping[str, str]) -> list[Question]:
    """The questions, with one group label for all that share a text or a label, directly or through others.

    The first label of a group is kept (union-find).
    """
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        while parent.setdefault(label, label) != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    label_of_text: dict[str, str] = {}
    label_of_look: dict[str, str] = {}
    repeats = []
    for question in questions:
        text = texts[question.id]
        if text in label_of_text:
            repeats.append(question.id)
        own = root(question.group)
        for twin in (label_of_text.setdefault(text, own), label_of_look.setdefault(look(question.group), own)):
            if root(twin) != own:
                parent[own] = root(twin)
                own = root(twin)
    if repeats:
        some = ", ".join(repeats[:3]) + (", …" if len(repeats) > 3 else "")
        logger.warning("%s: %d questions repeat another's text and join its group (%s)", name, len(repeats), some)
    roots = [root(question.group) for question in questions]
    return [q if q.group == label else replace(q, group=label) for q, label in zip(questions, roots, strict=True)]


def _options_shuffled(name: str, question: Question, seed: int) -> Question:
    """Files list the right option first; its letter must not give it away."""
    if not question.choices:
        return question
    order = keyed_generator(seed, name, question.id, "choices").permutation(len(question.choices))
    return replace(question, choices=tuple(question.choices[i] for i in order))


# ---- a table of your own -------------------------------------------------------------------------------------------


@_uncollected()
def read_table(path: Path) -> list[Question]:
    """The questions of a file with columns question, answers[, id, group, choices, others, incorrect, worked].

    `answers`, or `answer`, are surface forms of one gold answer, the preferred one first; a single text is one.
    Without a column of ids, a question's id is the number of its row. `others` are further correct answers, each
    a text or a list of its forms. `worked` maps a style to the answer written out in that style, for exemplars. A cell
    of a CSV holds a list as JSON, or a single text for a list of one. Numbers are read as their shortest decimal form,
    and a CSV's column of answers as numbers if all of it is written as pandas writes floats (1931.0). None, NaN, NaT
    and empty texts are missing, in a cell and in a list. Titles of columns may be in capitals; empty columns without a
    title and empty rows, as spreadsheets leave them, are skipped.

    Raises:
        UserError: a missing or unknown field or one of the wrong type, an id that is empty or that another question
            has (naming file and row), a number that a spreadsheet has rounded, or an unreadable file.
    """
    rows = _titled([row for row in read_rows(path) if not all(map(missing, row.values.values()))])
    if not rows:
        raise UserError(f"{path} has no rows with anything in them; check the dataset's path")
    if path.suffix.lower() in (".csv", ".tsv"):
        for row in rows:
            if _ROUNDED.fullmatch(str(row.values.get("answers", "")).strip()):
                raise row.error(
                    f"column 'answers' holds {row.values['answers'].strip()}, as spreadsheets write long numbers; its "
                    "last digits are lost: write all of them, as text"
                )
        rows = [_parsed(row) for row in _unfloated(path, rows)]
    questions = [_question(row) for row in rows]
    _apart(questions, rows)
    if unread := dict.fromkeys(name for row in rows for name in row.values if name not in FIELDS):
        logger.warning("%s: columns that are not read: %s", path, ", ".join(unread))
    if encoded := [q.id for q in questions if any("&" in a and _HTML.search(a) for a in q.answers)]:
        logger.warning(
            "%s: answers of %d questions hold characters as HTML writes them, such as &amp; (%s); a model writes them "
            "otherwise: decode them",
            *(path, len(encoded), ", ".join(encoded[:3])),
        )
    return questions


def _titled(rows: list[Row]) -> list[Row]:
    """The rows with their columns under the names of FIELDS.

    Raises:
        UserError: a row has two columns of one field.
    """
    return [row if _are_fields(tuple(row.values)) else Row(_fields_of(row), row.where, row.number) for row in rows]


@lru_cache(maxsize=1024)  # most rows have the same columns
def _are_fields(titles: tuple[str, ...]) -> bool:
    """Whether each title is one of FIELDS already."""
    return set(titles) <= set(FIELDS)


def _fields_of(row: Row) -> dict[str, Any]:
    fields: dict[str, tuple[str, Any]] = {}
    for title, value in row.values.items():
        if missing(title) and missing(value):
            continue
        name = _field(title)
        if name in fields:
            raise row.error(f"columns {fields[name][0]!r} and {title!r} mean the same; rename or remove one")
        fields[name] = title, value
    return {name: value for name, (_, value) in fields.items()}


@lru_cache(maxsize=1024)
def _field(title: str) -> str:
    name = title.strip().lower()
    return "answers" if name == "answer" else name if name in FIELDS else title


def _unfloated(path: Path, rows: list[Row]) -> list[Row]:
    """The rows of a CSV; answers that pandas wrote as floats, as it does if some are missing, are numbers again."""
    cells = [cell for row in rows if (cell := row.values.get("answers", "").strip())]
    if not any(cell.endswith(".0") for cell in cells) or not all(map(_is_float, cells)):
        return rows
    logger.warning(
        "%s: all answers are written as floats, as pandas does if some are missing, and are read as numbers (%s as %s)",
        *(path, cells[0], as_text(float(cells[0]))),
    )
    return [
        replace(row, values=row.values | {"answers": as_text(float(cell)) if cell.strip() else ""})
        for row in rows
        for cell in [row.values["answers"]]
    ]


def _is_float(cell: str) -> bool:
    return re.fullmatch(r"-?\d+\.\d+", cell) is not None and repr(float(cell)) == cell


def _apart(questions: Sequence[Question], rows: Sequence[Row]) -> None:
    """No two different questions have one id, or ids of one look."""
    known: dict[str, tuple[Question, Row]] = {}
    for question, row in zip(questions, rows, strict=True):
        first, place = known.setdefault(look(question.id), (question, row))
        if first.id != question.id:
            raise row.error(f"id {question.id!r} looks like {first.id!r} of {place.where}; give each an id of its own")
        if first is not question and first != question:
            raise row.error(
                f"two questions have the id {question.id!r}, this one and that of {place.where}; "
                "give each an id of its own"
            )


def _parsed(row: Row) -> Row:
    """A row of a CSV with its lists and mappings read as JSON."""
    cells = {name: cell for name, cell in row.values.items() if cell.strip() or name in ("id", *NEEDED)}
    for name in cells.keys() & {*LISTS, "worked"}:
        if name == "worked" or cells[name].lstrip().startswith("["):
            try:
                cells[name] = decoded(cells[name])
            except json.JSONDecodeError as error:
                raise row.error(
                    f"column {name!r} is not JSON ({error.msg} at column {error.colno}); "
                    + ('write {"cot": "..."}' if name == "worked" else 'write a list as ["...", "..."]')
                ) from None
            if (twice := repeated(cells[name])) is not None:
                raise row.error(f"column {name!r}: the key {twice!r} occurs twice in one object; rename or remove one")
        else:
            cells[name] = [cells[name]]
    return replace(row, values=cells)


def _question(row: Row) -> Question:
    values = row.values
    for name in NEEDED:
        if name not in values:
            raise row.error(f"field {name!r} is missing; expected {', '.join(NEEDED)}, found {', '.join(values)}")
    for name in () if _are_fields(tuple(values)) else values:
        if not name.strip():
            raise row.error("a column has no name; remove it (pandas: to_csv(..., index=False))")
        if name not in FIELDS and (meant := get_close_matches(name.lower(), FIELDS, n=1, cutoff=_MISSPELT)):
            raise row.error(f"unknown field {name!r}, did you mean {meant[0]!r}?; expected {', '.join(sorted(FIELDS))}")
    there = {name for name in values if name not in NEEDED and not missing(values[name])}
    if "id" in values and "id" not in there:
        raise row.error("the id is empty; give every question an id of its own, or none")
    question = row.question(
        id=row.text("id") if "id" in values else str(row.number),
        text=row.text("question"),
        answers=_forms(row, "answers"),
        group=row.text("group") if "group" in there else "",
        choices=row.texts("choices") if "choices" in there else (),
        others=_others(row) if "others" in there else (),
        incorrect=_forms(row, "incorrect") if "incorrect" in there else (),
        worked=_worked(row) if "worked" in there else {},
    )
    wrong = set(map(normalise, question.incorrect))
    if wrong and all(normalise(form) in wrong for form in chain(question.answers, *question.others)):
        raise row.error(f"question {question.id!r} lists every gold answer as incorrect, too; remove it from one list")
    if question.choices and len(set(map(normalise, question.choices))) < len(question.choices):
        raise row.error(f"question {question.id!r} has options that differ in case, punctuation or articles only")
    return question


def _forms(row: Row, name: str) -> tuple[str, ...]:
    """Several texts; a single one, or a number, is a list of one."""
    value = row.values[name]
    one = isinstance(value, str | Number) and not missing(value)
    return Row({name: [value]}, row.where, row.number).texts(name) if one else row.texts(name)


def _others(row: Row) -> tuple[tuple[str, ...], ...]:
    """Each further answer as its forms; a text is an answer with one form."""
    others = row.values["others"]
    if not isinstance(others, list):
        raise row.error("column 'others' must be a list of texts or of lists of texts")
    forms = [other if isinstance(other, list) else [other] for other in others if not missing(other)]
    return tuple(replace(row, values={"others": form}).texts("others") for form in forms)


def _worked(row: Row) -> dict[str, str]:
    worked = row.values["worked"]
    if not isinstance(worked, dict) or not set(worked) <= set(STYLES):
        raise row.error(f"field 'worked' must map styles ({', '.join(STYLES)}) to texts")
    # A struct of a Parquet file has all styles, with null for those that a row lacks.
    return {style: replace(row, values=worked).text(style) for style, text in worked.items() if not missing(text)}
