"""Messages about a run name the command that makes it again."""

from __future__ import annotations

import pytest

from semcal import Run, UserError
from semcal.runs.made_by import again, write_command


def test_a_message_names_the_command_of_the_study_where_it_is_known(tmp_path):
    run = Run(tmp_path / "study" / "run")
    run.write_config({"study": "a"})
    with pytest.raises(UserError, match=r"has no questions\.parquet yet; `semcal run` its study first"):
        run.questions()
    write_command(tmp_path / "study", "semcal run a.yaml --set seed=1")
    with pytest.raises(UserError, match=r"yet; `semcal run a\.yaml --set seed=1` first"):
        run.questions()
    write_command(tmp_path / "study", "semcal run b.yaml")
    assert again(run.folder) == "`semcal run b.yaml`"
