"""A run's folder as one page: `read` what is there, `figures` and `evaluations` of it, `page` writes report.html.

It needs no torch, no server and no network, and makes do with whatever a run under way or a killed one has left.
"""
