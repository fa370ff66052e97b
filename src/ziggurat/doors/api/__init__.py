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
    DELETE /api/v1/runs/{id}               Count       admin: deletes an ended run with its history
    POST   /api/v1/bulk                    BulkView    {verb, ids? | status?, workflow?, tags?, search?, reason?, id?}; 202
    GET    /api/v1/bulk  /bulk/{id}        BulkList, BulkView: how far it has come
    GET    /api/v1/workflows  /{name}      WorkflowList, WorkflowView: JSON schemas of input and result, file_parameters
    POST   /api/v1/workflows/{name}/files  UploadAnswer  multipart: files, input?; ?batch=&parameter=&tag=; one run a file
    GET    /api/v1/approvals               ApprovalList  runs that wait for a signal, with the schema of its value; ?workflow=&after=
    GET    /api/v1/deadletters             DeadLetterList
    POST   /api/v1/deadletters/redrive|discard  Count  {ids} or {all: true}
    GET    /api/v1/schedules  /{name}      ScheduleList, ScheduleView; PUT, DELETE, POST pause|resume|trigger|backfill
    GET    /api/v1/costs                   CostList    ?by=workflow|model|day|tenant|…&since=&until=&workflow=&model=&run=
    GET    /api/v1/budgets                 BudgetList  what may be spent, what is, and which runs are parked for it; ?namespace=
    GET    /api/v1/limits                  LimitList   tokens and requests of the last minute, calls at a time, and who waits
    GET    /api/v1/queues /workers /models QueueList, WorkerList, ModelList: of the whole system, for keys of all namespaces
    GET    /api/v1/session                 Session     who calls: {name, role, namespace, via, csrf_token, whole_system}
    POST   /api/v1/session                 Session     {key}: log in, sets the cookie; DELETE logs out
    GET    /api/v1/keys                    KeyList     admin; POST {name, role, namespace?, days?}, DELETE /{name}
    GET    /api/v1/audit                   AuditPage   admin; ?before=&action=&actor=
    GET    /api/v1/webhooks                WebhookList admin; POST /{id}/redeliver
    GET    /healthz /readyz /metrics
    GET    /metrics/targets                [Target]    where worker processes show theirs, as Prometheus's HTTP service discovery takes it

    PUT    /api/v1/models/{alias}          SwitchList    SwitchOrder: point an alias elsewhere
    POST   /api/v1/models/{alias}/rollback SwitchList
    GET    /api/v1/models/{alias}/switches SwitchList

The shapes are in `ziggurat.doors.api.shapes`. Every error is a Problem, {"error": {"type", "message"}}: 400 or 422 bad input, 401 no
credentials, 403 not allowed, 404 unknown or of another tenant, 409 the verb does not apply, 413 too large, 429 too often, 503 a layer
is unreachable.

A caller is an API key (`Authorization: Bearer zk_…`), a login (a cookie; verbs then need the header X-CSRF-Token), or, while the server
is bound to loopback and `[server] auth` is "auto", anyone on this machine. Roles are viewer < operator < admin; a key belongs to one
namespace or, with "*", to all.

Nothing here is imported by `import ziggurat` or by commands that do not serve.
"""

from __future__ import annotations
