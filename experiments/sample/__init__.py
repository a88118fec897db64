"""`semcal run`, first half: prompts, sampling and capture of one cell."""
