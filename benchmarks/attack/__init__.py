"""Attacks: requests to the server and the page, and files, as a stranger may send them."""
