"""Several recipes side by side: a grid of runs, what they reached at equal time and calls, and a page that shows it.

grid lists the runs, execute runs each as a process of its own, collect reads their results, curves and verdict compare
them, drift measures the trained models themselves, and page, plots, tables and markdown show it all.
"""
