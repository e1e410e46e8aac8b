"""HTTP service over scenes of any size, with the results of `tinydet infer`; the page that shows them; `tinydet view`."""
