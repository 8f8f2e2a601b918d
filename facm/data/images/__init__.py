"""Images: files, and how they are decoded."""
