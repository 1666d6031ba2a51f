"""An HTTP server: jobs, the APIs of OpenAI and AUTOMATIC1111, and a page."""
