"""Exception groups, as `asyncio.TaskGroup` raises them. Must not judge what an exception means."""

from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deeply they are nested; an exception that is no group, itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from leaves(member)
    else:
        yield error
