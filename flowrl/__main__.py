"""`python -m flowrl`: the command line, for whom the script `flowrl` is not on the path."""

from flowrl.cli import main

if __name__ == "__main__":
    main()
