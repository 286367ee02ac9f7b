"""`python -m inflcli` is the same programme as `inflcli`."""

from inflcli.cli import main

if __name__ == "__main__":
    main()
