"""What changes no number: params, files, processes, logs, unfinished runs. No stage depends on it."""
