"""`semcal report`: figures, tables and HTML pages of runs and studies."""
