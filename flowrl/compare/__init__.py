"""Several recipes side by side: a grid of runs, what they reached at equal time and calls, and a page that shows it.

grid makes the runs, execute runs them as processes of their own, collect reads what they left, curves and verdict
compare it, drift measures the trained models themselves, and page, plots, tables and markdown show it all.
"""
