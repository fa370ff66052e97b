"""What a call needs of a route beside an answer: the regions that it must stay in, and how good the model must be.

Whoever says something narrows the choice, and nobody widens it: the call itself, the alias, the workflow and the tenant. A route that does
not satisfy all of them is not asked, whatever fails: not by fallback, not by a hedge, not as a shadow, not for a budget's sake. An endpoint
whose region nobody named satisfies no demand for one, for a prompt that has left cannot be called back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ziggurat.inference.interface import Capabilities, ModelConfig
from ziggurat.inference.ledger import current_attribution
from ziggurat.inference.parts import kinds_in
from ziggurat.inference.tokens import raw_tokens
from ziggurat.records import Prompt


class Residency(Struct, frozen=True, kw_only=True):
    """Where the prompts of somebody may go."""

    #: By namespace; "*" for each that is not named.
    tenants: Mapping[str, Sequence[str]] = {}
    #: By workflow.
    workflows: Mapping[str, Sequence[str]] = {}


class Needs(Struct, frozen=True, kw_only=True):
    """What one call needs."""

    #: Who demands to stay in which regions.
    regions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    #: From 1 to 5; 0 for any.
    quality: int = 0


NOTHING = Needs()


def needs_of(prompt: Prompt, config: ModelConfig | None, residency: Residency) -> Needs:
    """Return what a call needs by all who have a say in it."""
    quality = max(prompt.quality, config.quality if config is not None else 0)
    demands: list[tuple[str, Sequence[str]]] = []
    if prompt.region:
        demands.append(("the call", (prompt.region,)))
    if config is not None and config.regions:
        demands.append((f"the model {prompt.model!r}", config.regions))
    if residency.workflows or residency.tenants:
        by = current_attribution()
        if regions := residency.workflows.get(by.workflow):
            demands.append((f"the workflow {by.workflow!r}", regions))
        if regions := residency.tenants.get(by.namespace, residency.tenants.get("*", ())):
            demands.append((f"the tenant {by.namespace!r}", regions))
    if not demands and not quality:
        return NOTHING
    return Needs(regions=tuple((who, tuple(regions)) for who, regions in demands), quality=quality)


def unmet(needs: Needs, region: str, quality: int) -> str:
    """Return which need a route does not satisfy, or "" if it satisfies all."""
    for who, regions in needs.regions:
        if region not in regions:
            where = f"it is in the region {region!r}" if region else "no region is set for its endpoint"
            return f"{where}, and {who} must stay in {' or '.join(map(repr, regions))}"
    if quality < needs.quality:
        how = f"its quality is {quality}" if quality else "no quality is set for it at its endpoint"
        return f"{how}, and {needs.quality} is asked for"
    return ""


def misfit(prompt: Prompt, capabilities: Capabilities) -> str:
    """Return why a route cannot serve the prompt, or "" if it can, as far as is known."""
    kinds = kinds_in(prompt)
    for kind, taken in (("image", capabilities.vision), ("file", capabilities.files)):
        if kind in kinds and not taken:
            setting = "vision" if kind == "image" else "files"
            remedy = f"set {setting} = true in [inference.models.{prompt.model}.capabilities] if it does"
            return f"it takes no {kind}s; name a route that does, or {remedy}"
    return ""


def overlong(prompt: Prompt, context: int) -> str:
    """Return why a prompt does not fit a model's context, or "" if it does or may. `context` is 0 if it is not known."""
    if not context:
        return ""
    tokens = raw_tokens(prompt)
    # What is in doubt is left to the endpoint, which knows: the estimate may be a third too high.
    if tokens * 0.66 > context:
        return f"the prompt of about {int(tokens):,} tokens does not fit its context of {context:,}"
    return ""
