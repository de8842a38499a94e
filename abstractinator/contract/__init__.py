"""What a kind of model offers to the frame, and what passes between the two.

`model`: what every kind defines, to be trained, measured, saved and loaded. `capabilities`: what a kind may
offer in addition. The rest are the values that they exchange. Nothing here knows a kind, and a kind needs nothing else
of the frame.
"""
