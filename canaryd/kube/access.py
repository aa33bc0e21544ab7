"""Which API server, and who we are there: read from a kubeconfig or the pod's service account by `kubernetes`.

The only module that imports `kubernetes`. Messages never repeat what a kubeconfig holds: its errors quote whole users,
tokens included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from canaryd.errors import ConfigError, Problem

if TYPE_CHECKING:
    import urllib3
    from kubernetes.client.configuration import Configuration

_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECTIONS = 32  # kept open for reuse; more can be had


@dataclass(frozen=True, slots=True)
class Access:
    """One way to reach one server as one user."""

    configuration: Configuration
    pool: urllib3.PoolManager
    namespace: str  # of the context or of the pod

    @property
    def server(self) -> str:
        """URL of the server without credentials."""
        parts = urlsplit(self.configuration.host)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def credentials(self) -> dict[str, str]:
        """The header that says who we are, from a token file read at most a minute ago or an exec plugin.

        Raises ConfigError when it cannot be had.
        """
        with _in_words("the credentials"):
            settings = self.configuration.auth_settings()
        told = [setting for setting in settings.values() if isinstance(setting, dict) and setting.get("value")]
        return {str(setting["key"]): str(setting["value"]).strip() for setting in told}  # files may end with a newline


def access(kubeconfig: str | None, context: str | None) -> Access:
    """Read everything anew. `kubeconfig` None: $KUBECONFIG, ~/.kube/config, the pod's service account, in this order.

    Raises ConfigError that says where was looked, or what is wrong there.
    """
    from kubernetes.client.configuration import Configuration
    from kubernetes.client.rest import RESTClientObject

    configuration = Configuration()
    where = kubeconfig or os.environ.get("KUBECONFIG") or _home()
    if where:
        namespace = _from_kubeconfig(configuration, where, context)
    elif context:
        raise _wrong(f"context {context!r} was named, but there is no kubeconfig", "name one with --kubeconfig")
    else:
        namespace = _from_pod(configuration)
    configuration.retries = False  # urllib3 knows False: never repeat, never follow
    configuration.connection_pool_maxsize = _CONNECTIONS
    configuration.keep_alive = True
    with _in_words("the certificates"):
        pool = RESTClientObject(configuration).pool_manager
    if not configuration.verify_ssl:
        # What the kubeconfig asks for (insecure-skip-tls-verify) is not warned of at each request.
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Access(configuration, pool, namespace)


def _home() -> str | None:
    path = Path("~/.kube/config").expanduser()
    return str(path) if path.is_file() else None


def _from_kubeconfig(configuration: Configuration, where: str, context: str | None) -> str:
    """Fills the configuration; returns the namespace of the context."""
    from kubernetes.config import list_kube_config_contexts, load_kube_config

    files = [part for part in where.split(os.pathsep) if part]
    if not any(os.path.isfile(os.path.expanduser(f)) for f in files):
        raise _wrong("there is no such kubeconfig", "check --kubeconfig and $KUBECONFIG", where)
    with _in_words("the kubeconfig", where):
        contexts, current = list_kube_config_contexts(where)
        known = {str(c["name"]): c.get("context") or {} for c in contexts}
        name = context or str(current["name"])
        if name in known:
            configuration.host = ""  # the package would fall back to its own default
            load_kube_config(where, context=name, client_configuration=configuration)
    if name not in known:
        raise _wrong(f"there is no context {name!r}", f"known: {', '.join(sorted(known)) or 'none'}", where)
    if not configuration.host:
        raise _wrong(f"the cluster of context {name!r} has no server", "write its URL there", where)
    return str(known[name].get("namespace") or "default")


def _from_pod(configuration: Configuration) -> str:
    """Fills the configuration from the service account of this pod; returns the pod's namespace."""
    from kubernetes.config import load_incluster_config

    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise _wrong(
            "no API server is known: no kubeconfig ($KUBECONFIG, ~/.kube/config), and this is no pod of a cluster",
            "name a kubeconfig with --kubeconfig",
        )
    with _in_words("the service account of this pod", str(_POD)):
        load_incluster_config(configuration)
    try:
        return (_POD / "namespace").read_text().strip() or "default"
    except OSError:
        return "default"


@contextmanager
def _in_words(what: str, where: str = "") -> Iterator[None]:
    """Turns whatever reading raises into a ConfigError that quotes nothing of what was read."""
    import urllib3
    import yaml
    from kubernetes.config import ConfigException

    try:
        yield
    except ConfigException as e:
        # From the first brace on such a text quotes the entry that is wrong, secrets included.
        raise _wrong(f"{what} cannot be used: {str(e).split('{', maxsplit=1)[0].strip()}", "", where) from None
    except OSError as e:
        raise _wrong(f"{what} cannot be read: {e.strerror or type(e).__name__}", "", e.filename or where) from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        raise _wrong(f"{what} is no YAML", "", where, mark.line + 1 if mark else 0) from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, urllib3.exceptions.HTTPError) as e:
        # The package trusts the shape of what it reads.
        raise _wrong(f"{what} cannot be used: it has not the shape of one ({type(e).__name__})", "", where) from None


def _wrong(what: str, right: str, where: str = "", line: int = 0) -> ConfigError:
    return ConfigError([Problem(where or "kubernetes", line, "", f"{what}; {right}" if right else what)])
