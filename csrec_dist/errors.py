"""The one exception that is the user's to mend."""


class UserError(Exception):
    """The user's input or configuration is wrong.

    Its message says what was received, what is allowed and what to do. The command line prints it
    without a traceback and ends with exit status 2.
    """
