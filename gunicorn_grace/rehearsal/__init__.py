"""Rehearsal: real gunicorn processes, a steady load and a platform that deletes instances.

A process cannot prove about itself that its clients saw every answer. So the rehearsal controls the
instances as Kubernetes does: by command line, signals and sockets. From the rest of the package it
imports only the root of the exceptions, the manifest reader and the rules of ``gunicorn-grace
check``. The configuration of the plain contender runs inside gunicorn and imports a little more.

``plan`` describes a rehearsal, ``run`` plays it and ``result`` holds its outcome. They use four
folders: ``processes`` runs gunicorn and the balancers, ``kubernetes`` routes, probes and deletes,
``load`` sends and counts requests, and ``report`` presents the result. ``command`` is the command
line. Most of it needs h11 (``gunicorn-grace[rehearse]``), but this file imports nothing, so the
command line loads without h11.
"""
