"""The loop that makes decisions durable and carries them out, on this replica and alongside others."""
