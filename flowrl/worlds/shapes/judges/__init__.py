"""Tiny reward models of the shapes world: a CLIP, an aesthetic head on it, and a vision-language judge.

`lookalikes` draws captions that a picture nearly shows, `damage` damages pictures, `pool` collects what the models are
trained and tested on; `clip`, `beauty` and `vlm` make one model each, and `build` makes all three with their cards.
"""
