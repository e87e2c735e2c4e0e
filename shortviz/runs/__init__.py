"""The run on disk: its folder, its zip, the library of runs, the report. No torch."""
