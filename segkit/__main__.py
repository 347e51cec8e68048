"""`python -m segkit COMMAND ...`"""

from segkit.cli import main

if __name__ == "__main__":
    main()
