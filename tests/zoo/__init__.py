"""Models the tests optimise: the reference families, their quirks one by one, generated graphs."""
