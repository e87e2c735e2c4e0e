"""The app: `streamlit run app.py`. One page per question; the status line says what is in memory."""

from shortviz.ui import frame

page = frame.navigation()
frame.open_page(page)
page.run()
frame.close_page()
