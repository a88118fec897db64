"""The study of a file of questions: one model, short answers, everything else as by default."""

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from experiments.config.settings import slug
from experiments.config.study import ModelConfig, Study, load_study
from experiments.terminal.named_paths import TABLES
from semcal.errors import UserError
from semcal.questions.load_dataset import read_table
from semcal.runs.files import write_atomically

OUTPUT = "runs"
STUDY = "study.yaml"


def study_of_questions(
    table: Path, model: str, has_chat_template: Callable[[ModelConfig], bool], overrides: Sequence[str] = ()
) -> Study:
    """Write the study that asks a model the questions of a table, `runs/NAME/study.yaml`, and read it.

    A model with a chat template is asked through it, another by few-shot prompts. A study file that is there is kept if
    it says the same, so that the same command goes on where it was stopped.

    Args:
        table: A file that `semcal.questions.load_dataset.read_table` reads.
        model: A `path` of a study's `models`; not a server's address.
        has_chat_template: Looks the model up.

    Raises:
        UserError: no such table or model; the study there asks something else.
    """
    if not table.is_file():
        raise UserError(f"no file {table}; expected a table of questions ({', '.join(TABLES)}) or a study file")
    read_table(table)  # before the model is looked for: a mistake in it is said at once
    named = ModelConfig(path=model)
    if named.is_served:
        raise UserError(f"{model} is a server, which needs more settings; write a study file (docs/engines.md)")
    prompt = "chat" if has_chat_template(named) else "few-shot"
    study = {
        "name": slug(f"{table.stem}-{named.name}"),
        "models": [{"path": model, "prompt": prompt}],
        "datasets": [{"kind": TABLES[table.suffix.lower()], "path": str(table)}],
        "styles": ["concise"],
    }
    file = Path(OUTPUT) / study["name"] / STUDY
    text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise UserError(f"{file} asks something else; `semcal run {file}`, or rename the table or that folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    return load_study(file, overrides)
