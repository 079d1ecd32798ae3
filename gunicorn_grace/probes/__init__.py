"""The answers to the probes, the application's checks, and the trigger. Runs in workers and in the
probe responder."""
