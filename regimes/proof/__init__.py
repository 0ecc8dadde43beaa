"""Does searching on proxies pay? Settings are recorded once; every way to search is replayed on them, and scored.

``courses`` (what is trained) -> ``recording`` -> ``tape`` -> ``replayed``, ``pool``, ``arms`` -> ``scores``,
``fidelity``, ``over_map`` -> ``sheets``, ``figures``; ``live`` trains some of the searches for comparison.
"""
