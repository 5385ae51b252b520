"""The rounds of a run: who is asked, what may count, when a round is over, and what it leaves."""
