"""Figures and the report: frames of results, drawn by matplotlib or as HTML."""
