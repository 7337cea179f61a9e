"""How the catalog's tables came to be: one revision per change, run by `pipeline.catalog.migrate`."""
