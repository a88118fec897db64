"""Text that a file cannot hold, from a server and from what an earlier run left behind."""

from __future__ import annotations

import pandas as pd
import pytest

from semcal import Run


def row(text):
    return {"question_id": "q", "text": text, "token_ids": [], "count": 1, "logprob": None, "finish": "stop"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("red \ud83d", "red \ufffd"),
        ("\ude00 red", "\ufffd red"),
        ("\ud83d and \ude00", "\ufffd and \ufffd"),
        pytest.param("red\x00blue", "red\x00blue", marks=pytest.mark.held_before),
        pytest.param("\U0001f600", "\U0001f600", marks=pytest.mark.held_before),
    ],
)
def test_text_that_no_file_can_hold_is_written_after_a_detour_through_the_partial_file(tmp_path, text, kept):
    run = Run(tmp_path)
    run.write_manifest({"shards": ["0"]})
    with run.open_partial("0") as partial:
        partial.append({"q": [row(text)]})
    run.write_samples("0", run.partial("0")[0]["q"])
    assert pd.read_parquet(tmp_path / "samples" / "0.parquet")["text"].tolist() == [kept]
