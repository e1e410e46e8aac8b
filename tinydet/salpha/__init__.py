"""S-alpha: fusion factors from the annotations of a data set (Algorithm 1). numpy only."""
