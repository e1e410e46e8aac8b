"""How datasets are laid out in folders: recognize a layout, its splits, annotations and images."""
