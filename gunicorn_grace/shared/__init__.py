"""What any process of an instance may use: the memory, the settings, the phases. Knows neither
gunicorn nor Flask."""
