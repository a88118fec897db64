"""The run folder: whole shards or none, content keys, and one line when the disk says no."""

from __future__ import annotations

import errno

import numpy as np
import pandas as pd
import pytest

from semcal import Run, UserError
from semcal.runs.digests import DIGESTS
from semcal.runs.files import content_key, write_atomically
from semcal.runs.run import shards
from semcal.runs.stored_activations import Activations
from semcal.semantics.class_table import LEFT_OUT, ClassTable
from semcal.semantics.collapsing.alias_table import Aliases


def test_shards_cover_every_question_once_and_their_keys_what_they_hold():
    ids = [f"q{i}" for i in range(10)]
    cut = shards("key", ids, 4)
    assert [q for s in cut for q in s.question_ids] == ids
    assert len({s.key for s in cut}) == 3
    assert shards("key", ids, 4) == cut
    assert shards("other", ids, 4)[0].key != cut[0].key
    assert shards("key", ids[:-1], 4)[2].key != cut[2].key
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})


def test_a_failed_write_leaves_nothing_and_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(p):
        p.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        UserError, match=r"disk full while writing .*x\.json; free some space and run the same command again"
    ):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("I/O error: No space left on device (os error 28)", "disk full while writing .*; free some space"),
        ("No space left on device", "disk full while writing .*; free some space"),
        ("I/O error: Disk quota exceeded (os error 122)", "disk quota used up while writing .*; free some space"),
        (
            "Error writing bytes to file. Detail: [errno 27] File too large",
            "file too large while writing .*`ulimit -f`",
        ),
    ],
)
def test_complaints_of_arrow_and_safetensors_that_there_is_no_room(tmp_path, words, said):
    def fail(_):
        raise RuntimeError(words)

    with pytest.raises(UserError, match=said):
        write_atomically(tmp_path / "a", fail)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below" / "x", lambda p: p.write_text(""))


def make_run(folder, ids=("a", "b", "c")):
    run = Run(folder)
    run.write_config({"study": "s"})
    table = pd.DataFrame(
        {
            "id": ids,
            "group": ids,
            "text": ["T"] * len(ids),
            "answers": [["x", "y"]] * len(ids),
            "others": [[]] * len(ids),
            "incorrect": [[]] * len(ids),
            "choices": [[]] * len(ids),
            "prompt": ["P"] * len(ids),
            "prompt_tokens": [3] * len(ids),
            "prompt_hash": ["h"] * len(ids),
        }
    )
    run.write_questions(table, Aliases({"X": "x"}, {"y": "z"}))
    run.write_prompt_ids([(5, i, 9) for i in range(len(ids))])
    parts = shards("key", list(ids), 2)
    run.write_manifest({"shards": [s.key for s in parts], "positions": ["last_prompt_token"]})
    return run, parts


def row(question_id):
    return {"question_id": question_id, "text": "t", "token_ids": [1, 2], "count": 5, "logprob": -1.0, "finish": "stop"}


def fill(run, part):
    n = len(part.question_ids)
    values = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)
    ones, last = np.ones(n, dtype=np.int64), np.full(n, 2)
    found = Activations(part.question_ids, ("l0", "l1"), values, np.full(n, 9), last, ones, (), np.zeros((n, 0, 0, 0)))
    run.write_activations(part.key, {"last_prompt_token": found})
    run.write_samples(part.key, [row(q) for q in part.question_ids])


def test_a_run_reads_back_what_was_written(tmp_path):
    run, parts = make_run(tmp_path / "run")
    assert run.missing_shards() == [p.key for p in parts]
    fill(run, parts[0])
    assert not run.sampled
    fill(run, parts[1])
    assert run.sampled
    again = Run.open(tmp_path / "run")
    assert again.samples()["question_id"].tolist() == ["a", "b", "c"]
    assert again.samples()["token_ids"].iloc[0].tolist() == [1, 2]
    stored = again.activations("last_prompt_token")
    assert (stored.layers, stored.values.shape, stored.token_ids.tolist()) == (("l0", "l1"), (3, 2, 3), [9, 9, 9])
    assert again.question_records()[0].answers == ("x", "y")
    assert again.aliases() == Aliases({"X": "x"}, {"y": "z"})
    assert again.has_aliases(again.aliases())
    assert not again.has_aliases(Aliases({"X": "x"}))
    with pytest.raises(UserError, match="nothing captured at position 'elsewhere'"):
        again.activations("elsewhere")


