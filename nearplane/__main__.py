"""`python -m nearplane`, and `torchrun -m nearplane`: the command line."""

from nearplane.cli import main

if __name__ == "__main__":
    main()
