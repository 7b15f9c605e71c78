"""The one error a user is meant to read: bad input, said in a sentence."""


class InputError(Exception):
    """Input that cannot be used; the message names the file, what is wrong and what to do.

    Commands print the message alone and exit with status 2.
    """