def test_aliases_of_an_earlier_version_are_refused_with_the_command_that_takes_them_over(tmp_path):
    run, _ = make_run(tmp_path / "run")
    (run.folder / DIGESTS).unlink()
    (run.folder / "aliases.json").write_text('{"X": "x"}')
    assert not run.has_aliases(Aliases({"X": "x"}))
    with pytest.raises(UserError, match=r"earlier version of semcal.*`semcal run` its study again"):
        run.aliases()


def test_samples_without_their_activations_are_not_a_finished_shard(tmp_path):
    run, parts = make_run(tmp_path / "run")
    run.write_samples(parts[0].key, [row("a")])
    assert parts[0].key in run.missing_shards()


def test_a_sibling_with_the_same_content_key_lends_its_shards(tmp_path):
    one, parts = make_run(tmp_path / "one")
    two, _ = make_run(tmp_path / "two")
    fill(one, parts[0])
    assert two.adopt_shard(one, parts[0].key, with_activations=True)
    assert not two.adopt_shard(one, parts[1].key, with_activations=True)
    assert two.missing_shards() == [parts[1].key]


def test_no_run_folder_and_stages_still_to_come(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open(tmp_path)
    run, _ = make_run(tmp_path / "run")
    assert run.calibration() == {}
    assert run.probes().empty
    with pytest.raises(UserError, match=r"no classes\.parquet yet"):
        run.classes()


def test_a_run_is_opened_from_a_text_or_a_path(tmp_path):
    make_run(tmp_path / "run")
    assert Run(str(tmp_path / "run")) == Run(tmp_path / "run") == Run.open(str(tmp_path / "run"))
    assert Run(str(tmp_path / "run")).config() == {"study": "s"}


def test_the_table_has_a_row_per_question_with_confidence_correctness_and_probe(tmp_path):
    run, _ = make_run(tmp_path / "run")
    counts = pd.DataFrame(
        {
            "question_id": ["a", "a", "b", "b", "c"],
            "group": ["a", "a", "b", "b", "c"],
            "class": ["x", "z", "x", "y", "w"],
            "count": [3, 1, 2, 2, 4],
            "mass": [0.9, 0.1, 0.5, 0.5, 1.0],
            "seen_mass": [0.8, 0.8, 0.5, 0.5, 0.2],
            **dict.fromkeys(LEFT_OUT, np.nan),
            "gold": [True, False, True, False, False],
            "unparsed": [False] * 5,
        }
    )
    run.write_classes(ClassTable.from_frame(counts))
    table = run.table().set_index("question_id")
    assert table["top_class"].tolist() == ["x", "x", "w"]
    assert table["confidence"].tolist() == [0.75, 0.5, 1]
    assert table["confidence_by_mass"].tolist() == [0.9, 0.5, 1]
    assert table["correct"].tolist() == [1, 0.5, 0]
    assert table["tied"].tolist() == [False, True, False]
    assert table["seen_mass"].tolist() == [0.8, 0.5, 0.2]
    assert table["gold"].tolist() == ["x"] * 3
    assert table["probe_class"].tolist() == [None] * 3
    assert table["probe_confidence"].isna().all()
    run.write_probe_predictions(
        pd.DataFrame({"question_id": ["b", "a", "c"], "class": ["y", "x", "w"], "confidence": [0.4, 0.6, 0.9]})
    )
    assert run.table()["probe_class"].tolist() == ["x", "y", "w"]
    assert run.table()["probe_confidence"].tolist() == [0.6, 0.4, 0.9]


def test_portions_are_removed_once_their_shard_is_finished_and_not_before(tmp_path):
    run, parts = make_run(tmp_path / "run")
    fill(run, parts[0])
    for part in parts:  # the first, as if the process had been killed just before it removed them
        (run.folder / "samples" / f"{part.key}.partial.jsonl").write_text("")
        (run.folder / "activations" / f"{part.key}.partial-0000.safetensors").write_text("")
    run.tidy()
    assert {p.name.partition(".")[0] for p in run.folder.rglob("*.partial*")} == {parts[1].key}
