"""`make bench`: what Holdfast costs, beside a ceiling and what people would otherwise have."""
