"""What Streamlit runs: two scripts and their configuration, alone in a folder, for it puts that first on sys.path."""
