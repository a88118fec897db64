"""The HTML pages of a run and of a study: data, templates, and the scripts that let a reader explore them."""
