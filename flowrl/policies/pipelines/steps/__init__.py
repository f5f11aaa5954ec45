"""One step of a pipeline's scheduler, and what takes its place.

intercepted.py   the one call that is intercepted: `scheduler.step`
ddim.py          the same of pipelines that predict noise, v or the image: they are walked by DDIM
dynamics.py      how a step becomes a distribution; coordinates.py: what a noise level is on a model's path
sigma_table.py   a scheduler's sigma table, and another one in its place
first_order.py   which scheduler is walked in the place of a pipeline's own
substeps.py      several steps of a teacher to one of the student's
"""
