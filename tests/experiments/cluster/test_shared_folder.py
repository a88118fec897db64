"""A job finds out that it does not see the folder it was submitted from."""

from __future__ import annotations

import pytest

from experiments.cluster.shared_folder import NOT_SHARED, check_shared, main, write_token
from semcal import UserError


def test_another_folder_of_the_same_name_is_found_out(tmp_path, capfd, monkeypatch):
    shared, other = tmp_path / "shared", tmp_path / "other"
    monkeypatch.chdir(tmp_path)
    token = write_token(shared)
    check_shared(shared, token)
    assert main(str(shared), token, str(tmp_path)) == 0
    write_token(other)
    for folder in (other, tmp_path / "absent"):
        with pytest.raises(UserError, match=f"does not see {folder} .* choose a folder that all machines share"):
            check_shared(folder, token)
        assert main(str(folder), token, str(tmp_path)) == NOT_SHARED
        said = capfd.readouterr().err
        assert said.startswith("semcal: ")
        assert said.count("\n") == 1
    assert main(str(shared), token, str(shared)) == NOT_SHARED
    assert f"no folder {shared}, from which the job was submitted" in capfd.readouterr().err
