"""`semcal train`: how each stage of the bundled lineage is trained."""
