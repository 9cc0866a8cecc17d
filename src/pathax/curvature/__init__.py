"""What a second-order method must know about a loss, as pure functions."""

__all__: list[str] = []
