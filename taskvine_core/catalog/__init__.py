"""How managers are found without a server: one small file per manager in a directory of the user."""
