"""What is recorded of a run: events as they happen, a report of each round, and what sums them up."""
