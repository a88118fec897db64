"""A stand-in for the server of W&B on loopback: it answers what the installed client asks, keeps what it is told, and
fails when a test says so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass
class StandIn:
    """What a server was told.

    Attributes:
        failing: status of every answer from now on; 0: it works.
        fails_after: a query by name, and the status of every answer after it.
        runs: name of a run -> what was last said of it (config, summary, job type, tags, group).
        history: name of a run -> its lines.
        versions: name of an artifact -> the digests of its versions, in order.
        made, used: pairs of a run and the name of an artifact.
        views: names of workspaces -> what they show.
        uploaded: names of files.
    """

    url: str = ""
    failing: int = 0
    fails_after: tuple[str, int] = ("", 0)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    made: list[tuple[str, str]] = field(default_factory=list)
    used: list[tuple[str, str]] = field(default_factory=list)
    views: dict[str, Any] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    # ---- GraphQL -----------------------------------------------------------------------------------------------------

    def answer(self, query: str, v: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.asked.append(name)
        if name == self.fails_after[0]:
            self.failing = self.fails_after[1]
        method = getattr(self, f"_{name}", None)
        return {"data": {} if method is None else method(v)}

    def _Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        }

    def _ServerFeaturesQuery(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run, lines = self.runs.get(v["name"]), self.history.get(v["name"], [])
        bucket = run and {
            "id": v["name"],
            "name": v["name"],
            "summaryMetrics": json.dumps(self.summaries.get(v["name"], {})),
            "displayName": run.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]),
            "eventsTail": "[]",
            "config": run.get("config") or "{}",
            "tags": run.get("tags"),
            "notes": "",
            "wandbConfig": "{}",
        }
        return {"model": {"id": "p", "name": v["project"], "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def _UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("name") or v.get("id")
        assert name
        new = name not in self.runs
        run = self.runs.setdefault(name, {})
        run |= {key: value for key, value in v.items() if value is not None}
        project = {"id": "p", "name": run.get("project"), "entity": {"id": "e", "name": "me"}}
        bucket = {"id": name, "name": name, "displayName": run.get("displayName"), "description": "", "sweepName": ""}
        bucket |= {"config": run.get("config") or "{}", "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None, "artifactType": None}}

    def _CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v["input"]
        name, digest = given["artifactCollectionName"], given["digest"]
        versions = self.versions.setdefault(name, [])
        old = digest in versions
        if not old:
            versions.append(digest)
        if given.get("runName"):
            self.made.append((given["runName"], name))
        at = f"{name}:{versions.index(digest)}"
        latest = {"id": f"{name}:{len(versions) - 1}", "versionIndex": len(versions) - 1}
        artifact = {"id": at, "state": "COMMITTED" if old else "PENDING", "versionIndex": versions.index(digest)}
        artifact["artifactSequence"] = {"id": name, "latestArtifact": latest if len(versions) > 1 or old else None}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(v["artifactID"])}}

    def _UpdateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(v["artifactManifestID"])}}

    def _manifest(self, of: str) -> dict[str, Any]:
        return {"id": of, "file": {"id": of, "uploadUrl": f"{self.url}/upload/manifest-{of}", "uploadHeaders": []}}

    def _CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in v["input"]["artifactFiles"]:
            at = f"{file['artifactID']}/{file['name']}"
            node = {"storagePath": at, "uploadUrl": f"{self.url}/upload/{at}", "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}

    def _UseArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        self.used.append((v["input"]["runName"], v["input"]["artifactID"].partition(":")[0]))
        return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}

    def _UpsertView2(self, v: dict[str, Any]) -> dict[str, Any]:
        self.views[v["displayName"]] = json.loads(v["spec"])
        return {"upsertView": {"view": {"id": "view", "name": "nw-view"}, "inserted": True}}

    def _CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    # ---- the stream of history ---------------------------------------------------------------------------------------

    def stream(self, run: str, told: dict[str, Any]) -> None:
        for file, part in (told.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                self.history.setdefault(run, []).extend(map(json.loads, part["content"]))
            elif file == "wandb-summary.json":
                self.summaries.setdefault(run, {}).update(json.loads(part["content"][-1]))


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None: ...  # a client that hangs up


@contextmanager
def wandb_stand_in() -> Iterator[StandIn]:
    """A server on a free port of this machine, until the end of the block."""
    told = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _reply(self, body: dict[str, Any], status: int = 200) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self) -> None:
            body = self._body()
            with told.lock:
                if told.failing:
                    self._reply({"errors": [{"message": "the server fails"}]}, told.failing)
                elif self.path.startswith("/graphql"):
                    asked = json.loads(body)
                    self._reply(told.answer(asked["query"], asked.get("variables") or {}))
                else:
                    told.stream(self.path.split("/")[-2], json.loads(body))
                    self._reply({"exitcode": None, "limits": {}})

        def do_PUT(self) -> None:
            self._body()
            with told.lock:
                if not told.failing:
                    told.uploaded.append(self.path.removeprefix("/upload/"))
                self._reply({}, told.failing or 200)

        def do_GET(self) -> None:
            self._reply({}, told.failing or 200)

    server = _Quiet(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
