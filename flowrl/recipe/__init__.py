"""Recipes: YAML and `key=value` in, checked values out.

schema.py has the whole recipe, keys/ its sections, and checks/ whether its values fit together; load.py reads a recipe,
errors.py turns every mistake into one line, presets/ has published combinations. Nothing here imports torch unless a
recipe names a user's own module that does.
"""
