"""The REST API: routes that parse, call and render. No SQL, no transitions, no phase comparisons."""
