"""What a load run says, for people and for machines.

`python -m loadtests.report watch` beside a run notes what the servers say and use (server.json);
`python -m loadtests.report make FOLDER` turns a run's folder, with faults.json and capacity.json
where they are there, into report.html (one file, no network), report.json and a table.
"""
