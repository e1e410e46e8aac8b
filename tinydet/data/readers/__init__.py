"""Published annotation formats, a module each: `read` takes the files as they are and gives a `Collection`."""
