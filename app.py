"""The app: `streamlit run app.py`. One page per question; the status line says what is in memory."""

import streamlit as st

from shortviz.ui import frame

st.set_page_config(page_title="shortviz", page_icon=":material/layers_clear:", layout="wide")

page = st.navigation(
    [
        st.Page("pages/map.py", title="Map", icon=":material/grid_on:", url_path="map", default=True),
        st.Page("pages/model.py", title="Model", icon=":material/deployed_code:", url_path="model"),
        st.Page("pages/export.py", title="Export", icon=":material/download:", url_path="export"),
        st.Page("pages/runs.py", title="Runs", icon=":material/history:", url_path="runs"),
    ],
    position="top",
)
frame.open_session()
frame.status_line()
page.run()
frame.close_page()
