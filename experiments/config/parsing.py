"""Reading a study file. Whatever is wrong with it is reported in one line, before anything is loaded.

The line names the key, the value found, and the nearest valid name.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from experiments.config.collapsing_functions import REGISTRY, SemanticsConfig
from experiments.config.datasets import DatasetConfig
from experiments.config.settings import Settings
from experiments.config.study import Lengths, SamplingConfig, ServedConfig, Study
from semcal.errors import UserError, nearest


def is_study_file(path: str | Path) -> bool:
    """Whether a path names a study rather than a run or a folder of runs."""
    return Path(path).suffix in (".yaml", ".yml") and Path(path).name != "config.yaml"


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply overrides of the form `a.b=c`.

    Values are YAML. List items are addressed by number, as in `models.0.path=...`.

    Raises:
        UserError: no such file, not YAML, or an unknown key or invalid value.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}{_near_file(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a study file (YAML)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'not text'})") from None
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: a study is a mapping of keys (name, models, datasets, styles, ...), got a {type(raw).__name__}"
        )
    for override in overrides:
        _override(raw, override)
    return parse(Study, raw, str(path))


def parse(model: type[Any], raw: Mapping[str, Any], where: str) -> Any:
    """Validate `raw` against a pydantic model.

    Raises:
        UserError: pydantic's first complaint in one line.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {_complaint(error, model)}") from None


_DATASETS: tuple[type[Settings], ...] = get_args(get_args(DatasetConfig)[0])


class _OneB(Settings):
    semantics: SemanticsConfig


def named_semantics(names: str) -> list[SemanticsConfig]:
    """The Bs of a comma-separated list: exact, numeric, choice, wordK, entailment:PATH, embedding:PATH,
    judge:MODEL@URL, custom:MODULE:NAME.

    Raises:
        UserError: an unknown name.
    """
    return [_named(name.strip()) for name in names.split(",")]


def _named(name: str) -> SemanticsConfig:
    kind, _, rest = name.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    if kind.startswith("word") and kind[4:].isdigit():
        fields = {"kind": "kth-word", "k": int(kind[4:])}
    elif kind == "judge":
        fields["model"], _, fields["url"] = rest.partition("@")
    elif rest:
        fields["path"] = rest
    return parse(_OneB, {"semantics": fields}, f"--semantics {name}").semantics


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: expected key=value, e.g. --set sampling.m=20")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    node: Any = raw
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, key, override)]
        else:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if not isinstance(node, dict | list):
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value and has no keys")
    if isinstance(node, list):
        node[_index(node, last, override)] = parsed
    else:
        node[last] = parsed


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"--set {override}: {key!r} is not a valid list index; expected 0 to {len(items) - 1}")
    return int(key)


def _complaint(error: ValidationError, model: type[BaseModel]) -> str:
    # If a value may be a number or a group of keys, report what is wrong inside the group first.
    first = min(
        error.errors(), key=lambda e: (e["type"] == "int_type" and isinstance(e["input"], dict), e["type"] == "missing")
    )
    kinds = {tag for config in (*_DATASETS, *REGISTRY) for tag in get_args(config.model_fields["kind"].annotation)}
    tags = {*kinds, "Lengths", "constrained-int"}
    loc = [str(part) for part in first["loc"]]
    # `exact` is both a kind of semantics and a key of sampling.
    location = [
        part for part in loc if (part not in tags or (loc[0] == "sampling" and part == "exact")) and "[" not in part
    ]
    key = ".".join(location)
    got, context = first.get("input"), first.get("ctx", {})
    kind = first["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(location[-1], model, location[:-1])}"
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", context["expected_tags"])
        tag = context["tag"]
        return f"{key}: unknown kind {tag!r}{nearest(tag, known)}; expected one of {', '.join(known)}"
    if kind == "union_tag_not_found":
        return f"{key}: key 'kind' is missing"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context["expected"])
        return f"{key}: {got!r} is not valid; expected one of {', '.join(known)}{nearest(str(got), known)}"
    message = first["msg"].removeprefix("Value error, ")
    return message if kind == "value_error" else f"{key}: {message[0].lower()}{message[1:]}, got {got!r}"


def _nearest_key(key: str, model: type[BaseModel], parents: Iterable[str]) -> str:
    """Where an unknown key belongs, or the nearest key of the group that it is in."""
    groups = {name: _groups_of(field.annotation) for name, field in Study.model_fields.items()}
    groups = {name: group for name, group in groups.items() if group} | {"served": [ServedConfig]}
    group = next((groups[p] for p in parents if p in groups), [model])
    if group == [model]:
        for name, members in groups.items():
            if any(key in g.model_fields for g in members):
                return f"; it belongs under {name!r}"
    close = difflib.get_close_matches(key, [f for g in group for f in g.model_fields], n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; the keys here are {', '.join(dict.fromkeys(f for g in group for f in g.model_fields))}"


def _groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups of keys that a value with this annotation may be, and a group inside that may also be one number."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, Lengths] if annotation is SamplingConfig else [annotation]
    return [group for part in get_args(annotation) for group in _groups_of(part)]


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
