"""What serves a URL."""
