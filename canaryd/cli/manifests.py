"""`canaryd manifests`: what to apply to a cluster, as YAML. Reaches no cluster itself."""

from __future__ import annotations

import click

import canaryd
from canaryd.cli.exits import Exit, UsageError


@click.command()
@click.argument("what", type=click.Choice(["crd", "canaryd"]), metavar="crd|canaryd")
@click.option("--namespace", "-n", metavar="NAME", default="canaryd", show_default=True, help="Where canaryd runs.")
@click.option(
    "--watch-namespace",
    "watched",
    metavar="NAME",
    multiple=True,
    help="A namespace whose Canaries it looks after, with a Role there; may be repeated.",
)
@click.option("--all-namespaces", "-A", is_flag=True, help="Look after the Canaries of all, with a ClusterRole.")
@click.option("--image", metavar="IMAGE", default=f"canaryd:{canaryd.__version__}", show_default=True)
@click.option(
    "--prometheus", metavar="URL", default="http://prometheus.monitoring:9090", show_default=True, help="Its address."
)
@click.option(
    "--dashboard",
    metavar="URL",
    default="",
    help="With the dashboard, which people will find at this https:// address; needs the Secret canaryd-dashboard.",
)
def manifests(
    what: str,
    namespace: str,
    watched: tuple[str, ...],
    all_namespaces: bool,
    image: str,
    prometheus: str,
    dashboard: str,
) -> int:
    """Print what a cluster needs: the definition of the Canary resource, or the whole installation.

    \b
    Examples:
      canaryd manifests crd | kubectl apply --server-side -f -
      canaryd manifests canaryd --watch-namespace shop --image example/canaryd:0.1.0
      canaryd manifests canaryd --all-namespaces
      canaryd manifests canaryd -A --dashboard https://canaryd.example.com
    """
    from canaryd import crd, yamlout
    from canaryd.manifests import Install, everything

    if what == "crd":
        click.echo(yamlout.documents([crd.definition()]), nl=False)
        return Exit.OK
    if bool(watched) == all_namespaces:
        raise UsageError("say whose Canaries to look after: --watch-namespace NAME, or --all-namespaces")
    if dashboard and not dashboard.startswith("https://"):
        raise UsageError(f"--dashboard {dashboard}: its address begins with https://; a proxy or Ingress speaks TLS")
    install = Install(
        image=image,
        namespace=namespace,
        watched=tuple(dict.fromkeys(watched)),
        prometheus=prometheus,
        dashboard=dashboard,
    )
    click.echo(yamlout.documents(everything(install)), nl=False)
    return Exit.OK
