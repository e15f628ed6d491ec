"""What contests published: their tables as data, so that a record here has something beside it."""
