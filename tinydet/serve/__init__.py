"""HTTP service: jobs over scenes of any size, with the results of `tinydet infer`."""
