"""What a run will cost, stage by stage, before it starts.

    outline    the model from its config alone: tracked modules, FLOPs of a pass, what it holds
    work       what is to be done: sequences, queries, settings with nothing left to choose
    rates      how fast and in what memory the device does it: measured, or guessed
    timing     measurements for `rates`: the passes, eigenvectors, queries and scores for real
    estimates  the stages' FLOPs, seconds, bytes in memory and on disk, from all of these
    advice     what does not fit, and the option that mends it

What the stages decide is decided here by the stages' own functions.
"""
