"""The worker: a process that holds base model and data for its lifetime and runs the ClientApp on each request."""
