"""`puna plugins`: what is installed, and why something does not work. Asks no server."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..core.kernel import PluginReport, find_plugins
from ..core.settings import Settings
from .tables import columns


def list_plugins(settings: Settings) -> None:
    """Print a table of the plugins and, below it, the errors of those that are disabled."""
    logging.getLogger("puna").addHandler(logging.NullHandler())  # what is logged about a plugin is printed here
    reports = find_plugins(settings.plugins)
    print(plugin_table(reports), end="")
    for report in reports:
        if report.error is not None:
            print(f"\n{report.name} is disabled: {(settings.debug and report.traceback) or report.error}")


def plugin_table(reports: Sequence[PluginReport]) -> str:
    """Return a row for each plugin."""
    rows = [(report.name, _origin(report), _provided(report)) for report in reports]
    return columns([("NAME", "PACKAGE", "ARCHITECTURES"), *rows])


def _origin(report: PluginReport) -> str:
    return f"{report.distribution} {report.version}" if report.distribution else "PUNA_PLUGINS"


def _provided(report: PluginReport) -> str:
    return "(disabled)" if report.error is not None else ", ".join(report.names)
