"""Whether any route of an alias can satisfy what the alias demands, said when it is written rather than when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ziggurat.settings.inference import EndpointSettings, ModelSettings


def unserved(alias: str, model: ModelSettings | None, routes: Sequence[str], endpoints: Mapping[str, EndpointSettings]) -> str:
    """Return a sentence if no route is in the regions and of the quality that an alias demands; "" if one is, or nothing is demanded."""
    if model is None:
        return ""
    placed = [route for route in routes if not model.regions or _endpoint(route, endpoints).region in model.regions]
    if not placed:
        return (
            f"The model {alias!r} must stay in {' or '.join(map(repr, model.regions))}, and none of its routes is there "
            f"({', '.join(routes)}); set region of [inference.endpoints], or add a route."
        )
    if model.quality and not any(_quality(route, endpoints) >= model.quality for route in placed):
        return (
            f"The model {alias!r} asks for a quality of {model.quality}, and none of its routes is rated so ({', '.join(placed)}); "
            "set quality of [inference.endpoints], or add a route."
        )
    return ""


def _endpoint(route: str, endpoints: Mapping[str, EndpointSettings]) -> EndpointSettings:
    return endpoints.get(route.partition(":")[0]) or EndpointSettings()


def _quality(route: str, endpoints: Mapping[str, EndpointSettings]) -> int:
    known = _endpoint(route, endpoints).quality
    return known.get(route.partition(":")[2]) or known.get("*", 0)
