"""What can go wrong inside an evaluation, beside a language model's errors
(services/shared/language_model.py) and a database's (services/shared/storage.py).

UnknownPrompt          no such prompt version: 422
"""

from __future__ import annotations


class UnknownPrompt(Exception):
    pass
