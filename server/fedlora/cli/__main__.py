"""`python -m fedlora.cli`: the command where its script is not on the path."""

from fedlora.cli.main import main

if __name__ == "__main__":
    main()
