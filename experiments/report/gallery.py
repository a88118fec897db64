"""The pictures in figures/, copied from the run folders, and docs/gallery.md, which shows each with what it says and
the command that made it: `python -m experiments.report.gallery`.

Knows which picture of which run has which name there; draws nothing.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from os.path import relpath
from pathlib import Path

from semcal.runs.files import write_atomically

_CELLS = {
    (family, style): f"atlas-base__atlas-{family}__{style}__exact"
    for family in ("facts", "routes")
    for style in ("concise", "sentence", "cot")
}


_PROBED = {  # study -> what it says beside that of the lineage
    "mechanism": "base models trained alike but for what they could learn to anticipate",
    "difficulty": "questions of graded difficulty, three styles, base models of three seeds",
    "along-training": "base models of three seeds at fourteen steps of their training",
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
    found["sweep-real-triviaqa.png"] = "real/gemma-3-270m__triviaqa__concise__exact/looks/sweep/sweep.png"
    found["transfer-routes.png"] = "transfer/transfer.png"
    found["verdict-lineage.png"] = "lineage/figures/verdict.png"
    for study in ("lineage", "ablation"):
        found[f"models-{study}.png"] = f"{study}/figures/models.png"
    for study in ("lineage", *_PROBED):
        found[f"predictability-{study}.png"] = f"{study}/figures/predictability.png"
    found["emergence.png"] = "checkpoints/figures/emergence.png"
    found["emergence-along-training.png"] = "along-training/figures/emergence.png"
    for family in ("facts", "myths"):
        cell = f"base__atlas-{family}__concise__exact"
        found[f"reliability-shift-{family}.png"] = f"shift/{cell}/figures/reliability.png"
    return found


@dataclass(frozen=True)
class Shown:
    """Pictures of one kind: their names in figures/ as a pattern, a heading, what they say, the command that makes
    them."""

    names: str
    heading: str
    says: str
    command: str


_LINEAGE = "semcal run experiments/studies/lineage.yaml"
_CHAIN = "semcal run experiments/studies/chain.yaml"
_ROUTES = "runs/demo/atlas-base__atlas-routes"
SHOWN = (
    Shown(
        "reliability-[fr]*.png",
        "Reliability diagram",
        "Accuracy against B-confidence, smoothed as in smECE, of atlas-base on 1,000 questions with M = 50: the "
        "bootstrap band, in grey where a calibrated model would lie, ticks for right and wrong answers, and the "
        "histogram of confidence. On the diagonal, confidence is justified; only "
        "chain-of-thought on routes is far off it.",
        "make demo",
    ),
    Shown(
        "reliability-shift-*.png",
        "Where the training text is wrong",
        "The same in `concise`: facts, and myths, where the training text is wrong about half of the people.",
        "semcal run experiments/studies/shift.yaml",
    ),
    Shown(
        "real-reliability-*.png",
        "Two real models side by side",
        "Reliability diagrams of two real models on real questions: one row a dataset, one column a model.",
        "make real",
    ),
    Shown(
        "horizon-word*.png",
        "Words ahead",
        "Reliability diagrams of a public story model, B = the K-th word, 1,000 prompts, M = 50.",
        "make horizon",
    ),
    Shown(
        "risk-coverage-*.png",
        "Answering only when sure",
        "Error rate among the most confident questions, with bootstrap band, between the best order and none.",
        "make demo",
    ),
    Shown(
        "m-curve-*.png",
        "Finite M",
        "Confidence, accuracy and smECE of random subsets of the samples against M, with the limit M → ∞ and its "
        "interval.",
        "make demo",
    ),
    Shown(
        "profile-*.png",
        "Other collapsing functions",
        "The same samples under first token, first word, length and meaning: smECE next to calibrated models, "
        "confidence and accuracy.",
        "make demo",
    ),
    Shown(
        "knowing-*.png",
        "When the answer is decided",
        "Expected largest class probability after so many tokens; mean and middle half of 1,000 questions.",
        "make demo",
    ),
    Shown(
        "layers-*.png",
        "Layer by layer",
        "Above, the KL gap of a linear probe by layer, at the last prompt token, in nats, with interval, baselines and "
        "what a perfect predictor would show; below, the share of KL explained, with the permutation null over the "
        "maximum of the layers, control task and noise ceiling.",
        "make demo",
    ),
    Shown(
        "positions-*.png",
        "Layer by position",
        "KL gap of linear probes in nats: before generation, along the answer, before the answering phrase.",
        _CHAIN,
    ),
    Shown(
        "rungs-*.png",
        "The ladder of probes",
        "KL gap of every rung and every baseline at each position, last layer, with intervals and what a perfect "
        "predictor would show.",
        _CHAIN,
    ),
    Shown(
        "commitment-*.png",
        "Decided and readable",
        "Above, how decided the answer is along the way; below, the KL gap of linear probes at that point.",
        _CHAIN,
    ),
    Shown(
        "transfer-*.png",
        "Transfer",
        "Linear probes at the last layer, trained on one style of routes and tested on each.",
        f"make demo; semcal transfer {_ROUTES}__{{concise,sentence,cot}}__exact",
    ),
    Shown(
        "ablation-*.png",
        "Ablation",
        "Ablating the probe's rank-8 subspace at the last layer, compared with 100 isotropic and 100 variance-matched "
        "random subspaces.",
        f"{_LINEAGE}; semcal intervene runs/lineage/base__atlas-routes__concise__exact --rank 8 --random 100",
    ),
    Shown(
        "steering-*.png",
        "Steering",
        "Dose and response: −4 to +4 standard deviations along the direction in which probes read B-confidence, "
        "compared with 20 isotropic and 20 variance-matched directions.",
        f"make demo; semcal intervene {_ROUTES}__concise__exact --kind steer -n 200",
    ),
    Shown(
        "sweep-routes-*.png",
        "Many Bs on the same samples",
        "Excess smECE against the KL gap under 62 Bs that join classes; shaded is what the theory forbids.",
        f"make demo; semcal score {_ROUTES}__cot__exact --semantics sweep",
    ),
    Shown(
        "sweep-real-*.png",
        "One run of a real model under many Bs",
        "The same of Gemma 3 270M on 300 questions of TriviaQA, M = 50.",
        "make real",
    ),
    Shown(
        "models-lineage.png",
        "Base and tuned models",
        "Accuracy, signed gap and excess smECE of base, SFT, DPO and GRPO under chat and few-shot prompts, 2,000 "
        "questions per cell; the dashed line is the tolerance δ.",
        _LINEAGE,
    ),
    Shown(
        "models-ablation.png",
        "What in tuning breaks it",
        "The same three figures along the strength of DPO and GRPO, the size of SFT and the shape of the reward, 500 "
        "questions per cell.",
        "make ablation",
    ),
    Shown(
        "predictability-lineage.png",
        "Predictable and calibrated",
        "Excess smECE against the KL gap, 42 runs, with the tolerances of the rule and the line through the runs of "
        "models trained by a proper loss, fitted with errors in both directions. It is that of the points shown, by "
        "shares of samples and at the last layer; the verdict takes confidence by mass, and the layer that other "
        "questions choose.",
        _LINEAGE,
    ),
    *(
        Shown(
            f"predictability-{study}.png",
            f"Predictable and calibrated: {study}",
            f"The same of {says}.",
            f"make {study}",
        )
        for study, says in _PROBED.items()
    ),
    Shown(
        "emergence.png",
        "Along training",
        "KL gap and excess smECE by training step, 300 questions per cell.",
        "make checkpoints",
    ),
    Shown(
        "emergence-along-training.png",
        "Along training, three seeds",
        "KL gap of the generative LoRA and excess smECE by training step, 300 questions per cell.",
        "make along-training",
    ),
    Shown(
        "verdict-*.png",
        "The verdict",
        "One panel a hypothesis: the figures that its rule asks for, with intervals, and the single cells in grey.",
        f"{_LINEAGE}; semcal verdict experiments/studies/lineage.yaml",
    ),
    Shown(
        "sampler-growth.png",
        "Speed of the sampler",
        "Time of sampling 8 questions against M (100-token prompts) and against prompt length (M = 50), semcal and "
        "`generate`, each relative to semcal at the smallest.",
        "python -m experiments.bench growth --figure figures/sampler-growth.png",
    ),
)
_OPENING = """# Gallery

