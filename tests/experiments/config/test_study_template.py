"""What `semcal init` writes has every key of the schema, is valid as it is, and so is every key in it."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from experiments.config.collapsing_functions import REGISTRY
from experiments.config.explained_keys import EXPLAINED
from experiments.config.study import AtlasConfig, ContinuationConfig, NamedConfig, Study, TableConfig, parse
from experiments.config.study_template import SCHEMA, json_schema, template

DATASETS = (NamedConfig, TableConfig, ContinuationConfig, AtlasConfig)


def groups(annotation: Any) -> set[type[BaseModel]]:
    """All groups of keys in an annotation, and inside those."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = (groups(field.annotation) for field in annotation.model_fields.values())
        return {annotation}.union(*inner)
    return set().union(*map(groups, get_args(annotation))) if get_args(annotation) else set()


def test_every_key_of_the_schema_is_explained_and_no_other():
    there = {group.__name__: set(group.model_fields) for group in groups(Study) | {*REGISTRY, *DATASETS}}
    assert {name: set(keys) for name, keys in EXPLAINED.items()} == there


def test_it_is_a_study_with_the_defaults_it_states():
    found = parse(Study, yaml.safe_load(template("mine")), "template")
    assert (found.name, [m.path for m in found.models], len(found.cells())) == ("mine", ["atlas:base"], 1)
    plain = {"name": "mine", "models": [{"path": "atlas:base"}], "styles": ["concise"]}
    plain["datasets"] = [{"kind": "atlas", "family": "facts", "n": 200}]
    assert found == parse(Study, plain, "plain")


def test_every_key_is_written():
    written = re.findall(r"^[ #-]*([a-z_0-9]+):", template("mine"), re.MULTILINE)
    for name, keys in EXPLAINED.items():
        for key in keys:
            assert key in written, f"{name}.{key}"


def test_every_line_that_is_commented_out_can_be_used():
    """One after the other, with what it is a part of, as a user would remove the #."""
    lines = template("mine").splitlines()
    used = 0
    for at, line in enumerate(lines):
        if not (found := re.match(r"^(  |    )# ([a-z_0-9]+: \S.*)$", line)):
            continue
        changed = [*lines[:at], found[1] + found[2], *lines[at + 1 :]]
        parse(Study, yaml.safe_load("\n".join(changed)), line)
        used += 1
    assert used > 30


@pytest.mark.parametrize("part", ["semantics", "published"])
def test_a_part_that_is_commented_out_is_yaml_of_known_keys(part):
    lines = template("mine").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"# {part}:"))
    block = [line[2:] for line in lines[start:] if line.startswith("# ")]
    (items,) = [value for key, value in yaml.safe_load("\n".join(block)).items() if key == part]
    if part == "semantics":
        assert [item["kind"] for item in items] == [get_args(c.model_fields["kind"].annotation)[0] for c in REGISTRY]
    else:
        assert set(items[0]) == set(EXPLAINED["PublishedConfig"])


def test_the_schema_says_what_keys_mean_and_the_file_names_it():
    schema = json_schema()
    assert schema["properties"]["seed"]["description"] == EXPLAINED["Study"]["seed"]
    assert schema["$defs"]["SamplingConfig"]["properties"]["m"]["description"] == "samples per question"
    assert template("mine").startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
