"""The shapes world: captions about coloured shapes, a renderer, a checker without learned weights, a tiny FLUX.

`captions` says what can be asked for and what is held out, `render` draws it, `checker` scores a picture against
its caption, `tokenizers`, `model`, `pretrain` and `build` make the pipeline in `assets/`.
"""
