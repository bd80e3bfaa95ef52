"""`python -m bentos serve`: the whole system in the foreground."""

from __future__ import annotations

import os
from pathlib import Path

import click
from platformdirs import user_cache_path

from bentos.running import SYSTEM, serve_command, serve_environment


@click.group()
def main() -> None:
    """Run Joing."""


@main.command()
@click.option("--port", default=3000, show_default=True, help="Where the gateway listens.")
@click.option("--host", help="Default: loopback without an API key, every interface with one.")
def serve(port: int, host: str | None) -> None:
    """Run every service on this machine until Ctrl-C."""
    has_key = bool(os.environ.get("JOING_API_KEYS", "").strip(" ,"))
    host = host or ("0.0.0.0" if has_key else "127.0.0.1")  # noqa: S104 - only with a key
    if not has_key:
        click.echo("No API key: only this machine may call. JOING_API_KEYS=... opens it.", err=True)
    home = os.environ.get("JOING_HOME") or str(user_cache_path("joing"))
    command = serve_command(SYSTEM, host=host, port=port)
    environment = serve_environment(Path(home) / f"bentoml-{port}", {"JOING_HOME": home})
    os.execvpe(command[0], command, environment)  # noqa: S606 - the same interpreter


if __name__ == "__main__":
    main()
