"""A run's folder as one page: `read` what is there, `figures` and `evaluations` of it, `page` writes report.html.

It needs no torch, no server and no network, and works with whatever files a running or a killed run has left.
"""
