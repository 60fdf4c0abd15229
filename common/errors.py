"""The error that is meant for whoever uses the project."""


class UserError(ValueError):
    """Something that a user asked for or gave does not work: what is wrong, what was got, what to
    do. The scripts print it in one line (command_line/entry.py); other errors are faults of the
    program and keep their traceback."""
