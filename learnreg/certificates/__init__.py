"""A-posteriori bounds: pure functions of iterates, one lemma each. They judge any (x, X) and trust no solver."""
