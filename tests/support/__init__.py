"""What the tests share: real servers and clients, results of rehearsals, paths. Imported as
``support.servers``."""
