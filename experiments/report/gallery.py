"""The pictures in figures/, copied from the run folders: `python -m experiments.report.gallery`.

Knows which picture of which run has which name there; draws nothing.
"""

import argparse
import shutil
import sys
from pathlib import Path

_CELLS = {
    (family, style): f"atlas-base__atlas-{family}__{style}__exact"
    for family in ("facts", "routes")
    for style in ("concise", "sentence", "cot")
}


def pictures() -> dict[str, str]:
    """Name in figures/ -> path below the folder of runs, as a pattern that one file matches."""
    found = {}
    for (family, style), cell in _CELLS.items():
        for name in ("reliability", "layers", "knowing"):
            found[f"{name}-{family}-{style}.png"] = f"demo/{cell}/figures/{name}.png"
    for family, style in (("facts", "concise"), ("routes", "concise"), ("routes", "cot")):
        found[f"m-curve-{family}-{style}.png"] = f"demo/{_CELLS[family, style]}/figures/m-curve.png"
    for name in ("profile", "risk-coverage"):
        found[f"{name}-routes-cot.png"] = f"demo/{_CELLS['routes', 'cot']}/figures/{name}.png"
    for style in ("concise", "sentence", "cot"):
        found[f"positions-routes-{style}.png"] = f"chain/{_CELLS['routes', style]}/figures/layers-positions.png"
    for style in ("sentence", "cot"):
        for name in ("rungs", "commitment"):
            found[f"{name}-routes-{style}.png"] = f"chain/{_CELLS['routes', style]}/figures/{name}.png"
    for k in range(1, 6):
        found[f"horizon-word{k}.png"] = (
            f"horizon/stories260K__tinystories__continuation__word{k}/figures/reliability.png"
        )
    found["ablation-routes-concise.png"] = "lineage/base__atlas-routes__concise__exact/figures/ablate-*.png"
    found["steering-routes-concise.png"] = f"demo/{_CELLS['routes', 'concise']}/figures/steer-*.png"
    found["sweep-routes-cot.png"] = f"demo/{_CELLS['routes', 'cot']}/looks/sweep/sweep.png"
    found["transfer-routes.png"] = "transfer/transfer.png"
    found["verdict-lineage.png"] = "lineage/figures/verdict.png"
    for study in ("lineage", "ablation"):
        found[f"models-{study}.png"] = f"{study}/figures/models.png"
    found["predictability-lineage.png"] = "lineage/figures/predictability.png"
    found["emergence.png"] = "checkpoints/figures/emergence.png"
    for family in ("facts", "myths"):
        cell = f"base__atlas-{family}__concise__exact"
        found[f"reliability-shift-{family}.png"] = f"shift/{cell}/figures/reliability.png"
    return found


def collect(runs: Path, into: Path) -> tuple[list[str], list[str]]:
    """Copy the pictures that exist; returns the names copied, and those that no run has drawn yet."""
    copied, absent = [], []
    for name, place in pictures().items():
        if drawn := sorted(runs.glob(place)):
            shutil.copyfile(drawn[-1], into / name)
            copied.append(name)
        else:
            absent.append(name)
    return copied, absent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--into", type=Path, default=Path("figures"))
    options = parser.parse_args()
    if not options.into.is_dir():
        parser.error(f"{options.into} is not a folder; name one with --into")
    copied, absent = collect(options.runs, options.into)
    if not copied:
        sys.stderr.write(f"no picture below {options.runs}; `semcal run` the studies first, or name their --runs\n")
        raise SystemExit(2)
    sys.stdout.write(f"{len(copied)} pictures copied to {options.into}\n")
    if absent:
        sys.stdout.write(f"not drawn yet: {', '.join(absent)}\n")


if __name__ == "__main__":
    main()
