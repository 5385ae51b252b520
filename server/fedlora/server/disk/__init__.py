"""A run's folder: whose it is, the journal that it goes on from, adapters on their way, and finished ones."""
