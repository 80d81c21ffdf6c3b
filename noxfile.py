"""Sessions of nox: ``nox -s docker`` runs what is promised in containers of a Docker daemon."""

from __future__ import annotations

import nox

nox.options.sessions = ["docker"]


@nox.session(venv_backend="none")
def docker(session: nox.Session) -> None:
    """Run the checks in real containers; skipped where no daemon answers."""
    # The environment is the scripts' own, with the versions of requirements/.
    session.run("./scripts/docker-matrix", *session.posargs, external=True, success_codes=[0, 3])
