"""The command line: options, what is printed, exit codes."""
