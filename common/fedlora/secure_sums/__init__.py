"""Sums of which the server learns the total alone, after Bonawitz et al., CCS 2017 (doi 10.1145/3133956.3133982). Pure.

    ring          numbers in fixed point, whose sums are exact
    masks         what hides a vector: a stream from a seed
    shares        a secret among holders, of whom so many together have it (Shamir 1979)
    neighbours    who hides vectors with whom, and how many of them it takes
    keys          what members tell each other of their keys, and what they agree on
    roster        who takes part, by their keys, and what they sign of it
    member        a member's part in a sum
    gathering     the server's part
    adapter_sums  a round of adapters as sums, by the phases of its method
    round_terms   what server and clients alike make of a round's terms

Nothing here knows a network: bytes and numbers in, values out.
"""
