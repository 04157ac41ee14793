"""What stands in for AWS on this machine; the handlers do not know it is there."""
