"""How tests with generated examples run: the same examples each time, so that a change alone decides.

`pytest --hypothesis-profile=explore` looks at new ones.
"""

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile("steady")
