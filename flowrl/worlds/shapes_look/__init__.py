"""The world shapes-look: pictures that are seen too small, questions about them, and a zoom that small objects need.

`scenes` defines pictures, questions and what is held out, `render` draws them, `zoom` is the tool, `corpus` writes the
pretraining documents, `model` makes the tokenizer, the processor and the model, `pool`, `eye` and `pretrain` teach the
model to see and to speak, `build` and `cards` make and describe what is stored in `assets/`.
"""
