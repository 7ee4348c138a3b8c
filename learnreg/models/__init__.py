"""Model files and the names under which things are stored."""
