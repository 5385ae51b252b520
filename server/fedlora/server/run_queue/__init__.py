"""Runs one after another at one server: what waits, what is over, and who does them."""
