"""Rehearsal: real gunicorn processes, a steady load and a platform that deletes instances.

What it proves cannot be proved from inside a process: whether a client saw every answer. So nothing
here imports the rest of the plugin, but for the root of its exceptions; the instances are driven as
Kubernetes drives them, by command line, signals and sockets.

``fleet`` runs gunicorn, ``platform`` routes and deletes, ``load`` sends requests, ``tally`` counts
what became of them, ``scene`` puts these together and ``report`` tells the result. They need h11
(``gunicorn-grace[rehearse]``), so this file imports none of them: the command line loads without
h11.
"""
