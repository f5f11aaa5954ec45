"""The commands, a file each: what it prints and which parts it calls. `flowrl.cli` puts them together.

Commands import what they need when they run: a mistake in a recipe is answered before torch is loaded.
"""
