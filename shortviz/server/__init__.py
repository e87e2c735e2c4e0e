"""How a server is started, and who may speak to it."""
