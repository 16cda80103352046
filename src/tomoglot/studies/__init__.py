"""Raw studies in, curated studies out."""
