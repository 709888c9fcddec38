"""`mads report`: one self-contained HTML page from a run folder."""

from mads.report.command import report_command, write_report

__all__ = ["report_command", "write_report"]
