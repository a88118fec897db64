"""`semcal probe` and `semcal intervene`: probes fitted to a run, and interventions on it."""
