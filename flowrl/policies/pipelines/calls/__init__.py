"""One call of a pipeline on behalf of a walk.

passes.py        the call itself, which policy, probe and looks are made of
arguments.py     what the pipeline is called with
working_copy.py  the working copy of a pipeline that all sits on
shortcuts.py     what diffusers asks of a pipeline's modules in every call, answered once
gates.py         stand-ins for the pipeline's modules, which skip denoiser calls when a walk is fast-forwarded
autoencoders.py  decoding, a few rows at a time
layouts.py       what a pipeline returned, as pictures, video and sound; structures.py: copies of nested results
"""
