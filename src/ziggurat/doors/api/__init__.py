"""The HTTP API of a system: what monitors and controls it from elsewhere. Stable under /api/v1, described at /api/v1/openapi.json.

    GET    /api/v1/runs                    RunPage     ?status=&workflow=&namespace=&since=&until=&tag=K=V&parent=&search=&limit=&after=
    GET    /api/v1/runs/counts             Counts      the same filters: how many, by status
    POST   /api/v1/runs                    Run         {workflow, input, id?, tags?, priority?, budget?, namespace?}; 201
    GET    /api/v1/runs/{id}               Run         with input, result and state
    GET    /api/v1/runs/{id}/history       EventPage   ?after=SEQ&limit=
    GET    /api/v1/runs/{id}/steps         StepList    those under way included
    GET    /api/v1/runs/{id}/events        SSE         see `ziggurat.doors.api.streams`; resumes with Last-Event-ID, ?after=SEQ
    POST   /api/v1/runs/{id}/signal        Run         {name, value, signal_id?}
    POST   /api/v1/runs/{id}/cancel|pause  Run         {reason?}
    POST   /api/v1/runs/{id}/resume        Run         {budget?}
    POST   /api/v1/runs/{id}/retry         Run         {}
    POST   /api/v1/runs/{id}/fork          Run         {step, input?, id?}; 201, the new run
    DELETE /api/v1/runs/{id}               Count       deletes an ended run with its history

    GET    /api/v1/schedules[/{name}]      ScheduleList, ScheduleView
    PUT    /api/v1/schedules/{name}        ScheduleView  ScheduleOrder
    DELETE /api/v1/schedules/{name}
    POST   /api/v1/schedules/{name}/pause|resume|trigger|backfill

The shapes are in `ziggurat.doors.api.shapes`. Every error is a Problem, {"error": {"type", "message"}}: 400 or 422 bad input, 401 no
credentials, 403 not allowed, 404 unknown or of another tenant, 409 the verb does not apply, 413 too large, 429 too often, 503 a layer
is unreachable.

A caller is an API key (`Authorization: Bearer zk_…`), a login (a cookie; verbs then need the header X-CSRF-Token), or, while the server
is bound to loopback and `[server] auth` is "auto", anyone on this machine. Roles are viewer < operator < admin; a key belongs to one
namespace or, with "*", to all.

Nothing here is imported by `import ziggurat` or by commands that do not serve.
"""

from __future__ import annotations