Every figure in [figures/](../figures/README.md), what it says, and the command that makes it. This page is written by
`python -m experiments.report.gallery`. `semcal report RUN` writes each figure of a run as PNG, SVG and PDF;
`--width 3.25` draws them for a column of a paper. From a notebook: `semcal.Run.open(folder).plot.reliability()` and
`probes.plot(run).layers()` ([figures](studies.md#figures)).
"""


def of(name: str) -> Shown | None:
    """The entry that a picture in figures/ belongs to; the one with most letters in its pattern, where several fit."""
    fits = [shown for shown in SHOWN if fnmatch(name, shown.names)]
    return max(fits, key=lambda shown: len(shown.names.replace("*", "")), default=None)


def page(figures: Path, folder: Path) -> str:
    """docs/gallery.md: a section for each kind of picture that is in `figures`, as seen from `folder`."""
    names = sorted(path.name for path in figures.glob("*.png"))
    lines = [_OPENING]
    for shown in SHOWN:
        own = [name for name in names if of(name) == shown]
        if not own:
            continue
        where = Path(relpath(figures, folder)).as_posix()
        commands = shown.command.replace("; ", "\n")
        lines += [f"## {shown.heading}", "", shown.says, "", "```", commands, "```", ""]
        lines += [f"![{_alternative(name)}]({where}/{name})" for name in own] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _alternative(name: str) -> str:
    """What stands for a picture that is not seen."""
    return Path(name).stem.replace("-", " ")


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
    parser.add_argument("--page", type=Path, default=Path("docs/gallery.md"))
    options = parser.parse_args()
    if not options.into.is_dir():
        parser.error(f"{options.into} is not a folder; name one with --into")
    if not options.page.parent.is_dir():
        parser.error(f"{options.page.parent} is not a folder; name a page with --page")
    copied, absent = collect(options.runs, options.into)
    if not any(options.into.glob("*.png")):
        sys.stderr.write(f"no picture below {options.runs}; `semcal run` the studies first, or name their --runs\n")
        raise SystemExit(2)
    text = page(options.into, options.page.parent)
    write_atomically(options.page, lambda path: path.write_text(text, encoding="utf-8"))
    sys.stdout.write(f"{len(copied)} pictures copied to {options.into}; written: {options.page}\n")
    if absent:
        sys.stdout.write(f"not drawn yet: {', '.join(absent)}\n")


if __name__ == "__main__":
    main()
