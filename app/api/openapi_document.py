"""The OpenAPI document: its title page, and what FastAPI leaves out.

Doesn't change what routes do. Links are in openapi_links.py, examples in examples.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.access import SAFE_METHODS, SECURITY_SCHEME, GuardedRoute
from app.api.host_check import is_open
from app.api.problems import ProblemDocument, responses

DESCRIPTION: Final = "All-or-nothing transactions across HTTP services: try, then confirm or cancel."
TAGS: Final = [
    {"name": "transactions", "description": "Begin transactions, find them, wait for them, cancel them."},
    {"name": "participants", "description": "The registry: which services take part, and where they are."},
    {"name": "admin", "description": "For operators: what is stuck, and what you can do about it."},
    {"name": "keys", "description": "For admins: who may use this API."},
    {"name": "health", "description": "Probes and metrics for whatever runs the process."},
]
_BEFORE_ROUTES: Final = {str(status): answer for status, answer in responses("untrusted-host").items()}
"""What is answered before a route runs, whatever the route."""
_REFUSALS: Final = {
    str(status): answer for status, answer in responses("unauthenticated", "forbidden", "rate-limited").items()
}
"""What is answered where keys are needed."""
_FOREIGN: Final = {
    str(status): answer
    for status, answer in responses("unauthenticated", "forbidden", "foreign-origin", "rate-limited").items()
}
"""The same for what a browser must not be made to send."""
_SECURITY: Final = {
    SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "description": "An API key, where HOLDFAST_AUTH needs one."}
}


def install(app: FastAPI) -> None:
    """Have `app.openapi()` return the completed document."""
    app.openapi = partial(_completed, app, app.openapi)  # type: ignore[method-assign]


def _completed(app: FastAPI, generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    document = generate()
    document["components"]["schemas"][ProblemDocument.__name__] = ProblemDocument.model_json_schema()
    document["components"]["securitySchemes"] = _SECURITY
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                _restore_examples(route, operation)
                if not is_open(route.path_format):
                    operation["responses"] |= _BEFORE_ROUTES
                if isinstance(route, GuardedRoute) and route.roles:
                    operation["responses"] |= _REFUSALS if method in SAFE_METHODS else _FOREIGN
    return document


def _restore_examples(route: APIRoute, operation: dict[str, Any]) -> None:
    """FastAPI drops every null from the document, and so from the examples."""
    for status, answer in route.responses.items():
        for media_type, declared in answer.get("content", {}).items():
            if "examples" in declared:
                operation["responses"][str(status)]["content"][media_type]["examples"] = declared["examples"]
