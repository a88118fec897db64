"""A study file to start from, and the JSON schema of one: both are made from the schema that reads a study, so that
neither says what is no longer true. What the keys mean is in `explained_keys.py`."""

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from experiments.config.collapsing_functions import REGISTRY
from experiments.config.explained_keys import EXPLAINED
from experiments.config.study import (
    AtlasConfig,
    ContinuationConfig,
    ModelConfig,
    NamedConfig,
    Study,
    TableConfig,
)

SCHEMA = "study.schema.json"  # beside the study, where editors look for it
_COLUMN = 42  # at which explanations begin
_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# A study: every model is asked every dataset in every style. A # in front of a key: that is its default.
# `semcal run` this file with --dry-run checks it and counts tokens and memory; without, it runs.
# docs/studies.md explains every key at length.
"""
_DATASETS = (
    (TableConfig, {"kind": "jsonl", "path": "questions.jsonl"}),
    (NamedConfig, {"kind": "triviaqa"}),
    (ContinuationConfig, {"kind": "continuation", "path": "stories.txt"}),
)
_EXAMPLES = {"path": "PATH", "k": 1, "url": "http://localhost:8000/v1", "model": "NAME"}  # of keys without a default
_PUBLISHED = {"model": "NAME", "dataset": "NAME", "style": "concise", "smece": 0.05, "source": "arXiv …"}


def template(name: str) -> str:
    """A study of that name: small, on a bundled model, with every key."""
    lines = [_HEAD, _line("name", name, EXPLAINED["Study"]["name"])]
    lines += ["", *_item("models", ModelConfig, {"path": "atlas:base"})]
    lines += ["", *_item("datasets", AtlasConfig, {"kind": "atlas", "family": "facts", "n": 200})]
    for config, example in _DATASETS:
        lines += [f"  # {line[2:]}" for line in _entry(config, example)]
    lines += ["", _line("styles", ["concise"], EXPLAINED["Study"]["styles"])]
    lines += ["", f"# semantics:  # {EXPLAINED['Study']['semantics']}"]
    for config in REGISTRY:
        kind = get_args(config.model_fields["kind"].annotation)[0]
        lines += [f"# {line}" for line in _entry(config, {"kind": kind})]
    lines.append("")
    for key, field in Study.model_fields.items():
        if key in ("name", "models", "datasets", "styles", "semantics", "published"):
            continue
        if (group := _group_in(field.annotation)) is not None:
            lines += ["", f"{key}:  # {EXPLAINED['Study'][key]}", *_group(group)]
        else:
            lines += _commented(Study, key, "")
    lines += ["", f"# published:  # {EXPLAINED['Study']['published']}"]
    lines += [f"# {line}" for line in _explained("PublishedConfig", _PUBLISHED)]
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a study, with explanations."""
    schema = Study.model_json_schema()
    for name, group in [("Study", schema), *schema["$defs"].items()]:
        for key, explanation in EXPLAINED.get(name, {}).items():
            if key in group.get("properties", {}):
                group["properties"][key]["description"] = explanation
    return schema


def schema_text() -> str:
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


# ---- lines of YAML ---------------------------------------------------------------------------------------------------


def _item(key: str, config: type[BaseModel], example: dict[str, Any]) -> list[str]:
    """A list with one item, whose other keys are commented out."""
    return [f"{key}:  # {EXPLAINED['Study'][key]}", *_entry(config, example)]


def _entry(config: type[BaseModel], example: dict[str, Any]) -> list[str]:
    """An item of a list: the keys of the example and those without a default, then the others, commented out."""
    required = {key: _EXAMPLES.get(key) for key, field in config.model_fields.items() if field.is_required()}
    chosen = example | {key: value for key, value in required.items() if key not in example}
    keys = [_line(key, value, EXPLAINED[config.__name__][key], "    ") for key, value in chosen.items()]
    rest = [key for key in config.model_fields if key not in chosen]
    return ["  - " + keys[0].strip(), *keys[1:], *(line for key in rest for line in _commented(config, key, "    "))]


def _group(config: type[BaseModel]) -> Iterator[str]:
    """The keys of a group with their defaults; all but the first are commented out."""
    first, *rest = config.model_fields
    yield _line(first, _default(config, first), EXPLAINED[config.__name__][first], "  ")
    for key in rest:
        yield from _commented(config, key, "  ")


def _commented(config: type[BaseModel], key: str, indent: str) -> Iterator[str]:
    """A key with its default behind a #, and of a group of keys each of them."""
    explanation = EXPLAINED[config.__name__][key]
    if (inner := _group_in(config.model_fields[key].annotation)) is None:
        yield _line(f"# {key}", _default(config, key), explanation, indent)
        return
    yield f"{indent}# {key}:  # {explanation}"
    for name in inner.model_fields:
        yield _line(f"#   {name}", _default(inner, name), EXPLAINED[inner.__name__][name], indent)


def _group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of keys that a value with this annotation is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is list:
        return None
    return next((found for part in get_args(annotation) if (found := _group_in(part)) is not None), None)


def _default(config: type[BaseModel], key: str) -> Any:
    return config.model_fields[key].get_default(call_default_factory=True)


def _explained(name: str, example: dict[str, Any]) -> list[str]:
    lines = [_line(key, value, EXPLAINED[name][key], "    ") for key, value in example.items()]
    return ["  - " + lines[0].strip(), *lines[1:]]


def _line(key: str, value: Any, explanation: str, indent: str = "") -> str:
    text = f"{indent}{key}: {_yaml(value)}"
    return f"{text:<{_COLUMN}}  # {explanation}" if explanation else text


def _yaml(value: Any) -> str:
    """A value on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()
