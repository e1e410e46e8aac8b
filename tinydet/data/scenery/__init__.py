"""The layers of a synthetic scene, one per module. `tinydet.data.synthetic` combines them."""
