"""`semcal compare` and `semcal transfer`: several runs side by side."""
