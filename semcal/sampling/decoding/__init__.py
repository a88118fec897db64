"""One pass of a model over a tree of answers: which tokens are read, how they attend, and the fastest way to do it."""
