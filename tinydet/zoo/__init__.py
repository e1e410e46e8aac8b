"""`tinydet models`: which models are bundled or at hand, what they find, and how well."""
