"""A fuzzer of the commands: damaged and hostile input through the real `main(argv)`; see `python -m tests.fuzz -h`."""
