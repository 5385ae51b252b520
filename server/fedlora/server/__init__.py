"""The aggregation server: rounds, admission, the strategy and ServerApp, and the run on disk."""
