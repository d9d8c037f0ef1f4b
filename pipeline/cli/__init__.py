"""The command line: parsing, the commands, their help, completion, and `init`."""
