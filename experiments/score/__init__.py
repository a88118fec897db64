"""`semcal score`: from samples to classes and calibration figures."""
