"""The commands: what runs when somebody types ``gunicorn-grace``, in a process of its own."""
