"""Faults on a timeline while a load runs, and what each cost the clients.

A fault (timeline.py) begins and ends; processes.py, link.py, disk.py and youtube.py have the kinds,
plan.py reads them from a file, effects.py works out losses from a run's records.
`python -m loadtests.faults PLAN --out FOLDER`, beside `python -m loadtests run`.
"""
