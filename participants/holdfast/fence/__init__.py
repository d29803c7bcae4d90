"""Makes a handler's effect happen exactly once: the fence as a table, its rows, and the code that executes both."""
