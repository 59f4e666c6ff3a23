"""Command-line programs of users and admins."""
