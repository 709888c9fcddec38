"""Models to and from the files that `transformers` and other tools read (docs/export.md)."""
