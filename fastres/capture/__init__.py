"""From a model to a graph: example, export, contract, and what the model must not notice."""
