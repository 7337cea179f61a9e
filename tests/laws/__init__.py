"""The laws of the merge rule as properties, a model of everything that can go wrong, and the mutants they must kill."""
