"""`semcal verdict`: the hypotheses and the rules that decide them."""
