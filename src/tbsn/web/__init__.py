"""A page in the browser (needs gradio): `tbsn serve`."""
