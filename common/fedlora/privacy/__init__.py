"""Differential privacy: what noise costs, and the noise.

    accounting  epsilon of what was released with noise, by dp-accounting
    noise       Gaussian noise from a secure source

Nothing here knows clients, examples or a run: vectors and numbers in, values out.
"""
