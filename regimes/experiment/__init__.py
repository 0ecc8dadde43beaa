"""The experiment: train -> prune -> retrain -> measure, each stage content-addressed and idempotent.

Start reading in `run.py`, then `prepare.py`; `plan.py` lays the stages out, the four stage files do the work.
"""
