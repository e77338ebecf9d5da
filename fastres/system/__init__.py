"""The machine and the process: hardware, threads, forks, devices, files, versions of torch."""
