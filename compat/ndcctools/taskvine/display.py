"""Status display under the published module name."""

from taskvine_core.manager.display import JupyterDisplay as JupyterDisplay
from taskvine_core.manager.display import StatusDisplay as StatusDisplay
