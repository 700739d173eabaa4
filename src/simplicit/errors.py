"""The exceptions a user sees: a line that names what is wrong and what would be accepted."""


class InputError(ValueError):
    """Bad input from outside: configuration, data, files, networks, arguments.

    The message is one line that names the offending thing and what would be accepted.
    The command line prints it and exits with code 2.
    """


class WorkerError(RuntimeError):
    """A piece of work that ends whatever worker takes it.

    The message is one line that names the piece and says what may help. The command line prints it
    and exits with code 1; what is finished is kept.
    """
