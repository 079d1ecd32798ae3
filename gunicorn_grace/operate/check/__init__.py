"""``gunicorn-grace check``: judges manifests, before they cost a request.

``documents`` reads the input, ``launch`` the command of a container, ``seen`` the settings that
count. The rules are in ``budget``, ``probing``, ``process`` and ``rollout``; ``judging`` runs them.
``patch`` makes what ``--fix`` prints, and ``output`` writes text, JSON and SARIF. Nothing of a
manifest is ever run, and a configuration file is read, not executed.
"""
