"""The probe responder: the process behind the probe port."""
