"""Are the tests of the toolkit valid? Planted truths, by simulation."""
