"""Local stand-ins for AWS; the handlers need no change to run on them."""
