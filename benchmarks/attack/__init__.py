"""What a stranger can send to a server, to the page or as a file, and whether it holds."""
