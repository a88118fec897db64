"""How far a probe's score can be trusted: folds, controls, baselines, ceilings."""
