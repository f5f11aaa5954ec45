"""Python that a model wrote, run where it can do no harm: never in this process.

limits.py    what code may use, what came of it, and what goes wrong with a sandbox itself
box.py       the sandbox of one conversation: exec, write, close
inside.py    the program that runs the code, within
machines.py  sandboxes on this machine: bubblewrap, docker
remote.py    sandboxes by HTTP: SandboxFusion, E2B
"""
