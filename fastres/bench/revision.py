"""The git revision of the fastres that was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def of_fastres(package: Path | None = None) -> str | None:
    """The git revision of fastres's checkout, followed by "+changes" if files differ from it.

    Args:
        package: the folder of the package; None finds it.

    Returns:
        None if git or the checkout is not there, or if fastres is installed inside somebody else's.
    """
    package = package or Path(__file__).parent.parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    revision = _git(package, "rev-parse", "HEAD")
    if not revision:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changed else revision


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
