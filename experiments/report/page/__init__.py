"""The HTML pages of a run and of a study: their data, their templates, and the script that lets a reader explore them."""
