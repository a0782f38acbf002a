"""Scripts: run them as files; tests import from them."""
