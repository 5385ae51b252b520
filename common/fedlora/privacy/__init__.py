"""Differential privacy: what noise costs, and the noise.

    accounting  epsilon of what was released with noise, by dp-accounting
    sampled_steps
                epsilon of steps over secretly drawn examples
    spent       what of it has been spent, for whoever is told
    noise       Gaussian noise from a secure source

Nothing here knows clients, examples or a run: vectors and numbers in, values out.
"""
