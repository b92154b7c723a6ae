"""What is shown of finished runs: blocks, and the renderers that know nothing but blocks."""
