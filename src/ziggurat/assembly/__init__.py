"""From settings to a running system. The only room that names backends.

load_settings ─▶ Settings ─▶ attach ─┬─ nobody owns the state file: System (queue, orchestrator, models, workers, control socket)
                                     ├─ another process does:       RemoteOrchestrator, over the owner's control socket
                                     └─ [client] url names a server: HttpOrchestrator, over its API
"""

from __future__ import annotations

from ziggurat.assembly.artifacts import build_keyring, build_library, build_payloads, build_store, script_library
from ziggurat.assembly.attaching import Attachment, Mode, StateSeen, attach, look_at_state
from ziggurat.assembly.backends import LOCAL_QUEUES, build_queue, import_queue, shows_workers
from ziggurat.assembly.devserver import development_server
from ziggurat.assembly.endpoints import build_endpoint, build_models
from ziggurat.assembly.ledgers import ledger_files, recorder
from ziggurat.assembly.models import script_models, use_models_in_child
from ziggurat.assembly.modules import make_importable, open_registry
from ziggurat.assembly.schedules import schedule_of
from ziggurat.assembly.served import ServedWorkflow
from ziggurat.assembly.standing import BudgetUse, EndpointUse, LimitsUse, LimitUse, Standing
from ziggurat.assembly.switching import build_switches, follow_switches
from ziggurat.assembly.system import System
from ziggurat.assembly.temporal import links, look_at_temporal

__all__ = [
    "LOCAL_QUEUES",
    "Attachment",
    "BudgetUse",
    "EndpointUse",
    "LimitUse",
    "LimitsUse",
    "Mode",
    "ServedWorkflow",
    "Standing",
    "StateSeen",
    "System",
    "attach",
    "build_endpoint",
    "build_keyring",
    "build_library",
    "build_models",
    "build_payloads",
    "build_queue",
    "build_store",
    "build_switches",
    "development_server",
    "follow_switches",
    "import_queue",
    "ledger_files",
    "links",
    "look_at_state",
    "look_at_temporal",
    "make_importable",
    "open_registry",
    "recorder",
    "schedule_of",
    "script_library",
    "script_models",
    "shows_workers",
    "use_models_in_child",
]
