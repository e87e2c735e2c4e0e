"""The app: its screens, their parts, and what a visit remembers. The only room that imports streamlit."""
