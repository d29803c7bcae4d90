"""Hooks for Alembic's `env.py`, so that autogenerate leaves the SDK's table alone and writes migrations that run.

Guide: docs/reference/sdk.md, "The table `holdfast_branches`". Doesn't import Alembic.
"""

from typing import Any, Literal

from holdfast.columns import ExactString
from holdfast.fence.rows import TABLE_NAME


def include_object(object: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """False for a table that the SDK created itself, which autogenerate would drop otherwise.

    Pass it to `context.configure(include_object=...)`, or call it in your own hook.
    """
    made_by_the_sdk = type_ == "table" and name == TABLE_NAME and reflected and compare_to is None
    return not made_by_the_sdk


def render_item(type_: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Renders the SDK's column type in a migration, with its import; False for everything else.

    Pass it to `context.configure(render_item=...)`, or call it in your own hook.
    """
    if type_ == "type" and isinstance(item, ExactString):
        autogen_context.imports.add("import holdfast.columns")
        return f"holdfast.columns.ExactString({item.length})"
    return False
