"""``gunicorn-grace check``: finds mistakes in manifests before they cost a request.

``documents`` reads the input, ``launch`` reads the command of a container, and ``seen`` finds the
settings in use. The rules are in ``budget``, ``ports``, ``probing``, ``process`` and ``rollout``;
``judging`` runs them. ``patch`` makes the patches that ``--fix`` prints, and ``output`` writes
text, JSON and SARIF. No command of a manifest is ever run, and a configuration file is read but
not executed.
"""
