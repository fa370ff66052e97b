"""Sessions: what calls share a prefix with, so that they can be kept where it is cached."""

from __future__ import annotations

import hashlib

from ziggurat.inference.ledger import current_attribution
from ziggurat.records import Prompt


def session_of(prompt: Prompt) -> str:
    """Return the name of what a call shares a prefix with: what the program says, the run, or how the conversation began."""
    if prompt.session:
        return prompt.session
    run = current_attribution().run
    if run:
        return run
    # Up to the first word of the user, which a later turn of the conversation begins with too.
    began = hashlib.blake2b(digest_size=16)
    for message in prompt.messages:
        began.update(repr(message.content).encode("utf-8", "surrogatepass"))
        if message.role == "user":
            break
    return began.hexdigest() if prompt.messages else ""
