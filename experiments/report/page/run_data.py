"""What the page of a run lets its reader explore: every question with its prompt, answers, classes and figures, and the
curves of the linked plots. Columns rather than records, so that a thousand questions take few bytes.

Draws nothing, and shows what there is: a run that is not scored has no classes, one without probes no gaps.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.compare.probe_rows import layer_rows, probe_table, whole_model
from experiments.config.study import Cell
from experiments.report.page.embedded import as_json, cut, digits
from probes.evaluation.result import BASELINE, CANDIDATES, LINEAR, MARGINAL
from probes.plots.style import short_names
from semcal.calibration.measures.smece import smooth_curve
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run

PAGE = 5_000_000  # bytes that a page may take, for up to SIZED questions
SIZED = 1000
_FORMS = 400  # characters of the accepted answers
_CLASS = 200  # characters of a class
GOLD, UNPARSED = 1, 2  # flags of a class


def run_data(cell: Cell, run: Run, taken: int = 0) -> dict[str, Any]:
    """Everything that the scripts of a run's page read.

    Args:
        taken: Bytes of the page that figures and tables take. If all samples do not fit into the rest, each question
            keeps its most frequent ones, as many as fit; `samples_left_out` says how many were left out. If all classes
            do not fit either, the rarer ones of each question become one entry.
    """
    questions = run.questions()
    ids = questions["id"].tolist()
    data = {
        "m": run.manifest().get("sampling", {}).get("m"),
        "enumerated": run.manifest().get("exact") is not None,
        "style": cell.style,
        "questions": _questions(questions),
        **_prompts(questions["prompt"].tolist()),
    }
    if run.calibration():
        data["questions"] |= _scored(run)
        data |= {"reliability": _curve(run)} | _gaps(run, ids)
    room = PAGE * max(1.0, len(ids) / SIZED) - taken - len(as_json(data).encode())
    if run.calibration():
        data["classes"] = _that_fit(_classes(run, ids), room)
        room -= len(as_json(data["classes"]).encode())
    samples = run.samples() if run.sampled else run.samples_so_far()
    return data | _samples(samples, ids, room)


def _questions(questions: pd.DataFrame) -> dict[str, list[Any]]:
    """What was asked, known before anything is answered."""
    gold = [
        "; ".join(forms[0] for forms in (answers, *others) if len(forms))
        for answers, others in zip(questions["answers"], questions["others"], strict=True)
    ]
    accepted = [
        " · ".join(form for forms in (answers, *others) for form in forms)
        for answers, others in zip(questions["answers"], questions["others"], strict=True)
    ]
    return {
        "id": questions["id"].tolist(),
        "group": questions["group"].tolist(),
        "text": list(map(cut, questions["text"])),
        "gold": [cut(text, _FORMS) for text in gold],
        "accepted": [cut(text, _FORMS) for text in accepted],
        "tokens": questions["prompt_tokens"].tolist(),
    }


def _prompts(prompts: Sequence[str]) -> dict[str, Any]:
    """Prompts as what all begin with, and paragraphs that are stored once and named by number."""
    first, last = min(prompts, default=""), max(prompts, default="")
    same = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    prefix = first[: next(same, min(len(first), len(last)))] if len(prompts) > 1 else ""
    numbers: dict[str, int] = {}
    rest = [
        [numbers.setdefault(part, len(numbers)) for part in prompt[len(prefix) :].split("\n\n")] for prompt in prompts
    ]
    return {"prefix": cut(prefix, 20_000), "paragraphs": [cut(part, 5000) for part in numbers], "prompts": rest}


def _scored(run: Run) -> dict[str, list[Any]]:
    """The figures of each question; columns that are empty in all are left out."""
    table, classes = run.table(), run.class_table()
    shares = [
        dict(zip(labels, row.tolist(), strict=False))
        for labels, row in zip(classes.classes, classes.shares, strict=True)
    ]
    unparsed = [
        row[column] if column >= 0 else 0.0 for row, column in zip(classes.shares, classes.unparsed, strict=True)
    ]
    predicted = zip(table["probe_class"], shares, strict=True)
    columns = {
        "answer": [cut(label, _CLASS) for label in table["top_class"]],
        "confidence": list(map(digits, table["confidence"])),
        "by_mass": list(map(digits, table["confidence_by_mass"])),
        "correct": list(map(digits, table["correct"])),
        "tied": table["tied"].astype(int).tolist(),
        "unparsed": list(map(digits, unparsed)),
        "seen_mass": list(map(digits, table["seen_mass"])),
        "probe_answer": [cut(label, _CLASS) if isinstance(label, str) else None for label in table["probe_class"]],
        "probe_confidence": list(map(digits, table["probe_confidence"])),
        "probe_sampled": [digits(of.get(label, 0.0)) if isinstance(label, str) else None for label, of in predicted],
    }
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _classes(run: Run, ids: Sequence[str]) -> list[list[list[Any]]]:
    """Of each question, its classes, most frequent first: label, count (None where enumerated), mass, flags."""
    found: dict[str, list[list[Any]]] = {question: [] for question in ids}
    frame = run.classes()
    counts = frame["count"].astype(object).where(frame["count"].notna(), None)
    columns = (frame[name].tolist() for name in ("question_id", "class", "mass", "gold", "unparsed"))
    for question, label, mass, gold, unparsed, count in zip(*columns, counts, strict=True):
        flags = GOLD * bool(gold) + UNPARSED * bool(unparsed)
        found[question].append([cut(label, _CLASS), count, digits(mass), *([flags] if flags else [])])
    return list(found.values())


def _that_fit(classes: list[list[list[Any]]], room: float) -> list[list[list[Any]]]:
    """The classes of every question, or the most frequent that fit and an entry for the rest of them."""
    kept = _ranks_that_fit(classes, room)
    return [of if len(of) <= kept + 1 else [*of[:kept], _others(of[kept:])] for of in classes]


def _others(classes: Sequence[Sequence[Any]]) -> list[Any]:
    """Several classes as one entry: how many they are, their counts and masses together, what any of them is."""
    counts, masses = ([entry[at] for entry in classes if entry[at] is not None] for at in (1, 2))
    flags = 0
    for entry in classes:
        flags |= entry[3] if len(entry) > 3 else 0
    label, count = f"({len(classes)} rarer classes)", sum(counts) if counts else None
    return [label, count, digits(sum(masses)), *([flags] if flags else [])]


def _curve(run: Run) -> list[list[float | None]]:
    """Smoothed accuracy over the confidences that occur, at the bandwidth of smECE: pairs [confidence, accuracy]."""
    scored = run.class_table().by_count
    curve = smooth_curve(scored.plug_in, scored.correct, float(run.calibration()["bandwidth"]))
    leeway = 1.01 * curve.grid[1]
    seen = (curve.grid >= scored.plug_in.min() - leeway) & (curve.grid <= scored.plug_in.max() + leeway)
    return [[digits(x), digits(y)] for x, y in zip(curve.grid[seen], curve.accuracy[seen], strict=True)]


def _gaps(run: Run, ids: Sequence[str]) -> dict[str, Any]:
    """KL gaps of the class probe: one entry per layer, and one for LoRA, with its interval and each question's gap; and
    the gaps of baselines. Empty where there are none."""
    probes, losses = probe_table(run), run.probe_losses()
    if probes.empty or "gap_nats" not in losses:
        return {}
    here = probes.loc[(probes["target"] == "classes") & (probes["position"] == LAST_PROMPT_TOKEN), :].dropna(
        subset=["gap"]
    )
    rows = layer_rows(here)
    whole = whole_model(here, "classes")
    shown = [*rows.to_dict("records"), *([whole] if whole else [])]
    names = [*map(_short, short_names(rows["layer"].tolist())), *(["LoRA"] if whole else [])]
    losses = losses.loc[losses["position"] == LAST_PROMPT_TOKEN, :].set_index(["rung", "layer"]).sort_index()
    curve = []
    for name, row in zip(names, shown, strict=True):
        if (row["rung"], row["layer"]) not in losses.index:
            continue
        own = losses.loc[[(row["rung"], row["layer"])], :].set_index("question_id")["gap_nats"].reindex(list(ids))
        figures = {"gap": digits(row["gap"]), "low": digits(row["gap_low"]), "high": digits(row["gap_high"])}
        curve.append(
            {"name": name, "layer": row["layer"], "rung": row["rung"], "whole": row is whole, **figures}
            | {"gaps": list(map(digits, own))}
        )
    return {"layers": curve, "references": _references(here, rows)} if curve else {}


def _references(probes: pd.DataFrame, rows: pd.DataFrame) -> list[list[Any]]:
    """What is the same for all questions, or reads the text alone: names and KL gaps, as in the static figure."""
    gaps = dict(zip(probes["rung"].str.removeprefix(BASELINE), probes["gap"], strict=True))
    if set(rows["rung"]) == {LINEAR}:  # which knows no candidates
        gaps.pop(CANDIDATES, None)
    same = next(([name] for name in (CANDIDATES, MARGINAL) if name in gaps), [])
    words = {CANDIDATES: "candidates alone", MARGINAL: "the marginal", "tfidf": "TF-IDF"}
    return [[words[name], digits(gaps[name])] for name in (*same, "tfidf") if name in gaps]


def _short(layer: str) -> str:
    """What a block gives on by its number, what the first reads as the embedding."""
    return layer.removesuffix(" resid_post").replace("0 resid_pre", "emb.")


def _samples(samples: pd.DataFrame, ids: Sequence[str], room: float) -> dict[str, Any]:
    """Of each question, its distinct answers, most frequent first: text, count, log-probability, 1 if it was cut."""
    found: dict[str, list[list[Any]]] = {question: [] for question in ids}
    if len(samples):
        samples = samples.sort_values(["count", "logprob"], ascending=False, kind="stable")
        counts = samples["count"].astype(object).where(samples["count"].notna(), None)
        columns = (samples[name].tolist() for name in ("question_id", "text", "logprob", "finish"))
        for question, text, logprob, finish, count in zip(*columns, counts, strict=True):
            cut_off = [1] if finish == "length" else []
            found[question].append([cut(text), count, digits(logprob, 4), *cut_off])
    rows = list(found.values())
    kept = _ranks_that_fit(rows, room)
    left_out = sum(max(0, len(answers) - kept) for answers in rows)
    return {"samples": [answers[:kept] for answers in rows], "samples_left_out": left_out, "samples_kept": kept}


def _ranks_that_fit(rows: Sequence[Sequence[Any]], room: float) -> int:
    """How many answers of every question fit, at least one."""
    most = max(map(len, rows), default=0)
    for rank in range(most):
        room -= sum(len(as_json(answers[rank]).encode()) + 1 for answers in rows if len(answers) > rank)
        if room < 0:
            return max(1, rank)
    return most
