"""Who answers: a checkpoint with its tokenizer. Knows no dataset."""

from semcal.models.load import DTYPES, LanguageModel, check_path

__all__ = ["DTYPES", "LanguageModel", "check_path"]
