"""The parts of scripts/compare_mergekit.py."""
