"""HTTP service over scenes of any size, with the results of `tinydet infer`, and the page that shows them."""
