"""The commands, one file each: what a command prints and which parts it calls. `flowrl.cli` puts them together.

Commands import what they need when they run, so that a mistake in a recipe is reported before torch is loaded.
"""
