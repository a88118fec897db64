"""What is asked: Question and Dataset records, readers of the named datasets, prompts by style.

Knows no model and no tokenizer.
"""

from semcal.questions.build import build
from semcal.questions.continuation import read_continuations
from semcal.questions.files import read_jsonl, read_table
from semcal.questions.named import NAMED, Named, read_named
from semcal.questions.question import CONTINUATION, STYLES, Dataset, Question

__all__ = [
    "CONTINUATION",
    "NAMED",
    "STYLES",
    "Dataset",
    "Named",
    "Question",
    "build",
    "read_continuations",
    "read_jsonl",
    "read_named",
    "read_table",
]
