"""A client's part in the secure sums of a round, over whatever bench trains: the update stays here.

signer        by what the others know it, and it knows them
kept          what it has said and heard in a round, on disk
own_part      its answers: keys with the training's receipt, and then step after step
"""
