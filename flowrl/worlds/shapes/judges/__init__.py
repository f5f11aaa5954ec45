"""Tiny reward models of the shapes world: a CLIP, an aesthetic head on it, and a vision-language judge.

`lookalikes` draws captions that a picture nearly shows, `damage` spoils pictures, `pool` gathers what they are trained
and tested on; `clip`, `beauty` and `vlm` make one model each, and `build` all of them, with their cards.
"""
