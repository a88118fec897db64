"""Rows out of files and the Hub: every format, and one line that names file, place, fault and mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semcal import UserError
from semcal.questions.rows import hub_rows, read_rows

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:35dc\nsize 446564\n"
ROWS = [{"question": "Où, là?", "answer": "a"}, {"question": 'He said "b"', "answer": "c\nd"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.jsonl", "".join(json.dumps(r) + "\n" for r in ROWS)),
        ("t.test", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS)),
        ("t", "".join(json.dumps(r) + "\r\n\r\n" for r in ROWS)),
        ("t.json", json.dumps(ROWS, indent=1)),
        ("t.JSON", json.dumps({"Domain": "web", "Version": 1.0, "Data": ROWS})),
        ("t.csv", 'question,answer\n"Où, là?",a\n"He said ""b""","c\nd"\n'),
        ("bom.csv", '\ufeffquestion,answer\n"Où, là?",a\n"He said ""b""","c\nd"\n'),
        ("semicolons.csv", 'question;answer\n"Où, là?";a\n"He said ""b""";"c\nd"\n'),
        ("tabs.csv", 'question\tanswer\nOù, là?\ta\n"He said ""b"""\t"c\nd"\n'),
        ("told.csv", 'sep=;\r\nquestion;answer\r\nOù, là?;a\r\n"He said ""b""";"c\nd"\r\n'),
        ("t.tsv", 'question\tanswer\nOù, là?\ta\n"He said ""b"""\t"c\nd"\n'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    rows = read_rows(tmp_path / name)
    assert [row.values for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2]
    assert all(str(tmp_path / name) in row.where for row in rows)


def test_unicode_text_of_a_spreadsheet(tmp_path):
    (tmp_path / "t.csv").write_bytes('question\tanswer\nOù, là?\ta\n"He said ""b"""\t"c\nd"\n'.encode("utf-16"))
    assert [row.values for row in read_rows(tmp_path / "t.csv")] == ROWS


def test_parquet_with_its_null_cells_left_out(tmp_path):
    pq.write_table(pa.table({"q": ["a", "b"], "list": [["x", "y"], None]}), tmp_path / "t.parquet")
    assert [row.values for row in read_rows(tmp_path / "t.parquet")] == [{"q": "a", "list": ["x", "y"]}, {"q": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "is empty; check"),
        ("t.csv", b" \n\n", "is empty; check"),
        ("t.parquet", b"", "is empty; check"),
        ("t.csv", b"question,answer\n", "has no rows"),
        ("t.json", b"[]", "has no rows"),
        ("t.jsonl", b'{"a": "\xe9"}\n', r"is not UTF-8 text \(byte 7\); save it as UTF-8"),
        ("t.csv", "a,b\né,\n".encode("cp1252"), r"is not UTF-8 text \(byte 4\); .* in a spreadsheet as CSV UTF-8"),
        *(
            (f"t{suffix}", LFS, "is a Git LFS pointer.* `git lfs pull`")
            for suffix in (".jsonl", ".json", ".csv", ".parquet")
        ),
        ("t.jsonl", b'{"a": 1}\n\n{"a": 1,}\n', r":3: not JSON \(.* at column 9\); write one object per line"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', ":2: expected an object, got a list"),
        ("t.json", b'[{"a": 1},\n {"a" 1}]', r":2: not JSON \(.* at column 7\)"),
        ("t.json", b'{"a": 1}\n{"a": 2}', r":2: not JSON .* name a file with one object per line \.jsonl"),
        ("t.json", b'[{"a": 1}, "b"]', ": entry 2: expected an object, got a str"),
        ("t.json", b'{"a": [1], "b": [2]}', "expected a list of objects, or an object that holds one list"),
        ("t.json", b"3", "expected a list of objects"),
        ("t.csv", b'a,b\n1,2\n3,"4\n', r": row 2: not CSV \("),
        ("t.csv", b"a,b\n1,2\n3\n", ": row 2: column 'b' is missing"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", ": row 2: more cells than the header's 2; quote"),
        ("t.parquet", b"PAR1 no", r"not Parquet \("),
        ("t.xlsx", b"PK", r"cannot read \.xlsx files; expected one of \.jsonl, \.json, \.csv"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.jsonl; check"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"is a folder; expected a file \(none in it can be read\)"):
        read_rows(tmp_path)
    (tmp_path / "b.csv").touch()
    (tmp_path / "LICENSE").touch()
    with pytest.raises(UserError, match=r"is a folder; expected a file \(b\.csv\)"):
        read_rows(tmp_path)


def test_rows_of_the_hub_and_what_was_asked_for(monkeypatch):
    def load_dataset(path, name, *, split, revision):
        assert (path, name, split, revision) == ("some/data", "main", "train[:2]", "v1")
        return datasets.Dataset.from_list([{"q": "a", "n": [1]}, {"q": "b", "n": []}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(hub_rows("some/data", "main", split="train[:2]", revision="v1"))
    assert [row.values for row in rows] == [{"q": "a", "n": [1]}, {"q": "b", "n": []}]
    assert [row.where for row in rows] == ["some/data, train[:2]: row 1", "some/data, train[:2]: row 2"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach it"),
        datasets.exceptions.DatasetNotFoundError("doesn't exist on the Hub\nor cannot be accessed"),
        ValueError('Unknown split "tset". Should be one of [test].'),
    ],
)
def test_whatever_the_hub_says_becomes_one_line(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="some/data, split tset: cannot be read from the Hub") as caught:
        hub_rows("some/data", None, split="tset")
    assert str(error).split("\n")[0] in str(caught.value)
    assert "give the path of the dataset's original file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets, or give the path"):
        hub_rows("some/data", None, split="test")


def test_offline_the_hub_is_one_line_and_no_wait(tmp_path):
    script = "from semcal.questions.named.named_datasets import read_named\nfrom semcal import UserError\ntry:\n    read_named('gsm8k', None)\nexcept UserError as error:\n    print(error)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.strip().split("\n")
    assert line.startswith("openai/gsm8k, split test: cannot be read from the Hub (ConnectionError: ")
    assert "give the path of the dataset's original file" in line
