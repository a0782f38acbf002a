"""What people run, as files; tests import from here."""
