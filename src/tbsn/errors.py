"""What the user can mend: a bad file, model, folder or setting."""


class InputError(Exception):
    """One line that says what is wrong where, and what to do: ``name: reason; remedy``."""

    def __init__(self, name: object, reason: str, remedy: str) -> None:
        super().__init__(f"{name}: {' '.join(reason.split())}; {remedy}")
