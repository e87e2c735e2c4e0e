"""The app: `streamlit run app.py`. One page per question; the status line says what is in memory."""

from shortviz.ui.pages import shell

page = shell.navigation()
shell.open_page(page)
page.run()
shell.close_page()
