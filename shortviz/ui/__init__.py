"""The app's side of shortviz: the only package here that imports streamlit."""
