"""The version: the one place where it is written; and those of other packages."""

from __future__ import annotations

__version__ = "0.1.0"


def installed(*packages: str) -> dict[str, str]:
    """The versions of packages, by name; those that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: found for package in packages if (found := of(package))}
