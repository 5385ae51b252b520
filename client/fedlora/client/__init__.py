"""A client of the federation: the ClientApp, and the resident worker process that runs it."""
