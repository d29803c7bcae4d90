"""The REST API: routes that parse, call the engine and render. No SQL, no transitions, no comparing of phases."""
