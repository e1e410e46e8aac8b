"""What a synthetic scene is made of, one module each: see `tinydet.data.synthetic`, which puts it together."""
