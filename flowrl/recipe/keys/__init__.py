"""The keys of a recipe, section by section: types, defaults, accepted values. None of them knows a whole recipe."""
