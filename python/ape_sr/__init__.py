"""The super-resolution system on top of ape_kernels: networks, data, training, evaluation, command line."""
