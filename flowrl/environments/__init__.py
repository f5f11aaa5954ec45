"""What answers a model between its turns: tools, environments, and how they are written and read as tokens.

functions.py   plain typed functions as tools
classes.py     a class whose methods are the tools and which keeps its own score, as TRL's are
schemas.py     what a model is told of a tool, and whether its arguments fit
calls.py       calls in what a model said
observations.py  the tokens that a chat template adds for what a model is shown
workers.py     calls beside the main thread, each with a deadline
building.py    the environment that a recipe names
tools/         tools that ship, one or a few a file: its public functions, and classes that are called
plugins/       environments of other projects, one a file
"""
