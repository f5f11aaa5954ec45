"""Tools that ship: the public functions of these files, and classes whose objects are called.

Arguments of a function are the model's; those of a class's __init__ are the recipe's. What several tools share lies in
`parts/`.
"""
