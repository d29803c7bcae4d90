"""What makes a handler's effect happen exactly once: the fence as a table, its rows, and how both are carried out."""
