"""Recipes: YAML and `key=value` in, checked values out.

schema has the keys, load reads a recipe, checks tests whether its values fit together, errors turns every mistake into
one line. Nothing here imports torch unless a recipe names a user's own module that does.
"""
